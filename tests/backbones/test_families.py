"""Every family of the zoo, made tiny: its taps against its own modules, read by hooks written here.

The architectures are timm's own, built by `load_timm` at their native size with fewer and narrower blocks, seeded and
resampled, so that everything between a name and its tokens runs; no weights are downloaded.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch

from loffta.backbones.timm_backbone import load_timm
from loffta.errors import UsageError
from loffta.taps import is_inner, resolve_taps
from loffta.zoo.facts import FACTS
from loffta.zoo.names import FAMILIES, ZOO

INNER = ("attn", "norm2", "mlp.hidden", "mlp")  # of block 1, with these all
GATED = ("attn", "norm2", "mlp")  # what leaves the activation is multiplied by a gate


@dataclass(frozen=True)
class Uniform:
    """A family whose blocks all give one shape."""

    name: str
    px: int | None
    n_prefix: int
    side: int  # of the grid
    final: tuple[str, ...]  # taps behind the last block
    inner: tuple[str, ...] = INNER
    small: dict[str, Any] = field(default_factory=lambda: {"embed_dim": 32, "depth": 3, "num_heads": 2})
    n_blocks: int = 3
    cells: int | None = None  # a side, where a token sees more of the image than its own cell; None: the grid's
    finish: Callable[[Any, torch.Tensor], torch.Tensor] = lambda model, x: model.forward_head(model.norm(x))


@dataclass(frozen=True)
class Pyramid:
    """A family of which timm gives a few stages."""

    name: str
    px: int | None
    shapes: tuple[tuple[int, int], ...]  # side and channels of each stage
    modules: tuple[str, ...]  # behind each stage; () where a module's tokens do not lie in the grid's order
    channels_last: bool
    finish: Callable[[Any, torch.Tensor], torch.Tensor]  # takes [B, H, W, D]
    small: dict[str, Any] = field(default_factory=dict)
    n_local: int | None = None  # leading stages whose tokens see little more than their own cell; None: all


def nchw(x):
    return x.permute(0, 3, 1, 2)


UNIFORM = [
    Uniform("dinov2-b", 42, 1, 3, ("norm",)),
    Uniform("dinov2-reg-b", 42, 5, 3, ("norm",)),
    Uniform("dinov2-reg-g", 42, 5, 3, ("norm",), GATED),
    Uniform("dinov3-s", 48, 5, 3, ("norm",)),
    Uniform("dinov3-s-plus", 48, 5, 3, ("norm",), GATED),
    Uniform("dinov3-l-sat", 48, 5, 3, ("norm",)),
    Uniform("dino-b16", 48, 1, 3, ("norm",)),
    Uniform("clip-b16", 48, 1, 3, ("norm", "head")),
    Uniform("openclip-b16", 48, 1, 3, ("norm", "head")),
    Uniform("datacomp-b16", 48, 1, 3, ("norm", "head")),
    Uniform("dfn-clip-b16", 48, 1, 3, ("norm", "head")),
    Uniform("metaclip-b16", 48, 1, 3, ("norm", "head")),
    Uniform("siglip-b16", 48, 0, 3, ("norm",)),  # pools by attention
    Uniform("siglip2-b16", 48, 0, 3, ("norm",)),
    Uniform("pe-core-b", 48, 1, 3, ("norm",)),
    Uniform("pe-core-g", 42, 0, 3, ("norm",)),  # no class token
    Uniform("pe-spatial-b", 48, 1, 3, ()),
    Uniform("pe-lang-l", 42, 1, 3, ()),
    Uniform("tipsv2-b", 42, 2, 3, ("norm",)),
    Uniform("c-radio-b", 48, 8, 3, ()),
    Uniform("aimv2-l", 42, 0, 3, ("norm",), GATED),
    Uniform("eva02-b", 42, 1, 3, (), GATED),
    Uniform("eva02-clip-b16", 48, 1, 3, ("norm", "head"), GATED),
    Uniform("vitamin-s", 64, 0, 4, (), GATED, {"depth": 2}, 2, cells=2),  # convolutions below
    Uniform("mae-b", 48, 1, 3, ("norm",)),
    Uniform(
        "sam-b",
        48,
        0,
        3,
        (),
        INNER[1:],  # block 1 attends in windows, larger than this map
        finish=lambda model, x: model.forward_head(model.neck(nchw(x.unflatten(1, (3, 3))))),
    ),
    Uniform("augreg-b", 48, 1, 3, ("norm",)),
    Uniform("orig-b", 48, 1, 3, ("norm",)),
    Uniform("deit3-b", 48, 1, 3, ("norm",)),
    Uniform("naflex-b", 48, 4, 3, ()),  # registers alone
    Uniform("naflex-siglip2-b", 48, 0, 3, ("norm",)),
]
WIDTHS = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
DEPTHS = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 2, 1)}
SMALL_CONV = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
CONVNEXT = {
    "px": 64,
    "shapes": ((16, 8), (8, 16), (4, 24), (2, 32)),
    "modules": tuple(f"stages.{i}" for i in range(4)),
    "channels_last": False,
    "finish": lambda model, x: model.forward_head(model.norm_pre(nchw(x))),
    "small": SMALL_CONV,
}
SWIN = {
    "modules": tuple(f"layers.{i}" for i in range(4)),
    "channels_last": True,
    "finish": lambda model, x: model.forward_head(model.norm(x)),
    "small": WIDTHS,
}
EFFICIENT = {"channels_last": False, "finish": lambda model, x: model.forward_head(model.bn2(model.conv_head(nchw(x))))}
PYRAMIDS = [
    Pyramid("dinov3-convnext-t", **CONVNEXT),
    Pyramid("convnext-t", **CONVNEXT),
    Pyramid("convnextv2-t", **CONVNEXT),
    Pyramid("convnext-clip-b", **CONVNEXT),
    Pyramid("swin-t", None, ((56, 16), (28, 32), (14, 64), (7, 128)), **SWIN),
    Pyramid("swinv2-t", None, ((64, 16), (32, 32), (16, 64), (8, 128)), **SWIN),
    Pyramid(
        "hiera-t",
        None,
        ((56, 16), (28, 32), (14, 64), (7, 128)),
        (),
        True,
        lambda model, x: model.forward_head(x.flatten(1, 2)),
        DEPTHS,
    ),
    Pyramid(
        "sam2-t",
        224,
        ((56, 16), (28, 32), (14, 64), (7, 128)),
        ("blocks.0", "blocks.1", "blocks.3", "blocks.4"),
        True,
        lambda model, x: model.forward_head(x),
        DEPTHS | {"global_att_blocks": (3,)},
    ),
    Pyramid(
        "efficientnet-lite0",
        64,
        ((32, 16), (16, 24), (8, 40), (4, 112), (2, 320)),
        tuple(f"blocks.{i}" for i in (0, 1, 2, 4, 6)),
        n_local=3,
        **EFFICIENT,
    ),
    Pyramid(
        "efficientnetv2-s",
        64,
        ((32, 24), (16, 48), (8, 64), (4, 160), (2, 256)),
        tuple(f"blocks.{i}" for i in (0, 1, 2, 4, 5)),
        n_local=3,
        **EFFICIENT,
    ),
    Pyramid(
        "resnet-50",
        64,
        ((32, 64), (16, 256), (8, 512), (4, 1024), (2, 2048)),
        ("act1", *(f"layer{i}" for i in range(1, 5))),
        False,
        lambda model, x: model.forward_head(nchw(x)),
        {"layers": (1, 1, 1, 1)},
        n_local=4,
    ),
]
CASES = {case.name: case for case in [*UNIFORM, *PYRAMIDS]}
LARGEST = [list(family.members)[-1] for family in FAMILIES.values()]
GATED_SIZES = {"dinov2-g", "dinov2-reg-g", "dinov3-s-plus", "dinov3-h-plus", "dinov3-7b"}  # of families with plain MLPs
OTHER_SIZES = [
    short
    for short in ZOO
    if FACTS[short].kind == "blocks" and short in {*LARGEST, *GATED_SIZES} - {case.name for case in UNIFORM}
]
real_create_model = timm.create_model


def load_small(short, small, px):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, **options: real_create_model(name, **options, **small))
        return load_timm(ZOO[short], weights="random:0", image_px=px)


@functools.cache
def backbone_of(name):
    """The small model behind loffta's protocol, its parameters stirred: many begin at zero or nearly so."""
    backbone = load_small(name, CASES[name].small, CASES[name].px)
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return backbone


@functools.cache
def pixels_of(name):
    px = backbone_of(name).geometry.image_px
    return torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def outputs(backbone):
    return [spec.tap for spec in backbone.specs if not is_inner(spec.tap)]


def images(name):
    backbone = backbone_of(name)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    return (pixels_of(name) / 255.0 - mean) / std


def hooked(name, modules):
    """What the modules give while the model answers, and its answer."""
    model, gave = backbone_of(name).model, {}
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: gave.update({path: out}))
        for path in modules
    ]
    with torch.no_grad():
        answer = model(images(name))
    for hook in hooks:
        hook.remove()
    return [gave[path] for path in modules], answer


def joined(tokens):
    return torch.cat([tokens.prefix, tokens.grid.flatten(1, 2)], dim=1)


def test_every_family_of_the_zoo_is_here():
    assert [name for name, family in FAMILIES.items() if not set(family.members) & set(CASES)] == []
    assert len(CASES) == len(UNIFORM) + len(PYRAMIDS)


@pytest.mark.parametrize("case", UNIFORM, ids=lambda case: case.name)
def test_blocks_are_what_the_modules_give(case):
    backbone = backbone_of(case.name)
    taps = [f"blocks.{i}" for i in range(case.n_blocks)]
    assert outputs(backbone) == taps
    gave, answer = hooked(case.name, taps)
    result = backbone(pixels_of(case.name), taps)
    for tap, expected in zip(taps, gave, strict=True):
        tokens = expected if expected.ndim == 3 else expected.flatten(1, 2)
        torch.testing.assert_close(joined(result[tap]), tokens, rtol=1e-4, atol=1e-4)
        assert result[tap].prefix.shape == (2, case.n_prefix, tokens.shape[-1])
        assert result[tap].grid.shape == (2, case.side, case.side, tokens.shape[-1])
    with torch.no_grad():
        torch.testing.assert_close(case.finish(backbone.model, joined(result[taps[-1]])), answer, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", UNIFORM, ids=lambda case: case.name)
def test_inner_and_final_taps(case):
    """Which there are; each as wide as its module's output, whose tokens come in the block's order."""
    backbone = backbone_of(case.name)
    taps = [spec.tap for spec in backbone.specs]
    assert [tap for tap in taps if tap.startswith("blocks.1.")] == [f"blocks.1.{part}" for part in case.inner]
    assert tuple(tap for tap in taps if not tap.startswith("blocks.")) == case.final
    assert {(spec.height, spec.width, spec.n_prefix) for spec in backbone.specs} == {
        (case.side, case.side, case.n_prefix)
    }
    assert {spec.registers_only for spec in backbone.specs} == {case.name == "naflex-b"}
    paths = {f"blocks.1.{part}": f"blocks.1.{'mlp.act' if part == 'mlp.hidden' else part}" for part in case.inner}
    gave, _ = hooked(case.name, list(paths.values()))
    result = backbone(pixels_of(case.name), list(paths))
    for tap, expected in zip(paths, gave, strict=True):
        tokens = expected if expected.ndim == 3 else expected.flatten(1, 2)
        torch.testing.assert_close(joined(result[tap]), tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("short", OTHER_SIZES)
def test_other_sizes_have_the_taps_of_their_family(short):
    family = next(family.members for family in FAMILIES.values() if short in family.members)
    case = next(case for case in UNIFORM if case.name in family)
    native, (side, _) = FACTS[short].px, FACTS[short].taps[0]
    backbone = load_small(short, case.small, native // side * case.side)
    taps = [spec.tap for spec in backbone.specs]
    inner = GATED if short in GATED_SIZES else case.inner
    assert [tap for tap in taps if tap.startswith("blocks.1.")] == [f"blocks.1.{part}" for part in inner]
    assert tuple(tap for tap in taps if not tap.startswith("blocks.")) == case.final
    assert {spec.n_prefix for spec in backbone.specs} == {FACTS[short].n_prefix}


@pytest.mark.parametrize("case", PYRAMIDS, ids=lambda case: case.name)
def test_stages_are_what_the_modules_give(case):
    backbone = backbone_of(case.name)
    taps = [f"stages.{i}" for i in range(len(case.shapes))]
    assert [spec.tap for spec in backbone.specs] == taps
    assert [(spec.height, spec.dim) for spec in backbone.specs] == list(case.shapes)
    assert {(spec.width - spec.height, spec.n_prefix) for spec in backbone.specs} == {(0, 0)}
    gave, answer = hooked(case.name, case.modules)
    result = backbone(pixels_of(case.name), taps)
    for tap, expected in zip(taps, gave, strict=False):  # none for Hiera
        grid = expected if case.channels_last else expected.permute(0, 2, 3, 1)
        torch.testing.assert_close(result[tap].grid, grid, rtol=1e-4, atol=1e-4)
    assert {tokens.prefix.shape[1] for tokens in result.values()} == {0}
    with torch.no_grad():
        torch.testing.assert_close(case.finish(backbone.model, result[taps[-1]].grid), answer, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_taps_are_timms_intermediates(name):
    backbone = backbone_of(name)
    with torch.no_grad():
        expected = backbone.model.forward_intermediates(images(name), intermediates_only=True)
    result = backbone(pixels_of(name), outputs(backbone))
    for tokens, features in zip(result.values(), expected, strict=True):
        torch.testing.assert_close(tokens.grid, features.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_grid_is_row_by_row(name):
    """One cell of the image is changed at a time: of every tap's cells, the same one changes most."""
    backbone = backbone_of(name)
    side, px = getattr(CASES[name], "cells", None) or backbone.specs[-1].height, backbone.geometry.image_px
    cells = [(row, column) for row in range(side) for column in range(side)][:12]  # two rows and more
    base = pixels_of(name)[:1]
    changed = base.repeat(len(cells), 1, 1, 1)
    for image, (row, column) in zip(changed, cells, strict=True):
        rows, columns = (slice(i * px // side, (i + 1) * px // side) for i in (row, column))
        image[:, rows, columns] = 255 - image[:, rows, columns]
    taps = outputs(backbone)[: getattr(CASES[name], "n_local", None)]
    before, after = backbone(base, taps), backbone(changed, taps)
    for tap in taps:
        change = (after[tap].grid - before[tap].grid).square().sum(-1, keepdim=True)
        cell_change = torch.nn.functional.adaptive_avg_pool2d(nchw(change), side).flatten(1)
        assert cell_change.argmax(1).tolist() == [row * side + column for row, column in cells], tap


@pytest.mark.parametrize("name", CASES)
def test_size_and_statistics_are_timms(name):
    backbone = backbone_of(name)
    expected = timm.data.resolve_data_config(model=backbone.model)
    assert (backbone.mean, backbone.std) == (expected["mean"], expected["std"])
    assert backbone.geometry.interpolation == expected["interpolation"]
    if CASES[name].px is None:
        assert (3, backbone.geometry.image_px, backbone.geometry.image_px) == expected["input_size"]


@pytest.mark.parametrize("case", PYRAMIDS, ids=lambda case: case.name)
def test_hooks_into_pyramids_are_refused(case):
    """Windows, units, or no uniform blocks: a hook's tokens would have another order than the grid's."""
    backbone = backbone_of(case.name)
    with pytest.raises(UsageError) as caught:
        backbone(pixels_of(case.name), ["blocks.1.norm2"])
    assert str(caught.value) == (
        "'blocks.1.norm2' does not exist here: a hook would see tokens in an order that is not proven to be the grid's "
        f"(windows, units or a net without uniform blocks)\n  where:  backbone {ZOO[case.name]}\n"
        "  remedy: use the outputs of its stages: last, last4, four-even, all or stages.N"
    )
    for request in ("norm2", "alf", "norm"):
        with pytest.raises(UsageError, match=f"^'{request}' does not exist here: .*windows, units"):
            resolve_taps(request, outputs(backbone), where="x")

"""ComBo against the paper's sizes, timm's VisionTransformer and per-position loops."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from loffta.heads import combo
from loffta.heads.combo import ComboHead, ComboRecipe, choose_grid
from loffta.pooling import normalise_layers, normalise_tokens, resize_grid
from loffta.tokens import FeatureSpec

TO_TIMM = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "classify": "head"}
MIXED = [
    FeatureSpec("dino", ("3", "last"), "grid", (4, 4, 6), 32),
    FeatureSpec("net", ("s3",), "grid", (8, 8, 3), 32),
    FeatureSpec("net", ("s4",), "grid", (2, 2, 10), 32),
]


def vit_base(name, side=14):
    return FeatureSpec(name, tuple(str(block) for block in range(12)), "grid", (side, side, 768), 224)


def draw(specs, n_images=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng) * 4 + 1 for spec in specs]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_of_the_paper():
    head = ComboHead([vit_base("in21k")], 100, rng=torch.Generator())
    assert (count(head.project), count(head.blocks), count(head)) == (1_179_776, 1_189_632, 2_407_908)
    teachers = [vit_base("sam"), vit_base("dfn_clip"), vit_base("siglip"), vit_base("dinov2", side=16)]
    assert count(ComboHead(teachers, 100, rng=torch.Generator(), grid=14)) == 5_946_852


def test_logits_equal_timm():
    """A 1x1 patch embedding of timm's is the affine map per position, so the whole head can be compared."""
    specs = [FeatureSpec("vit", ("1", "2"), "grid", (5, 5, 20), 80)]
    rng = torch.Generator().manual_seed(0)
    head = ComboHead(specs, 11, rng=rng).eval()
    for parameter in head.parameters():  # far from the initial zeros and ones
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    norm_layer = partial(nn.LayerNorm, eps=1e-5)
    timm_model = VisionTransformer(
        img_size=5,
        patch_size=1,
        in_chans=40,
        num_classes=11,
        embed_dim=128,
        depth=6,
        num_heads=2,
        norm_layer=norm_layer,
    ).eval()
    state = {
        ".".join(TO_TIMM.get(part, part) for part in name.split(".")): value
        for name, value in head.state_dict().items()
    }
    state["patch_embed.proj.weight"] = state.pop("project.weight")[:, :, None, None]
    state["patch_embed.proj.bias"] = state.pop("project.bias")
    timm_model.load_state_dict(state)
    prepared = head.prepare(draw(specs))
    expected = timm_model(prepared.reshape(3, 5, 5, 40).permute(0, 3, 1, 2))
    assert expected.std() > 0.1
    torch.testing.assert_close(head(prepared), expected, atol=1e-4, rtol=1e-4)


def test_projection_equals_a_loop_over_positions_backbones_and_taps():
    """Different grids and widths; each tap has its own block of columns, in the order of specs, taps, channels."""
    head = ComboHead(MIXED, 2, rng=torch.Generator().manual_seed(0))
    features = draw(MIXED)
    projected = head.project(head.prepare(features)).detach().numpy()
    weight, bias = head.project.weight.detach().numpy(), head.project.bias.detach().numpy()
    resized = [resize_grid(feature, head.grid).numpy() for feature in features]
    for image in range(3):
        for position in range(head.grid**2):
            expected, start = bias.astype(np.float64), 0
            for spec, grids in zip(MIXED, resized, strict=True):
                for tap in range(len(spec.taps)):
                    layer = grids[image, tap].astype(np.float64)
                    vector = (layer - layer.mean()) / math.sqrt(layer.var() + 1e-5)
                    columns = weight[:, start : start + spec.dim]
                    expected = expected + columns @ vector[position // head.grid, position % head.grid]
                    start += spec.dim
            np.testing.assert_allclose(projected[image, position], expected, atol=1e-4)


def test_normalisation_comes_after_resizing():
    head = ComboHead(MIXED, 2, rng=torch.Generator())
    prepared = head.prepare(draw(MIXED)).double()
    for group in head.tap_groups:
        ((start, stop),) = group.ranges
        layer = prepared[:, :, start:stop].flatten(1)
        np.testing.assert_allclose(layer.mean(dim=1), 0, atol=1e-5)
        np.testing.assert_allclose(layer.var(dim=1, correction=0), 1, atol=1e-4)


@pytest.mark.parametrize("normalise", ["embed_and_tokens", "embed_only"])
@pytest.mark.parametrize("part_bytes", [1, 4 * 100, 1 << 30])
def test_prepared_in_parts_it_is_what_it_is_at_once(monkeypatch, normalise, part_bytes):
    """Bit for bit; and with gradients, for the features of a backbone that is trained, too."""
    monkeypatch.setattr(combo, "_PART_BYTES", part_bytes)
    head = ComboHead(MIXED, 2, rng=torch.Generator(), normalise=normalise)
    found, plain = ([feature.clone().requires_grad_() for feature in draw(MIXED)] for _ in range(2))
    function = {"embed_and_tokens": normalise_layers, "embed_only": normalise_tokens}[normalise]
    layers = [function(resize_grid(feature, head.grid).flatten(2, 3)) for feature in plain]
    expected = torch.cat([layer for tokens in layers for layer in tokens.unbind(1)], dim=2)
    prepared = head.prepare(found)
    assert torch.equal(prepared, expected)
    weights = torch.randn(prepared.shape, generator=torch.Generator().manual_seed(3))
    for result in (prepared, expected):
        (result * weights).sum().backward()
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-6)


def test_embed_only_normalises_every_token():
    head = ComboHead(MIXED, 2, rng=torch.Generator(), normalise="embed_only")
    prepared = head.prepare(draw(MIXED)).double()
    for group in head.tap_groups:
        ((start, stop),) = group.ranges
        tokens = prepared[:, :, start:stop]
        np.testing.assert_allclose(tokens.mean(dim=2), 0, atol=1e-5)
        np.testing.assert_allclose(tokens.var(dim=2, correction=0), 1, atol=1e-3)


def test_resize_of_the_paper():
    """On MIXED's grid, 4, the 8 x 8 tap alone shrinks by 2."""
    features = draw(MIXED)
    auto, paper = (
        ComboHead(MIXED, 2, rng=torch.Generator(), grid=4, resize=resize).prepare(features)
        for resize in ("auto", "paper")
    )
    assert torch.equal(auto[:, :, :12], paper[:, :, :12])
    assert torch.equal(auto[:, :, 15:], paper[:, :, 15:])
    # cell i of 4 lies between cells 2i and 2i + 1 of 8: there, bilinear is the average of 2 x 2
    torch.testing.assert_close(auto[:, :, 12:15], paper[:, :, 12:15])
    auto, paper = (
        ComboHead(MIXED, 2, rng=torch.Generator(), grid=2, resize=resize).prepare(features)
        for resize in ("auto", "paper")
    )
    assert (auto[:, :, 12:15] - paper[:, :, 12:15]).abs().max() > 0.1


def test_step_in_bf16_is_near_float32():
    """Forward, backward and the penalty under CPU autocast, as the trainer runs them."""
    gradients = []
    for enabled in (False, True):
        head = ComboHead(MIXED, 2, rng=torch.Generator().manual_seed(0), depth=2, relevance_weight=0.01).train()
        prepared = head.prepare(draw(MIXED))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = head(prepared)
        assert logits.dtype == (torch.bfloat16 if enabled else torch.float32)
        loss = nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 1])) + head.penalty()
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in head.parameters()]))
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()


def test_groups_follow_the_columns():
    head = ComboHead(MIXED, 2, rng=torch.Generator())
    assert [(group.backbone, group.ranges) for group in head.backbone_groups] == [
        ("dino", ((0, 6), (6, 12))),
        ("net", ((12, 15), (15, 25))),
    ]
    named = [f"{group.backbone}:{group.tap}" for group in head.tap_groups]
    assert named == ["dino:3", "dino:last", "net:s3", "net:s4"]
    assert head.project.weight.shape == (128, 25)


def test_initial_weights():
    specs = [FeatureSpec("vit", ("1", "2"), "grid", (14, 14, 384), 224)]
    head = ComboHead(specs, 100, rng=torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(768)  # kaiming-uniform with a = sqrt(5), as torch's own layers
    for parameter in (head.project.weight, head.project.bias):
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    linears = [head.blocks[0].qkv, head.blocks[5].fc2, head.classify]
    for weight in [head.pos_embed, *(linear.weight for linear in linears)]:
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(linear.bias.any() for linear in linears)
    assert 0 < head.cls_token.abs().max() < 1e-5


def test_no_decay():
    names = ComboHead(MIXED, 2, rng=torch.Generator(), depth=1).no_decay()
    block = [
        "norm1.weight",
        "norm1.bias",
        "qkv.bias",
        "proj.bias",
        "norm2.weight",
        "norm2.bias",
        "fc1.bias",
        "fc2.bias",
    ]
    outside = {"cls_token", "pos_embed", "project.bias", "classify.bias", "norm.weight", "norm.bias"}
    assert names == outside | {f"blocks.0.{name}" for name in block}


@pytest.mark.parametrize(
    ("backbones", "sides", "image_px", "grid"),
    [
        ("aa", [14, 14], [224, 224], 14),
        ("a", [16], [224], 16),  # DINOv2 alone keeps its own
        ("ab", [16, 16], [224, 224], 14),  # two of them do not, nor do two that are coarser
        ("ab", [7, 7], [224, 224], 14),
        ("ab", [14, 16], [224, 224], 14),
        ("aa", [8, 4], [64, 64], 8),
        ("ab", [7, 14], [64, 224], 14),
        ("ab", [37, 14], [518, 224], 14),
        ("aa", [2, 1], [4, 4], 1),
    ],
)
def test_grid_rule(backbones, sides, image_px, grid):
    listed = zip(backbones, sides, image_px, strict=True)
    specs = [FeatureSpec(name, (f"{side}",), "grid", (side, side, 4), px) for name, side, px in listed]
    assert choose_grid(specs) == grid
    assert ComboRecipe().resolve(specs).grid == grid
    assert ComboRecipe(grid=5).resolve(specs).grid == 5
    assert ComboHead(specs, 2, rng=torch.Generator(), depth=1).grid == grid


def test_grid_that_is_not_square_falls_back():
    assert choose_grid([FeatureSpec("b", ("t",), "grid", (7, 8, 4), 64)]) == 8


def test_width_must_divide_into_heads():
    with pytest.raises(ValidationError, match="width 128 is not a multiple of n_heads 3"):
        ComboRecipe(n_heads=3)


@pytest.mark.parametrize(("field", "known"), [("normalise", "embed_only"), ("resize", "paper")])
def test_options_are_known_by_name(field, known):
    assert ComboRecipe(**{field: known}).head_arguments()[field] == known
    with pytest.raises(ValidationError, match=known):
        ComboRecipe(**{field: "none"})


def test_recipe_of_the_paper():
    recipe = ComboRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (100, 64, 1e-3, 1e-4)
    assert (recipe.warmup_fraction, recipe.warmup_start_factor, recipe.final_lr_factor) == (0.1, 0.01, 0.001)
    sizes = {"grid": None, "width": 128, "depth": 6, "n_heads": 2, "mlp_ratio": 4}
    options = {"normalise": "embed_and_tokens", "resize": "auto", "relevance_weight": 0.0}
    assert recipe.head_arguments() == sizes | options
    assert recipe.relevance_weight == 0

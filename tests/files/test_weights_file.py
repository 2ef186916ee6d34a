"""What is read out of files of every kind, and what is said of those that hold no weights."""

import argparse
import collections
import gzip
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from loffta.errors import LofftaError
from loffta.files.weights_file import is_npz, read_tensors

STATE = {"a.weight": torch.arange(4.0), "a.count": torch.tensor(3)}


def plain(tensors):
    return {name: tensor.tolist() for name, tensor in tensors.items()}


class Options(dict):
    """A class that only the training knows."""


class Bomb:
    def __init__(self, function=os.mkdir):
        self.function = function

    def __reduce__(self):
        return self.function, ("bomb-went-off",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        (STATE, ""),
        ({"epoch": 3, "state_dict": STATE}, "state_dict."),
        ({"model": {"deep": STATE}, "lr": 0.1, 5: [torch.zeros(2)]}, "model.deep."),
        ({"model": STATE, "best": np.float64(71.2), "rng": np.arange(3), "which": np.dtype("f4")}, "model."),
        (
            {"model": STATE, "args": argparse.Namespace(lr=0.1), "path": Path("x"), "c": collections.Counter("ab")},
            "model.",
        ),
    ],
)
def test_tensors_by_their_place(tmp_path, content, prefix, zipped):
    torch.save(content, tmp_path / "any name", _use_new_zipfile_serialization=zipped)
    assert plain(read_tensors(tmp_path / "any name")) == {prefix + name: t.tolist() for name, t in STATE.items()}


def test_bytes_decide_not_the_name(tmp_path):
    save_file(STATE, tmp_path / "w.pth")
    torch.save(STATE, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", a=np.zeros(1))
    (tmp_path / "w.npz").rename(tmp_path / "w.bin")
    for name in ("w.pth", "w.safetensors"):
        assert plain(read_tensors(tmp_path / name)) == plain(STATE)
    assert [is_npz(tmp_path / name) for name in ("w.bin", "w.pth", "w.safetensors")] == [True, False, False]


def test_a_module_pickled_whole_is_its_state_dict(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))
    torch.save({"ema": net, "epoch": 1}, tmp_path / "w.pt")
    assert plain(read_tensors(tmp_path / "w.pt")) == {f"ema.{n}": t.tolist() for n, t in net.state_dict().items()}


def test_a_file_that_holds_itself_ends(tmp_path):
    content = {"a": torch.zeros(1)}
    content["self"] = content
    torch.save(content, tmp_path / "w.pth")
    assert "a" in read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_never_runs(tmp_path, monkeypatch, zipped):
    """os is refused by torch; of the others nothing happens when they are read."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "x": Bomb()}, "os.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(LofftaError, match=r"holds pickled code \((posix|nt)\.mkdir\), which is never run"):
        read_tensors(Path("os.pth"))
    torch.save({"a": torch.zeros(1), "x": Bomb(shutil.rmtree)}, "tree.pth", _use_new_zipfile_serialization=zipped)
    torch.save({"a": torch.zeros(1), "x": Bomb(eval)}, "eval.pth", _use_new_zipfile_serialization=zipped)
    Path("raw.pth").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for name in ("tree.pth", "eval.pth"):
        assert list(read_tensors(Path(name))) == ["a"]
    with pytest.raises(LofftaError, match="cannot read the weights: "):
        read_tensors(Path("raw.pth"))
    assert not Path("bomb-went-off").exists()


def zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def torchscript(path):
    torch.jit.save(torch.jit.script(nn.ReLU()), path)


def cut(path):
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:700])


def cut_safetensors(path):
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:700])


PAGE = "\n <!DOCTYPE html><html><head><TITLE>Sign\n in</TITLE></head></html>"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.write_text(PAGE), "it is a web page ('Sign in'): was a login"),
        (
            lambda path: path.write_text(LFS),
            "it is the pointer that git-lfs left in place of the file: run `git lfs pull`",
        ),
        (lambda path: path.touch(), "the file is empty"),
        (lambda path: path.write_text("hello\n"), "it is a text that begins with 'hello'"),
        (lambda path: path.write_text('{"error": "\x1b[31mno"}'), "its first bytes are those of no format"),
        (lambda path: path.write_bytes(bytes(range(7, 90))), "its first bytes are those of no format"),
        (lambda path: path.write_bytes(b"\x80\x02garbage"), "it is no file that torch.save wrote|: |"),
        (lambda path: path.write_bytes(gzip.compress(b"x")), "it is a gzip archive: unpack it"),
        (zip_of_text, "it is a zip archive of 1 files, the first 'readme.txt'"),
        (cut, "it is a zip archive, as torch writes it, that is cut off or damaged"),
        (cut_safetensors, "SafetensorError: "),
        (lambda path: torch.save([torch.zeros(1)], path), "it holds one list, and no tensor with a name"),
        (lambda path: torch.save({"epoch": 3}, path), "it holds a dict of 'epoch', and no tensor with a name"),
        (lambda path: torch.save(Options(a=1), path), "cannot read the weights"),
    ],
)
def test_what_a_file_is_instead(tmp_path, make, what):
    path = tmp_path / "w.pth"
    make(path)
    with pytest.raises(LofftaError) as caught:
        read_tensors(path)
    assert caught.value.what.startswith("cannot read the weights: ")
    assert any(text in caught.value.what for text in what.split("|"))
    assert caught.value.where == str(path)
    assert "\n" not in caught.value.what
    assert "weights_only" not in str(caught.value) + str(caught.value.__cause__)  # torch advises to switch it off
    assert caught.value.what.isprintable()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_program_is_named(tmp_path):
    torchscript(tmp_path / "w.pt")
    with pytest.raises(LofftaError, match="it is a TorchScript program, which would have to be run"):
        read_tensors(tmp_path / "w.pt")

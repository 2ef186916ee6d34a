"""What `fetch` says; that it fetches is shown in tests/cli/test_fetch.py, against a hub."""

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from loffta.backbones import fetch as module
from loffta.backbones.fetch import environment, fetch
from loffta.errors import LofftaError, UsageError

VIT_REPO = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.mark.parametrize(
    ("home", "cache", "expected"),
    [
        ("/scratch/me", "/scratch/me/hub", "HF_HOME=/scratch/me"),
        ("/scratch/a b", "/scratch/a b/hub", "HF_HOME='/scratch/a b'"),
        ("/home/me/.cache/huggingface", "/scratch/models", "HF_HUB_CACHE=/scratch/models"),
    ],
)
def test_environment_names_the_variable_that_was_set(monkeypatch, home, cache, expected):
    monkeypatch.setattr(constants, "HF_HOME", home)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    assert environment() == expected


def test_a_model_without_hub_weights_keeps_its_own_remedy():
    with pytest.raises(LofftaError) as caught:
        fetch("gcvit_base")
    assert caught.value.what == "timm names no hub weights for gcvit_base"
    assert caught.value.remedy.endswith(".pth and pass --weights FILE")


def test_an_unknown_model():
    with pytest.raises(UsageError, match="unknown backbone 'vit_tini'"):
        fetch("vit_tini")


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (OfflineModeIsEnabled("offline"), "unset HF_HUB_OFFLINE where there is a network, "),
        (LocalEntryNotFoundError("the line went dead"), "run this on a machine with a network and enough disk, "),
        (OSError("no space left on device"), "run this on a machine with a network and enough disk, "),
    ],
)
def test_remedy_fits_the_reason(monkeypatch, tmp_path, cause, remedy):
    def fail(*_):
        raise LofftaError("cannot fetch", where=f"hub file {VIT_REPO}/model.safetensors", remedy="other") from cause

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "find_file", fail)
    with pytest.raises(LofftaError) as caught:
        fetch("vit_tiny_patch16_224")
    assert caught.value.what == "cannot fetch"
    assert caught.value.remedy == f"{remedy}or get the file another way and pass --weights PATH to extract"


def test_what_is_there_is_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / f"models--{VIT_REPO.replace('/', '--')}"
    file = folder / "snapshots" / "abc" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"never opened")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    found = fetch("vit_tiny_patch16_224")
    assert (found.path, found.n_bytes, found.downloaded) == (file, 12, False)

"""A published upsampler from its file into a run, which then needs the file no more."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loffta.errors import LofftaError, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.runs.run import RunPaths, open_run, read_results
from tests.dense import write_thumbs
from tests.heads.jbufiles import stack_weights
from tests.training.denseruns import dense_cache, go

DIM = 6  # of the cache's features


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    cache = dense_cache(tmp_path_factory.mktemp("jbu") / "cache", n_train=4, n_test=2)
    write_thumbs(cache, np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    return cache


def write_checkpoint(path, seed=0):
    """As FeatUp's training leaves it: with the backbone and what else it trained."""
    state = stack_weights(DIM, "upsampler.", "", seed) | {"scale_net.net.bias": torch.ones(1)}
    torch.save({"epoch": 3, "state_dict": state}, path)


def train(cache, out, upsampler, **recipe):
    return go(cache, out, "featup", features=("net:a.1",), recipe={"epochs": 1, "upsampler": str(upsampler)} | recipe)


def test_a_run_keeps_the_weights_and_the_digest_of_the_file(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, out = tmp_path / "net.ckpt", tmp_path / "run"
    write_checkpoint(file)
    results = train(cache, out, "net.ckpt")
    recipe = open_run(out)[1].recipe
    assert recipe["upsampler"] == str(file)
    assert recipe["upsampler_digest"] == hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    assert results["dense"]["adapter_parameters"] == DIM * 3 + 3
    head, given = load_file(RunPaths(out).head(0)), stack_weights(DIM, norm="")
    assert torch.equal(head["stages.3.compare.1.weight"], given["up4.range_proj.3.weight"])
    assert torch.equal(head["mixing.norm_bias"], given["model.1.norm.bias"])
    assert not torch.equal(head["classify.bias"], torch.zeros(3))
    file.unlink()
    before = read_results(RunPaths(out).results("test"))["metrics"]
    RunPaths(out).results("test").unlink()
    assert evaluate(out, "test")["metrics"] == before
    with pytest.raises(UsageError, match=r"there is no such file(.|\n)*net.ckpt"):
        train(cache, out, file)
    write_checkpoint(file, seed=1)
    with pytest.raises(LofftaError, match=r"another configuration:\n *recipe.upsampler_digest: .* -> "):
        train(cache, out, file)


def test_safetensors_are_read_and_their_digest_is_kept_to(cache, tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(stack_weights(DIM), file)
    with pytest.raises(UsageError, match=r"this file has changed: its digest is [0-9a-f]{32}, not 00ff") as caught:
        train(cache, tmp_path / "run", file, upsampler_digest="00ff")
    assert caught.value.exit_code == 2
    digest = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    train(cache, tmp_path / "run", file, upsampler_digest=digest)
    head = load_file(RunPaths(tmp_path / "run").head(0))
    assert torch.equal(head["mixing.weight"], stack_weights(DIM)["fixup_proj.1.weight"][:, :, 0, 0])
    assert "mixing.norm_weight" not in head


def test_what_does_not_fit_leaves_no_run(cache, tmp_path):
    save_file(stack_weights(DIM + 2), tmp_path / "wide.safetensors")
    save_file({"cross_decode.a": torch.ones(1), "image_encoder.a": torch.ones(1)}, tmp_path / "anyup.safetensors")
    for name, words in {"wide": "for features of 8 channels, and these have 6", "anyup": "AnyUp's weights"}.items():
        with pytest.raises(UsageError, match=words):
            train(cache, tmp_path / "run", tmp_path / f"{name}.safetensors")
    with pytest.raises(UsageError, match="one tap of one backbone, and these are 2"):
        go(cache, tmp_path / "run", "featup", features=("net:all",), recipe={"upsampler": "absent"})
    assert not (tmp_path / "run").exists()

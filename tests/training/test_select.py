"""`--select`: which backbones are kept, what is trained on them, what is refused."""

import json

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from loffta.errors import LofftaError, UsageError
from loffta.runs.run import RunPaths
from loffta.training import train as module
from tests.caches import FakeStore, make_cache, make_table, separable, toy_cache
from tests.training.runs import TINY, files, go

SELECTING = {**TINY, "epochs": 25, "lr": 1e-2}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tiny tensors on a busy machine: threads would only wait for one another."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """`noise` is twice as wide as `good`, and knows nothing."""
    labels, grids = separable(60)
    wide = np.random.default_rng(9).normal(size=(60, 2, 2, 12)).astype(np.float32)
    table = make_table(labels, ["train"] * 40 + ["test"] * 20)
    stores = [FakeStore("good", {"a.0": grids, "a.1": grids * 2}), FakeStore("noise", {"b.0": wide, "b.1": -wide})]
    return make_cache(tmp_path_factory.mktemp("select") / "cache", table, stores)


def test_select_keeps_the_backbone_that_knows(backbones, tmp_path, monkeypatch):
    out = tmp_path / "run"
    results = go(backbones, out, "combo", select=1, seeds=2, recipe=SELECTING)
    good = backbones.stores()[0].name
    assert [f["store"] for f in results["features"]] == [good]
    assert results["recipe"]["relevance_weight"] == 0
    assert "relevance" not in results
    scoring = json.loads(RunPaths(RunPaths(out).scoring).results("test").read_text())
    assert scoring["recipe"]["relevance_weight"] == 0.01
    assert [entry["backbone"] for entry in scoring["relevance"]["backbones"]] == ["good", "noise"]
    assert len(scoring["features"]) == 2
    saved = yaml.safe_load(RunPaths(out).config.read_text())
    assert (saved["features"], saved["select"]) == ([f"{good}:a.0,a.1"], 1)
    assert load_file(RunPaths(out).head(0))["project.weight"].shape == (8, 12)

    before = files(out)
    monkeypatch.setattr(module, "_train", None)
    assert go(backbones, out, "combo", select=1, seeds=2, recipe=SELECTING) == results
    assert files(out) == before


def test_select_uses_the_weight_that_is_given(backbones, tmp_path):
    go(backbones, tmp_path / "run", "combo", select=1, recipe={**TINY, "relevance_weight": 0.2})
    scoring = yaml.safe_load(RunPaths(RunPaths(tmp_path / "run").scoring).config.read_text())
    assert scoring["recipe"]["relevance_weight"] == 0.2
    assert scoring["select"] is None


def test_select_leaves_a_head_its_own_regulariser(backbones, tmp_path):
    recipe = {"epochs": 25, "batch_size": 16, "lr": 1e-2}
    for name, given, weight in (("default", {}, 1e-3), ("given", {"relevance_weight": 5e-3}, 5e-3)):
        results = go(backbones, tmp_path / name, "smp", select=1, recipe=recipe | given)
        scoring = json.loads(RunPaths(RunPaths(tmp_path / name).scoring).results("test").read_text())
        assert (scoring["recipe"]["relevance_weight"], results["recipe"]["relevance_weight"]) == (weight, weight)
        assert [f["label"] for f in results["features"]] == [scoring["relevance"]["backbones"][0]["backbone"]]
        assert len(results["relevance"]["backbones"]) == 1


def test_select_of_one_backbone(cache, tmp_path):
    with pytest.raises(UsageError, match=r"cannot select 1 of 1 backbones(.|\n)*several backbones"):
        go(cache, tmp_path / "run", "combo", select=1)


@pytest.mark.parametrize(
    ("head", "select", "message"),
    [
        ("combo", 2, r"cannot select 2 of 2 backbones(.|\n)*choose 1, or leave"),
        ("combo", 7, "cannot select 7 of 2 backbones"),
        ("linear", 1, r"head 'linear' gives no relevance(.|\n)*use --head combo or smp"),
    ],
)
def test_select_that_cannot_be(backbones, tmp_path, head, select, message):
    with pytest.raises(UsageError, match=message):
        go(backbones, tmp_path / "run", head, select=select)
    assert not (tmp_path / "run").exists()


def test_select_in_the_folder_of_another_run_fails_before_the_scoring(backbones, tmp_path, monkeypatch):
    go(backbones, tmp_path / "run", "combo")
    monkeypatch.setattr(module, "_train", None)
    with pytest.raises(LofftaError, match="select: None -> 1"):
        go(backbones, tmp_path / "run", "combo", select=1)
    assert not RunPaths(tmp_path / "run").scoring.exists()

"""With `--stage-dir` heads, predictions and figures are those without it, to the bit, wherever what is read lies."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest

import loffta
from loffta.errors import UsageError
from loffta.runs.run import RunPaths
from loffta.training.bench import bench
from tests.caches import FakeStore, make_cache, make_table, separable
from tests.dense import write_thumbs
from tests.training.denseruns import N_TEST, N_TRAIN, dense_cache

VOLATILE = {"seconds", "train_seconds", "peak_rss_mib", "cost", "timing", "staging"}
SHORT = {"epochs": 1, "min_steps": None, "batch_size": 8}
SMALL = {"combo": {"width": 8, "depth": 1}, "linear": {}}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Three taps and an int8 store; the splits lie in units of their own but for one."""
    labels, grids = separable(64, shape=(3, 3))
    others = [separable(64, shape=(3, 3), seed=i)[1] for i in (1, 2)]
    stores = [
        FakeStore("net", dict(zip(("a.0", "a.1", "a.2"), (grids, *others), strict=True)), kinds=("grid", "mean")),
        FakeStore("codes", {"b.0": grids}, dtype="int8"),
    ]
    table = make_table(labels, ["train"] * 36 + ["test"] * 20 + ["other"] * 8)
    return make_cache(tmp_path_factory.mktemp("staged") / "cache", table, stores, bad=(3, 40))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def made_of(out):
    """All of a run that is to be the same."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("results*.json"))]
    kept = [{key: one[key] for key in one if key not in VOLATILE} for one in results]
    for one in kept:
        one.get("search", {}).pop("seconds", None)
    files = sorted([*out.rglob("*.safetensors"), *out.glob("predictions*.parquet")])
    return kept, [(path.relative_to(out), path.read_bytes()) for path in files]


def shards(folder):
    return [path for path in folder.rglob("u*") if path.is_file()]


@pytest.mark.parametrize(
    ("head", "features", "feed", "more", "n_shards"),
    [
        ("linear", ["net:a.1"], "host", {"search": True, "validate_on": "other"}, 8),
        ("combo", ["net:a.0,a.2", "codes"], "stream", {"holdout": 0.3, "seeds": 2}, 2 * 7),
        ("linear", ["net:all"], "stream", {"folds": 3}, 5),
    ],
)
def test_a_training_is_the_same(cache, folder, tmp_path, head, features, feed, more, n_shards):
    found = []
    for out, stage_dir in ((tmp_path / "plain", None), (tmp_path / "staged", folder)):
        how = {"set": SHORT | SMALL[head], "feed": feed, "device": "cpu", "progress": False, "stage_dir": stage_dir}
        results = loffta.train(cache.paths.root, head=head, out=out, features=features, **more, **how)
        found.append(made_of(out))
    assert found[0] == found[1]
    assert len(found[0][1]) >= 2
    assert results.staging.shards == len(shards(folder)) == n_shards
    assert results.staging.bytes == results.staging.copied_bytes == sum(p.stat().st_size for p in shards(folder))
    assert results.staging.given_up is None
    assert "stage_dir" not in RunPaths(out).config.read_text()


def test_a_run_goes_on_without_the_folder_and_measures_with_it(cache, folder, tmp_path, capsys):
    how = {"set": SHORT, "device": "cpu", "features": ["net:a.1"]}
    out = tmp_path / "run"
    first = loffta.train(cache.paths.root, head="linear", out=out, stage_dir=folder, **how)
    again = loffta.train(cache.paths.root, head="linear", out=out, stage_dir=tmp_path / "gone", **how)
    assert again == first  # read back
    shutil.rmtree(folder)
    plain = loffta.evaluate(out, split="train", device="cpu")
    before = made_of(out)
    folder.mkdir()
    capsys.readouterr()
    staged = loffta.evaluate(out, split="train", device="cpu", stage_dir=folder)
    assert made_of(out) == before
    assert "5 shards" in capsys.readouterr().err
    assert (plain.staging, staged.staging.shards) == (None, 5)
    several = loffta.evaluate([out, out], split="train", device="cpu", stage_dir=folder, progress=False)
    assert [one.staging.copied_bytes for one in several] == [0, 0]


def test_a_scan_is_the_same(cache, folder):
    plain = loffta.scan(cache.paths.root, heads="knn,ridge", device="cpu", progress=False).as_json()
    found = loffta.scan(cache.paths.root, heads="knn,ridge", device="cpu", progress=False, stage_dir=folder)
    staged = found.as_json()
    assert staged["staging"]["shards"] == len(shards(folder)) == 2 * 7  # the means of one store, the grids of the other
    assert {key: staged[key] for key in staged if key not in VOLATILE} == {
        key: plain[key] for key in plain if key not in VOLATILE
    }
    assert "staging" not in plain


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Masks, boxes, and thumbnails."""
    cache = dense_cache(tmp_path_factory.mktemp("dense") / "cache", kinds=("mask", "boxes"), missing=(3, 25))
    values = np.random.default_rng(0).integers(0, 256, (N_TRAIN + N_TEST, 8, 8, 3), dtype=np.uint8)
    write_thumbs(cache, values)
    return cache


@pytest.mark.parametrize(
    ("head", "task", "n_shards"),
    [
        ("featup", "segmentation", 4 + 4 + 3),  # grids, thumbnails, and maps of what is trained on
        ("dense-linear", "detection", 4),  # boxes lie in memory
    ],
)
def test_a_dense_training_is_the_same(dense, folder, tmp_path, head, task, n_shards):
    found = []
    for out, stage_dir in ((tmp_path / "plain", None), (tmp_path / "staged", folder)):
        how = {"set": SHORT | {"output_px": 16}, "feed": "stream", "device": "cpu", "stage_dir": stage_dir}
        results = loffta.train(dense.paths.root, head=head, task=task, out=out, progress=False, **how)
        found.append(made_of(out))
    assert found[0] == found[1]
    assert results.staging.shards == len(shards(folder)) == n_shards


def test_images_without_a_cache_are_not_staged(folder):
    for call in (
        lambda: loffta.train(online="demo:digits", backbone="resnet10t", out="run", stage_dir=folder),
        lambda: loffta.evaluate("run", online="demo:digits", stage_dir=folder),
    ):
        with pytest.raises(UsageError, match="images that are not cached are read where they are"):
            call()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_cache_that_is_mounted_read_only(cache, folder, tmp_path, request):
    """Reading needs nothing of its folder: no lock, no temporary file, no time of access."""
    root = tmp_path / "mounted"
    root.mkdir()
    if subprocess.run(["mount", "--bind", cache.paths.root, root], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    request.addfinalizer(lambda: subprocess.run(["umount", root], check=True))
    subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
    how = {"device": "cpu", "progress": False, "stage_dir": folder}
    loffta.train(root, head="linear", out=tmp_path / "run", set=SHORT, **how)
    loffta.evaluate(tmp_path / "run", split="train", **how)
    assert loffta.scan(root, **how).staging["given_up"] is None
    assert bench(root, head="linear", seconds=0.02, device="cpu", stage_dir=str(folder))["staging"]["copy_gb_per_s"] > 0
    assert len(loffta.open_cache(root).features("net:a.1").numpy()) == 62

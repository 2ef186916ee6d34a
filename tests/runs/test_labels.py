"""A run keeps the labels that it was trained with: whatever is said later, it is the same run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import loffta
from loffta.config import TrainConfig
from loffta.errors import DamageFound, LofftaError, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.machine.process import StopFlag
from loffta.reporting.tables import read_good_runs, read_runs
from loffta.runs.run import RunPaths, load_head, read_predictions
from loffta.store.cache import Cache
from loffta.store.label_sets import write_set
from loffta.store.labels import SOURCE, Annotations
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table, separable

N = 48
SPLITS = ["train" if i % 4 else "test" for i in range(N)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.fixture
def cache(tmp_path):
    labels, grids = separable(N, signal=0.5)
    return make_cache(tmp_path / "cache", make_table(labels, SPLITS), [FakeStore("net", {"x": grids})])


def say(cache, name, *, seed=1, **changes):
    """A set with other labels, of which every fifth image has none."""
    labels = np.random.default_rng(seed).integers(0, 3, N).tolist()
    labels[::5] = [None] * len(labels[::5])
    write_set(cache, name, dataclasses.replace(Annotations.of(cache.table), labels=labels, **changes))
    return labels


def config_of(cache, **changes):
    recipe = {"epochs": 3, "batch_size": 16}
    return TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe=recipe, **changes)


def go(cache, out, **changes):
    return train(config_of(cache, **changes), out, StopFlag())


def head_of(root):
    return load_head(RunPaths(root).head(0))


def same_head(one, other):
    return all(torch.equal(head_of(one)[name], tensor) for name, tensor in head_of(other).items())


def targets_of(root, split="test"):
    found = read_predictions(RunPaths(root).predictions(split))
    column = next(name for name in found if name in ("target", "label"))
    return dict(zip(found["row"].tolist(), found[column].tolist(), strict=True))


def test_trained_as_on_a_cache_that_always_said_so(cache, tmp_path):
    """Bit for bit the head of another cache with the same features, whose image set has these labels."""
    labels = say(cache, "mine", splits=[None if i == 1 else split for i, split in enumerate(SPLITS)])
    results = go(cache, tmp_path / "run", labels="mine")
    table = make_table([-1 if label is None else label for label in labels], SPLITS, classes=cache.table.classes)
    table = dataclasses.replace(table, splits=["none" if i == 1 else split for i, split in enumerate(SPLITS)])
    other = make_cache(tmp_path / "other", table, [FakeStore("net", {"x": separable(N, signal=0.5)[1]})])
    expected = go(other, tmp_path / "expected")
    assert same_head(tmp_path / "run", tmp_path / "expected")
    assert (results["metrics"], results["labels"]) == (expected["metrics"], "mine")
    assert "labels" not in expected
    assert not same_head_as_source(cache, tmp_path)


def same_head_as_source(cache, tmp_path):
    go(cache, tmp_path / "plain")
    assert not RunPaths(tmp_path / "plain").labels.exists()
    return same_head(tmp_path / "run", tmp_path / "plain")


@pytest.mark.parametrize("how", ["name", "csv", "copy"])
def test_a_run_is_the_same_after_the_labels_changed_again(cache, tmp_path, how, capsys):
    labels = say(cache, "mine")
    given = "mine"
    if how != "name":
        given = str(tmp_path / ("mine.csv" if how == "csv" else "mine.parquet"))
        rows = [f"{key},{'' if n is None else f'class {n}'}" for key, n in zip(cache.table.keys, labels, strict=True)]
        (tmp_path / "mine.csv").write_text("image,label\n" + "\n".join(rows))
        shutil.copy(cache.paths.label_set("mine"), tmp_path / "mine.parquet")
    first = go(cache, tmp_path / "run", labels=given)
    paths, head, targets = RunPaths(tmp_path / "run"), head_of(tmp_path / "run"), targets_of(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    go(cache, tmp_path / "run", labels=given)
    assert "labels have changed" not in capsys.readouterr().err
    say(cache, "mine", seed=2)
    say(cache, SOURCE, seed=3)
    if how != "name":
        (tmp_path / "mine.csv").unlink()
        (tmp_path / "mine.parquet").unlink()
    assert go(cache, tmp_path / "run", labels=given)["metrics"] == first["metrics"]  # read back
    assert "the labels have changed since this run began: it keeps its own" in capsys.readouterr().err
    assert evaluate(tmp_path / "run", "test", device="cpu")["metrics"] == first["metrics"]
    assert targets_of(tmp_path / "run") == targets
    (run,) = read_runs([tmp_path / "run"])
    assert run.cache.table.labels.tolist() == [-1 if label is None else label for label in labels]
    assert loffta.load_run(tmp_path / "run", device="cpu").predict_cached("test").keys
    paths.head(0).unlink()  # trained again, from the run's own labels
    assert go(cache, tmp_path / "run", labels=given)["metrics"] == first["metrics"]
    assert all(torch.equal(head_of(tmp_path / "run")[name], tensor) for name, tensor in head.items())
    anew = go(cache, tmp_path / "anew", labels=str(tmp_path / "before" / "labels.parquet"))
    assert anew["metrics"] == first["metrics"]
    assert same_head(tmp_path / "anew", tmp_path / "before")
    if how == "name":
        assert go(cache, tmp_path / "new", labels="mine")["metrics"] != first["metrics"]


def test_a_run_on_what_the_set_said_is_the_same_after_it_says_otherwise(cache, tmp_path):
    first = go(cache, tmp_path / "run")
    head = head_of(tmp_path / "run")
    say(cache, SOURCE, seed=3)
    assert evaluate(tmp_path / "run", "test", device="cpu")["metrics"] == first["metrics"]
    RunPaths(tmp_path / "run").head(0).unlink()
    assert go(cache, tmp_path / "run")["metrics"] == first["metrics"]
    assert all(torch.equal(head_of(tmp_path / "run")[name], tensor) for name, tensor in head.items())
    (run,) = read_runs([tmp_path / "run"])
    assert run.cache.table.digest == cache.table.digest
    second = go(cache, tmp_path / "second")  # what it says now, and a copy of it
    assert second["metrics"] != first["metrics"]
    known = json.loads(RunPaths(tmp_path / "second").images.read_text())
    assert known["labels"] == "source"
    assert known["labels_digest"] == Annotations.read(RunPaths(tmp_path / "second").labels, remedy="").digest
    cache.paths.label_set(SOURCE).unlink()
    assert evaluate(tmp_path / "second", "test", device="cpu")["metrics"] == second["metrics"]


def test_measured_by_other_labels(cache, tmp_path):
    """The results of the run's own split stay; those by other labels have their own name."""
    go(cache, tmp_path / "run")
    own = RunPaths(tmp_path / "run").results("test").read_bytes()
    labels = say(cache, "mine")
    results = loffta.evaluate(tmp_path / "run", labels="mine", device="cpu")
    rows = [row for row in range(0, N, 4) if labels[row] is not None]
    assert (results.split, results.labels, results.n) == ("test@mine", "mine", len(rows))
    assert results.images.unlabelled == N // 4 - len(rows)
    assert targets_of(tmp_path / "run", "test@mine") == {row: labels[row] for row in rows}
    predicted = read_predictions(RunPaths(tmp_path / "run").predictions("test@mine"))["predicted"]
    right = np.mean([p == labels[row] for row, p in zip(rows, predicted, strict=True)])
    assert results.metrics["top1"].mean == pytest.approx(right)
    assert RunPaths(tmp_path / "run").results("test").read_bytes() == own
    assert "other_set" not in RunPaths(tmp_path / "run").results("test@mine").read_text()
    (run,), _ = read_good_runs([tmp_path / "run"], split="test@mine")
    assert (run.row.split, run.row.n_images) == ("test@mine", len(rows))
    for options in ({"online": "demo:digits"}, {"cache": cache.paths.root, "labels": "mien"}):
        with pytest.raises(UsageError, match=r"bring their own labels|unknown set of labels 'mien'"):
            loffta.evaluate(tmp_path / "run", **({"labels": "mine"} | options), device="cpu")


def test_a_run_whose_labels_were_touched_is_refused(cache, tmp_path):
    say(cache, "mine")
    go(cache, tmp_path / "run", labels="mine")
    say(cache, "mine", seed=9)
    shutil.copy(cache.paths.label_set("mine"), RunPaths(tmp_path / "run").labels)
    with pytest.raises(DamageFound, match="these labels are not those that the run was trained with"):
        evaluate(tmp_path / "run", "test", device="cpu")


def test_what_cannot_be_trained_on(cache, tmp_path):
    say(cache, "one")
    one = dataclasses.replace(Annotations.of(cache.table), labels=[1] * N)
    write_set(cache, "one", one)
    with pytest.raises(LofftaError, match=r"all 36 images of split 'train' are of one class, 'class 1'"):
        go(cache, tmp_path / "run", labels="one")
    write_set(cache, "none", dataclasses.replace(one, labels=[None] * N))
    with pytest.raises(LofftaError, match="has no label in split 'test'"):
        go(cache, tmp_path / "run", labels="none")
    with pytest.raises(UsageError, match="unknown set of labels 'onee'"):
        go(cache, tmp_path / "run", labels="onee")
    with pytest.raises(UsageError, match="bring their own labels"):
        loffta.train(online="demo:digits", backbone="x", labels="one", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    go(cache, tmp_path / "run")
    with pytest.raises(LofftaError, match=r"another configuration:\n    labels: None -> one"):
        go(cache, tmp_path / "run", labels="one")


def test_a_cache_that_grew_leaves_the_runs_labels(cache, tmp_path):
    """New images are unknown to the labels of a run, and to every set but `source`."""
    say(cache, "mine")
    first = go(cache, tmp_path / "run", labels="mine")
    shutil.rmtree(cache.paths.stores)
    shutil.rmtree(cache.paths.done)
    labels, grids = separable(N, signal=0.5)
    table = make_table([*labels, *range(3)], [*SPLITS, *["test"] * 3])
    grids = np.concatenate([grids, np.zeros((3, *grids.shape[1:]))])
    grown = make_cache(cache.paths.root, table, [FakeStore("net", {"x": grids})])
    assert grown.table.split_sizes()["test"] == N // 4 + 3
    seen = Cache.open(cache.paths.root).with_labels("mine").table
    assert seen.split_sizes()["test"] == N // 4
    assert not seen.is_labelled()[N:].any()
    again = evaluate(tmp_path / "run", "test", device="cpu")
    assert again["metrics"] == first["metrics"]
    assert again["images"]["now"] == N + 3

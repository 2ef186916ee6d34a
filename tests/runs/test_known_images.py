"""A run and its cache, when the cache grows, moves, or another is put in its place."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from loffta_cli.main import main

from loffta.config import TrainConfig
from loffta.errors import LofftaError, Stopped
from loffta.evaluation.evaluate import _known_to, evaluate
from loffta.feed.batches import Feed
from loffta.machine.process import StopFlag
from loffta.reporting.tables import read_runs
from loffta.runs.known_images import KnownImages, read_known
from loffta.runs.run import RunPaths, load_head, read_predictions
from loffta.store import growth
from loffta.store.cache import Cache
from loffta.store.paths import CachePaths
from loffta.store.table import ImageTable
from loffta.training import fit as loop
from loffta.training import train as trainer
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table, separable

N = 60


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


def table_of(n_images, *, n_classes=3):
    """No test split; behind the first N images come others, also a split `test` and perhaps a class."""
    labels = [i % 3 if i < N else i % n_classes for i in range(n_images)]
    splits = ["train" if i < N or i % 2 else "test" for i in range(n_images)]
    return make_table(labels, splits, classes=tuple(f"class {i}" for i in range(n_classes)))


def cache_of(root, n_images=N, **options):
    grids = separable(N + 40, signal=0.5)[1][:n_images]
    return make_cache(root, table_of(n_images, **options), [FakeStore("net", {"x": grids})])


def grow(cache, n_images=N + 40, **options):
    """As a second extraction does it: the table, then the arrays."""
    shutil.rmtree(cache.paths.stores)
    shutil.rmtree(cache.paths.done)
    return cache_of(cache.paths.root, n_images, **options)


def growth_of(known, cache):
    """How many images came later; None of another set."""
    return known.growth_in(cache).get("now", known.images) - known.images if known.begins(cache) else None


def config_of(cache, **changes):
    recipe = {"epochs": 3, "batch_size": 16}
    changes = {"holdout": 0.3, "seeds": 2} | changes
    return TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe=recipe, **changes)


def heads_of(root):
    return [load_head(RunPaths(root).head(seed)) for seed in (0, 1)]


def assert_same_heads(one, other):
    for ours, theirs in zip(heads_of(one), heads_of(other), strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.fixture
def cache(tmp_path):
    return cache_of(tmp_path / "cache")


@pytest.mark.parametrize("kind", ["single", "multi", "targets"])
def test_growth_is_known_as_growth(tmp_path, kind):
    """By the real growth of an image set; anything else of the old rows that differs makes it another set."""
    old, new = table_of(N), table_of(N + 40, n_classes=5)
    if kind == "multi":
        old, new = (
            dataclasses.replace(t, label_sets=[(int(i),) for i in t.labels], labels=t.labels * 0 - 1)
            for t in (old, new)
        )
    if kind == "targets":
        new = dataclasses.replace(new, targets={"mask": [None] * N + ["m.png"] * 40})
    grown = growth.grow(old, growth.match_images(old, new, where=tmp_path))
    assert (len(grown), len(grown.classes)) == (N + 40, 5)
    known = KnownImages(images=N, classes=list(old.classes), digest=old.digest)
    between = ("new", "class 0", "class 3", "class 1", "class 4", "class 2")  # numbers and the like have an order
    more = {"same": old, "grown": grown, "sorted": grown.numbered_by(between)}
    for name in ("keys", "splits"):
        more[name] = dataclasses.replace(grown, **{name: ["other", *getattr(grown, name)[1:]]})
    more["sizes"] = dataclasses.replace(grown, sizes=grown.sizes + (np.arange(N + 40) == 5))
    more["classes"] = dataclasses.replace(grown, classes=("another", *grown.classes[1:]))
    more["labels"] = dataclasses.replace(
        grown, labels=-1 - grown.labels * 0, label_sets=[(4,)] * 100 if kind == "multi" else None
    )
    more["fewer"] = old.first(N - 1, old.classes)
    found = {name: growth_of(known, Cache(CachePaths(tmp_path), 8, 8, table)) for name, table in more.items()}
    assert found == {"same": 0, "grown": 40, "sorted": 40} | dict.fromkeys(
        ("keys", "splits", "sizes", "classes", "labels", "fewer")
    )


def test_a_finished_run_is_read_back_and_says_that_there_is_more(cache, tmp_path, capsys):
    first = train(config_of(cache), tmp_path / "run", StopFlag())
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    grow(cache, n_classes=5)
    options = ["--head", "linear", "--holdout", "0.3", "--seeds", "2", "--device", "cpu", "--set", "epochs=3"]
    words = ["train", str(cache.paths.root), *options, "--set", "batch_size=16", "--out", str(tmp_path / "run")]
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    assert "the cache has 100 images now, 40 more than the 60 that this run knows\n" in out
    back = json.loads(out.splitlines()[-1])
    assert back["images"] == {**first["images"], "known": 60, "now": 100}
    assert back["metrics"] == json.loads(json.dumps(first["metrics"]))
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    report = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "run"), "--out", str(report)]) == 0
    said = "run: the cache has 100 images now, 40 more than the 60 that this run knows"
    assert said in capsys.readouterr().out
    assert said in report.read_text()


def test_a_training_that_was_cut_off_goes_on_with_the_images_that_it_knows(cache, tmp_path, monkeypatch, capsys):
    train(config_of(cache), tmp_path / "whole", StopFlag())
    step, stop, calls = loop._step, StopFlag(), []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 5:
            stop.signal = signal.SIGTERM
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(Stopped):
        train(config_of(cache), tmp_path / "run", stop)
    monkeypatch.setattr(loop, "_step", step)
    grow(cache)
    results = train(config_of(cache), tmp_path / "run", StopFlag())
    said = "40 more than the 60 that this run knows: the training goes on with those"
    assert said in capsys.readouterr().err
    assert said in RunPaths(tmp_path / "run").log.read_text()
    assert_same_heads(tmp_path / "run", tmp_path / "whole")
    whole = json.loads(RunPaths(tmp_path / "whole").results("holdout").read_text())
    assert (results["n"], results["metrics"]) == (whole["n"], whole["metrics"])


def test_no_image_goes_from_test_to_train(cache, tmp_path, monkeypatch):
    """What one run holds out, no later run of the same seed trains on; by the rows that the feeds get."""
    seen, make = [], Feed.__init__
    monkeypatch.setattr(Feed, "__init__", lambda self, f, rows, **k: seen.append(set(rows)) or make(self, f, rows, **k))
    train(config_of(cache), tmp_path / "run", StopFlag())
    grow(cache)
    train(config_of(cache, test_on="holdout"), tmp_path / "later", StopFlag())
    trained, held, trained_later, held_later = seen
    assert held <= held_later
    assert trained < trained_later
    assert not held & trained_later
    assert not trained & held_later
    recorded = json.loads(RunPaths(tmp_path / "run").holdout.read_text())["rows"]
    assert evaluate(tmp_path / "run", "holdout", device="cpu")["n"] == len(recorded) == len(held)


def test_an_evaluation_takes_what_is_there_now_and_says_so(cache, tmp_path, capsys):
    train(config_of(cache), tmp_path / "run", StopFlag())
    grown = grow(cache, n_classes=5)
    results = evaluate(tmp_path / "run", "test", device="cpu")
    rows = [row for row in range(N, N + 40) if row % 2 == 0 and row % 5 < 3]
    assert sorted(set(read_predictions(RunPaths(tmp_path / "run").predictions("test"))["row"].tolist())) == rows
    assert results["images"] == {"used": len(rows), "bad": 0, "known": 60, "now": 100}
    assert f"{20 - len(rows)} of the 20 images are of classes that the training did not know" in capsys.readouterr().err
    only_new = dataclasses.replace(grown.table, labels=np.full(100, 4))
    with pytest.raises(LofftaError, match="no image is of a class that the run knows"):
        _known_to(only_new.numbered_by(grown.table.classes[:3]), only_new, np.arange(5))


@pytest.mark.parametrize("finished", [True, False])
def test_a_cache_that_was_moved_goes_on(cache, tmp_path, monkeypatch, capsys, finished):
    train(config_of(cache), tmp_path / "run", StopFlag())
    expected = json.loads(RunPaths(tmp_path / "run").results("holdout").read_text())["metrics"]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    if not finished:
        for path in (RunPaths(tmp_path / "run").results("holdout"), RunPaths(tmp_path / "run").head(1)):
            path.unlink()
    moved = (tmp_path / "cache").rename(tmp_path / "elsewhere")
    with pytest.raises(LofftaError, match="there is no cache here") as caught:
        evaluate(tmp_path / "run", "holdout", device="cpu")
    assert caught.value.__notes__ == ["a cache that was moved is named with --cache DIR"]
    there = config_of(Cache.open(moved))
    assert train(there, tmp_path / "run", StopFlag())["metrics"] == expected
    assert_same_heads(tmp_path / "run", tmp_path / "copy")
    assert yaml.safe_load(RunPaths(tmp_path / "run").config.read_text())["cache"] == str(moved)
    assert evaluate(tmp_path / "run", "holdout", device="cpu")["metrics"] == expected  # it is remembered
    run, copy = read_runs([tmp_path / "run", tmp_path / "copy"])
    assert (run.cache.paths.root, copy.cache) == (moved, None)
    words = ["report", str(tmp_path / "copy"), "--cache", str(tmp_path), "--cache", str(moved)]
    assert main([*words, "--out", str(tmp_path / "r.html")]) == 0
    assert "no longer there" not in (tmp_path / "r.html").read_text()
    assert main(["evaluate", str(tmp_path / "copy"), "--cache", str(moved), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"] == json.loads(json.dumps(expected))


def test_what_moves_together_is_found_together(cache, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "cache").rename(tmp_path / "project" / "cache")
    config = config_of(Cache.open(tmp_path / "project" / "cache"))
    before = train(config, tmp_path / "project" / "runs" / "a", StopFlag())
    moved = (tmp_path / "project").rename(tmp_path / "archive") / "runs" / "a"
    assert evaluate(moved, "holdout", device="cpu")["metrics"] == before["metrics"]
    assert read_runs([moved])[0].cache.paths.root.resolve() == tmp_path / "archive" / "cache"


def test_another_image_set_at_the_same_path(cache, tmp_path):
    train(config_of(cache), tmp_path / "run", StopFlag())
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "cache").rename(tmp_path / "old")
    other = dataclasses.replace(table_of(N), keys=[f"other/{i}.png" for i in range(N)])
    make_cache(tmp_path / "cache", other, [FakeStore("net", {"x": separable(N)[1]})])
    with pytest.raises(LofftaError, match=r"another configuration:\n    images: 60, digest \w+ -> 60, digest \w+\n"):
        train(config_of(cache), tmp_path / "run", StopFlag())
    with pytest.raises(LofftaError, match=r"another image set is where the cache of this run was(.|\n)*--cache DIR"):
        evaluate(tmp_path / "run", "holdout", device="cpu")
    assert read_runs([tmp_path / "run"])[0].cache is None
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_measured_on_another_image_set_on_purpose(cache, tmp_path, capsys):
    train(config_of(cache), tmp_path / "run", StopFlag())
    table = dataclasses.replace(table_of(N), source="folder:others", splits=["test"] * N)
    make_cache(tmp_path / "other", table, [FakeStore("net", {"x": separable(N)[1]})])
    words = [
        "evaluate",
        str(tmp_path / "run"),
        "--split",
        "test",
        "--cache",
        str(tmp_path / "other"),
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    assert "measured on another image set than that of the training: folder:others\n" in capsys.readouterr().out
    images = json.loads(RunPaths(tmp_path / "run").results("test").read_text())["images"]
    assert images == {"used": N, "bad": 0, "other_set": "folder:others"}


def two_backbones(root, n):
    stores = [FakeStore(name, {"x": separable(N + 40, seed=i)[1][:n]}) for i, name in enumerate("ab")]
    return make_cache(root, table_of(n), stores)


def test_a_selection_is_trained_on_the_images_that_were_scored(tmp_path, monkeypatch):
    """The cache grows between the scoring run and the final one."""
    cache = two_backbones(tmp_path / "cache", N)
    recipe = {"grid": 2, "width": 8, "depth": 1, "epochs": 1, "batch_size": 16}
    config = config_of(cache, select=1, seeds=1).model_copy(update={"recipe": recipe, "head": "combo"})
    check = trainer._check_splits

    def scoring_alone(*arguments):
        assert "scoring" in str(arguments[-1].root), "the process was killed here"
        return check(*arguments)

    monkeypatch.setattr(trainer, "_check_splits", scoring_alone)
    with pytest.raises(AssertionError, match="was killed here"):
        train(config, tmp_path / "run", StopFlag())
    monkeypatch.setattr(trainer, "_check_splits", check)
    shutil.rmtree(cache.paths.stores)
    shutil.rmtree(cache.paths.done)
    two_backbones(tmp_path / "cache", N + 40)
    train(config, tmp_path / "run", StopFlag())
    assert json.loads(RunPaths(tmp_path / "run").images.read_text())["images"] == N


def test_runs_of_older_versions_open_for_ever(cache, tmp_path):
    """They keep no images.json and heads without a checksum: of them, the path alone is known."""
    from safetensors.torch import save_file

    first = train(config_of(cache), tmp_path / "run", StopFlag())
    paths = RunPaths(tmp_path / "run")
    paths.images.unlink()
    for seed in (0, 1):
        save_file(load_head(paths.head(seed)), paths.head(seed))
    assert read_known(paths) is None
    assert evaluate(tmp_path / "run", "holdout", device="cpu")["metrics"] == first["metrics"]
    assert train(config_of(cache), tmp_path / "run", StopFlag())["metrics"] == first["metrics"]
    moved = (tmp_path / "cache").rename(tmp_path / "elsewhere")
    with pytest.raises(LofftaError, match=r"another configuration:\n    cache: "):
        train(config_of(Cache.open(moved)), tmp_path / "run", StopFlag())
    assert evaluate(tmp_path / "run", "holdout", cache_root=moved, device="cpu")["metrics"] == first["metrics"]


def test_a_run_that_has_nothing_to_lose_begins_with_what_is_there(cache, tmp_path):
    with pytest.raises(LofftaError, match="not finite"):
        train(config_of(cache).model_copy(update={"recipe": {"epochs": 9, "lr": 1e38}}), tmp_path / "run", StopFlag())
    grow(cache)
    train(config_of(cache), tmp_path / "run", StopFlag())
    assert json.loads(RunPaths(tmp_path / "run").images.read_text())["images"] == 100


def test_the_view_is_the_table_that_was(tmp_path):
    old = table_of(N)
    new = table_of(N + 40, n_classes=5)
    again = growth.grow(old, growth.match_images(old, new, where=tmp_path)).first(N, old.classes)
    assert isinstance(again, ImageTable)
    for field in dataclasses.fields(ImageTable):
        assert np.array_equal(getattr(again, field.name), getattr(old, field.name))

"""The accuracy benchmark: its scores against plain arithmetic, its sets, and every table on toy caches."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from loffta.images.sources import open_source
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths, open_run, read_results
from tests.caches import FakeStore, make_cache, make_table, separable, toy_cache

BENCHMARKS = Path(__file__).parents[2] / "pipelines" / "benchmarks"


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    import accuracy

    yield accuracy
    for name in ("accuracy", "clock", "flat_probe", "scores", "small_sets"):
        sys.modules.pop(name, None)


def test_scores(accuracy):
    score = accuracy.Score(tuple("abcd"), np.array([[1, 1, 1, 0], [1, 0, 1, 0]], dtype=bool))
    assert score.top1 == 62.5
    assert score.text.startswith("62.5 ± 17.7 [")  # 75 and 50 %
    low, high = map(float, score.text.split("[")[1].rstrip("]").split(", "))
    rng = np.random.default_rng(1)
    plain = [np.mean(rng.choice([100.0, 50.0, 100.0, 0.0], 4)) for _ in range(4000)]
    assert np.abs(np.quantile(plain, [0.025, 0.975]) - [low, high]).max() <= 12.5  # one step of four images


def test_gains_are_paired(accuracy):
    """Both are right half of the time, but on the same images, or on others."""
    half = np.arange(400) % 2 == 0
    keys = tuple(map(str, range(400)))
    plus = half.copy()
    plus[1:20:2] = True
    base = accuracy.Score(keys, half[None])
    assert accuracy.gain(base, base) == "+0.0 [+0.0, +0.0] undecided"
    assert accuracy.gain(accuracy.Score(keys, plus[None]), base).endswith("better")
    assert accuracy.gain(base, accuracy.Score(keys, plus[None])).startswith("-2.5 [-4")
    assert accuracy.gain(accuracy.Score(keys, ~half[None]), base).endswith("undecided")


def test_a_score_is_that_of_the_results(accuracy, tmp_path, monkeypatch):
    cache = toy_cache(tmp_path / "work" / "toy" / "cache", n_train=12, n_test=30)
    assert cache.paths.root.exists()
    monkeypatch.setitem(accuracy.BACKBONES, "good", ("good", ""))
    bench = accuracy.Bench(tmp_path / "work", seeds=2, epochs=1, stop=StopFlag())
    run = bench.fit("toy", "linear", ["good"], "a.0")
    found = accuracy.score_of(run)
    results = read_results(RunPaths(run).results("test"))["metrics"]["top1"]
    assert found.right.mean(axis=1).tolist() == results["per_seed"]
    assert len(found.keys) == 30


def test_few_digits(accuracy, tmp_path):
    source = accuracy.small_sets.digits_few(tmp_path / "a", seed=0)
    found, whole = open_source(source), open_source("demo:digits")
    table = found.listing()
    train = table.rows_of("train")
    assert np.bincount(table.labels[train]).tolist() == [10] * 10
    assert len(table.rows_of("test")) == 797
    everything = whole.listing()
    bytes_of = {
        split: {whole.read(everything.keys[r]) for r in everything.rows_of(split)} for split in ("train", "test")
    }
    for split, known in bytes_of.items():
        assert {found.read(table.keys[row]) for row in table.rows_of(split)} <= known
    again = open_source(accuracy.small_sets.digits_few(tmp_path / "b", seed=0))
    other = open_source(accuracy.small_sets.digits_few(tmp_path / "c", seed=1))
    drawn = [[s.read(table.keys[row]) for row in train] for s in (found, again, other)]  # names are numbers, alike
    assert drawn[0] == drawn[1] != drawn[2]


def test_fashion(accuracy, tmp_path, monkeypatch):
    """From the package's layout: lists of 784 grey values, the last of them empty."""
    monkeypatch.setattr(accuracy.small_sets, "FASHION_TRAIN", 3)
    monkeypatch.setattr(accuracy.small_sets, "FASHION_TEST", 2)
    archive = tmp_path / "f.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for label in range(10):
            images = [[label, i, *[7] * 782] for i in range(8)] + [[]]
            data = json.dumps({"data": images}).encode()
            member = tarfile.TarInfo(f"package/src/clothes/{label}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = open_source(accuracy.small_sets.fashion(tmp_path / "set", archive, seed=0))
    table = found.listing()
    assert {split: len(table.rows_of(split)) for split in ("train", "test")} == {"train": 30, "test": 20}
    from PIL import Image

    pixels = [np.asarray(Image.open(io.BytesIO(found.read(key)))) for key in table.keys]
    assert {p.shape for p in pixels} == {(28, 28)}
    assert [p[0, 0] for p in pixels] == table.labels.tolist()
    assert len({(p[0, 0], p[0, 1]) for p in pixels}) == 50  # nothing drawn twice


def make_sets(accuracy, work, names):
    """Caches as if extracted: three backbones that tell the classes more or less, and one that does not."""
    for name in names:
        stores, splits = [], ["train"] * 24 + ["test"] * 30
        for i, (backbone, weights) in enumerate(accuracy.BACKBONES.values()):
            signal = 0.0 if weights.startswith("random") else 1.0 + i
            labels, fine = separable(54, shape=(4, 4), seed=i, signal=signal)
            _, coarse = separable(54, shape=(2, 2), dim=8, seed=10 + i, signal=signal)
            stores.append(FakeStore(backbone, {"stages.2": fine, "stages.4": coarse}, weights=weights))
        make_cache(work / name / "cache", make_table(labels, splits), stores)


def test_tables(accuracy, tmp_path, monkeypatch):
    """Every table of caches alone; a second call reads the runs back and prints the same."""
    make_sets(accuracy, tmp_path, ["digits"])
    monkeypatch.setattr(accuracy, "STEPS", 1)
    monkeypatch.setattr(accuracy, "GRID", 2)
    few = {"epochs": 1, "min_steps": 1}
    recipes = {
        "linear": few,
        "fusion": few,
        "combo": {"grid": 2, "width": 8, "depth": 1},
        "loff": {"width": 16, "depth": 1, "n_heads": 2},
    }
    monkeypatch.setattr(accuracy, "RECIPES", recipes)
    bench = accuracy.Bench(tmp_path, seeds=2, epochs=1, stop=StopFlag())
    rows = {"a": 8, "b": 13, "c": 5, "d": 1, "f": 1, "h": 1}
    assert set(accuracy.TABLES) == {*rows, "g"}
    for name in rows:
        make = accuracy.TABLES[name][1]
        text = make(bench, ["digits"])
        lines = text.splitlines()
        assert len(lines) == 2 + rows[name]
        assert {line.count("|") for line in lines} == {lines[0].count("|")}
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
        assert make(bench, ["digits"]) == text
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_flat_probe_is_a_linear_head_on_all_cells(accuracy, tmp_path):
    """Classes differ by opposite signs in two cells, which the mean over cells hides."""
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 2
    grids = rng.normal(scale=0.1, size=(160, 2, 2, 1)).astype(np.float32)
    sign = np.where(labels == 1, 1.0, -1.0)
    grids[:, 0, 0, 0] += sign
    grids[:, 1, 1, 0] -= sign
    make_cache(tmp_path / "cache", make_table(labels, ["train"] * 80 + ["test"] * 80), [FakeStore("b", {"s.0": grids})])
    path = tmp_path / "flat.npz"
    found = accuracy.flat_probe.score(tmp_path / "cache", "b:s.0", path, grid=2, seeds=2, stop=StopFlag())
    assert found.right.shape == (2, 80)
    assert found.top1 > 95
    torch.manual_seed(1)  # no global randomness has a part
    path.unlink()
    again = accuracy.flat_probe.score(tmp_path / "cache", "b:s.0", path, grid=2, seeds=2, stop=StopFlag())
    assert (again.right == found.right).all()


def test_quick_runs_from_pictures_to_a_table(accuracy, tmp_path, monkeypatch, capsys):
    """LOFF against LOFF-TA, the cache against images; that these differ is all that can be said of them here."""
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--quick", "--tables", "d,g", "--work", str(tmp_path)])
    monkeypatch.setattr("loffta.machine.process.StopFlag.listen", lambda self: self)
    assert accuracy.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 seeds, ComBo 1 epochs; a proof that it runs" in lines
    assert [line.count("|") for line in lines if line.startswith("| quick")] == [5, 8]
    runs = {path.name: path for path in (tmp_path / "quick" / "runs").iterdir()}
    online = {
        "online-lite0": (False, "crop-flip"),
        "online-lite0-unfrozen": (True, "crop-flip"),
        "online-lite0-unfrozen-plain": (True, "none"),
    }
    assert set(runs) == {
        "combo-lite0-all",
        "linear-lite0-last",
        "loff-lite0-stages.2",
        "loff-lite0-stages.2-ta",
        *online,
    }
    settings = {name: open_run(path)[1].augment for name, path in runs.items()}
    made = {name: open_run(runs[name])[1].online for name in online}
    assert {name: (way.unfrozen, way.augment) for name, way in made.items()} == online
    assert settings["loff-lite0-stages.2"] == "none"
    assert settings["loff-lite0-stages.2-ta"]["trivial"]
    assert all(read_results(RunPaths(path).results("test"))["n"] == 24 for path in runs.values())


def test_mistakes_in_options(accuracy, monkeypatch, capsys):
    for words in (["--tables", "a,x"], ["--sets", "cifar"]):
        monkeypatch.setattr(sys, "argv", ["accuracy.py", *words])
        with pytest.raises(SystemExit):
            accuracy.main()
        assert "there are" in capsys.readouterr().err

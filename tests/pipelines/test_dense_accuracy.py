"""What is true of dense heads: scores against plain arithmetic, every table, and a whole quick run."""

import sys
from pathlib import Path

import numpy as np
import pytest

from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths, open_run, read_results
from loffta.targets import IGNORE, NativeTarget
from loffta.tasks.paired import Scored

BENCHMARKS = Path(__file__).parents[2] / "pipelines" / "benchmarks"


@pytest.fixture
def bench_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    import dense_accuracy
    import dense_scores

    yield dense_accuracy, dense_scores
    for name in (
        "accuracy",
        "clock",
        "dense_accuracy",
        "dense_bench",
        "dense_scores",
        "flat_probe",
        "scores",
        "small_sets",
    ):
        sys.modules.pop(name, None)


def score(dense_scores, values, metric="miou", *, spread=0.0, n_images=6):
    """Of seeds with these values; resamples lie `spread` around them, the same for every score."""
    shift = spread * np.linspace(-1, 1, 1000)[:, None]
    scored = Scored(np.array(values), np.array(values) + shift, metric == "rmse_pooled")
    return dense_scores.Score(metric, tuple(map(str, range(n_images))), scored, 1234, 0.5)


def test_words_of_scores_and_gains(bench_modules):
    _, scores = bench_modules
    one, other = score(scores, [0.25, 0.25], spread=0.1), score(scores, [0.20, 0.20], spread=0.1)
    assert one.text == "25.0 ± 0.0 [15.5, 34.5]"  # 95 % of an even spread
    assert (one.brief, one.figure) == ("25.0 [15.5, 34.5]", "mIoU %")
    assert scores.gain(one, other) == "+5.0 [+5.0, +5.0] better"  # the same resamples for both
    assert scores.gain(other, one) == "-5.0 [-5.0, -5.0] worse"
    assert scores.gain(one, one) == "+0.0 [+0.0, +0.0] undecided"
    near, far = score(scores, [0.8, 0.8], "rmse_pooled"), score(scores, [1.1, 1.1], "rmse_pooled")
    assert scores.gain(near, far) == "-0.300 [-0.300, -0.300] better"  # less is better
    with pytest.raises(AssertionError, match="same images"):
        scores.gain(one, score(scores, [0.2], n_images=5))


def test_seeds_are_paired_where_the_heads_are_the_same(bench_modules):
    """Seeds that differ by ten points hide a gain of one, unless it is the gain of each of them."""
    _, scores = bench_modules
    old, new = score(scores, [0.2, 0.3, 0.4]), score(scores, [0.21, 0.31, 0.41])
    assert scores.gain(new, old).endswith("undecided")
    assert scores.gain(new, old, same_heads=True) == "+1.0 [+1.0, +1.0] better"


def test_pixels_of_one_size(bench_modules):
    """Of a scene of 16 px: objects of 2, 4 and 7 pixels, and the ground, pixel by pixel."""
    _, scores = bench_modules
    instances = np.zeros((16, 16), np.uint16)
    instances[0:2, 0:2], instances[4:8, 1:3], instances[5:12, 8:15] = 1, 2, 3
    sizes = {1: "small", 2: "medium", 3: "large", 0: "ground"}  # up to an eighth, a quarter, all of the side
    mask = NativeTarget("mask", 16, 16, map=(instances * 3).astype(np.uint8))
    metres = NativeTarget("depth", 16, 16, map=np.arange(1, 257, dtype=np.float32).reshape(16, 16))
    for size in sizes.values():
        of_mask, of_depth = (scores.keep_size(target, instances, size).map for target in (mask, metres))
        for y, x in np.ndindex(16, 16):
            kept = sizes[int(instances[y, x])] == size
            assert of_mask[y, x] == (mask.map[y, x] if kept else IGNORE)
            assert of_depth[y, x] == (metres.map[y, x] if kept else 0)
        assert (of_mask.dtype, of_depth.dtype) == (np.uint8, np.float32)


def test_tables(bench_modules, monkeypatch):
    """With scores that say which run they are of; nothing is trained."""
    accuracy, scores = bench_modules
    asked = []

    def pretend(self, task, head, backbones=accuracy.ALL[:1], taps=accuracy.MIDDLE, **more):
        asked.append((task, head, tuple(backbones), taps, more))
        metric = {"segmentation": "miou", "depth": "rmse_pooled", "boundaries": "boundary_iou"}[task]
        deep = taps == accuracy.LAST
        return score(scores, [(0.4 if deep else 0.3) + 0.01 * len(backbones)] * 3, metric)

    monkeypatch.setattr(accuracy.Bench, "score", pretend)
    monkeypatch.setattr(accuracy.Bench, "rate", lambda *_: 0.01)
    bench = accuracy.Bench(Path("none"), accuracy.TASKS, 3, 1, StopFlag())
    rows = {"a": 30, "b": 12, "c": 15, "d": 21, "e": 4 + 5 + 1, "f": 15, "g": 6, "h": 6, "i": 12, "j": 6}
    assert set(accuracy.TABLES) == set(rows)
    for name, n_rows in rows.items():
        lines = accuracy.TABLES[name][1](bench).splitlines()
        assert len(lines) == 2 + n_rows, name
        assert {line.count("|") for line in lines} == {lines[0].count("|")}, name
        assert lines[-1].rstrip(" |").endswith(("better", "worse", "undecided")), name
    budgets = {more["settings"]["budget"] for *_, more in asked if "budget" in more.get("settings", {})}
    assert budgets == {1234}  # DeAP's count
    assert {more["size"] for *_, more in asked if more.get("size")} == {"small", "medium", "large", "ground"}


def test_quick_runs_from_scenes_to_tables(bench_modules, tmp_path, monkeypatch, capsys):
    """Search, budgets, int8 and outputs of another size: of deconv, whose layers depend on the size of the training."""
    accuracy, _ = bench_modules
    monkeypatch.setattr(accuracy, "RIVALS", ("deconv",))
    monkeypatch.setattr("dense_bench.ALL", accuracy.ALL[:1])  # the other networks take seconds to make
    words = ["x", "--quick", "--tables", "f", "--tasks", "segmentation", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr("loffta.machine.process.StopFlag.listen", lambda self: self)
    assert accuracy.main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2
    bench = accuracy.Bench(tmp_path, ("segmentation",), 2, 1, StopFlag(), quick=True)
    rounded = bench.fit("segmentation", "deap", variant="int8", dtype="int8")
    runs = {path.name: path for path in (tmp_path / "runs" / "segmentation").iterdir()}
    deap, deconv = "deap-lite0-2,3,4", "deconv-lite0-2,3,4"
    assert set(runs) == {deap, deconv, rounded.name}
    assert {name for name, path in runs.items() if RunPaths(path).search.exists()} == {deap, deconv}
    config = open_run(rounded)[1]
    assert config.cache.name == "int8"
    assert config.recipe["lr"] == bench.rate("segmentation", "deap")
    results = {name: read_results(RunPaths(path).results("test")) for name, path in runs.items()}
    counts = {name: found["dense"]["adapter_parameters"] for name, found in results.items()}
    assert 0.9 * counts[deap] < counts[deconv] <= counts[deap]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    score = bench.score("segmentation", "deap")
    assert score.scored.values.tolist() == results[deap]["metrics"]["miou"]["per_seed"]
    assert len(score.keys) == results[deap]["n"]
    assert score.brief in lines[2]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_mistakes_in_options(bench_modules, monkeypatch, capsys):
    for words in (["--tables", "a,x"], ["--tasks", "sleep"]):
        monkeypatch.setattr(sys, "argv", ["dense_accuracy.py", *words])
        with pytest.raises(SystemExit):
            bench_modules[0].main()
        assert "there are" in capsys.readouterr().err

"""Averages of a pipeline's runs, compared with numbers that were worked out by hand."""

import json
import statistics
from pathlib import Path

import pytest

from loffta.pipeline.file import TaskConfig
from loffta.pipeline.plan import PlannedRun
from loffta.pipeline.summary import format_summary, summarise
from loffta.reporting.text import NONE
from loffta.runs.run import write_results
from tests.written import whole_results


def planned(tmp_path: Path, values, *, metric="top1", groups=None):
    """Runs with results on disk; `values` is {(task, run, backbone): a value, one per seed, or None for no results}."""
    runs = []
    for (task, run, backbone), value in values.items():
        path = tmp_path / task / f"{run}-{backbone}"
        if value is not None:
            path.mkdir(parents=True)
            per_seed = value if isinstance(value, list) else [value]
            write_results(path / "results.json", whole_results({"top1": per_seed, metric: per_seed}))
        config = TaskConfig(name=task, source="x", metric=metric, group=(groups or {}).get(task))
        runs.append(PlannedRun(config, run, backbone, path))
    return runs


GROUPS = {"a": "natural", "b": "natural", "c": "structured"}


def test_both_averages(tmp_path):
    values = {("a", "r", None): 0.8, ("b", "r", None): 0.6, ("c", "r", None): 0.1}
    summary = summarise(planned(tmp_path, values, groups=GROUPS))
    averages = summary["averages"]["r"]
    assert averages["mean_of_tasks"] == {"mean": pytest.approx(0.5), "std": None}
    assert {group: a["mean"] for group, a in averages["groups"].items()} == pytest.approx(
        {"natural": 0.7, "structured": 0.1}
    )
    assert averages["mean_of_groups"] == {"mean": pytest.approx(0.4), "std": None}
    assert json.loads(json.dumps(summary)) == summary
    lines = format_summary(summary).splitlines()
    assert [line.split() for line in lines] == [
        ["task", "metric", "r"],
        ["a", "top1", "80.0"],
        ["b", "top1", "60.0"],
        ["c", "top1", "10.0"],
        ["mean", "of", "3", "tasks", "50.0"],
        ["mean", "of", "2", "groups", "40.0"],
        ["natural", "70.0"],
        ["structured", "10.0"],
    ]


def test_averages_of_the_paper(tmp_path):
    """ComBo's group means give 74.6 overall; over 19 tasks the same numbers would give 72.2."""
    sizes = {"natural": (7, 0.797), "specialised": (4, 0.845), "structured": (8, 0.595)}
    groups = {f"{group}{i}": group for group, (n, _) in sizes.items() for i in range(n)}
    values = {(task, "combo", None): sizes[group][1] for task, group in groups.items()}
    averages = summarise(planned(tmp_path, values, groups=groups))["averages"]["combo"]
    assert round(averages["mean_of_groups"]["mean"], 3) == 0.746
    assert round(averages["mean_of_tasks"]["mean"], 3) == 0.722


def test_spread_is_that_of_the_average_over_seeds(tmp_path):
    """Not the mean of the tasks' own: what one task wins with a seed, another may lose with it."""
    seeds = {"a": [0.5, 0.6, 0.7], "b": [0.7, 0.6, 0.5], "c": [0.1, 0.2, 0.6]}
    summary = summarise(planned(tmp_path, {(t, "r", None): found for t, found in seeds.items()}, groups=GROUPS))
    averages = summary["averages"]["r"]
    over_tasks = [sum(found[i] for found in seeds.values()) / 3 for i in range(3)]
    over_groups = [((seeds["a"][i] + seeds["b"][i]) / 2 + seeds["c"][i]) / 2 for i in range(3)]
    for key, found in (("mean_of_tasks", over_tasks), ("mean_of_groups", over_groups)):
        assert averages[key] == pytest.approx({"mean": statistics.mean(found), "std": statistics.stdev(found)})
    assert averages["groups"]["natural"] == pytest.approx({"mean": 0.6, "std": 0.0})
    assert "60.0 ± 10.0" in format_summary(summary).splitlines()[1]


def test_tasks_with_different_numbers_of_seeds_have_no_common_spread(tmp_path):
    values = {("a", "r", None): [0.5, 0.7], ("b", "r", None): [0.2]}
    assert summarise(planned(tmp_path, values))["averages"]["r"]["mean_of_tasks"] == {
        "mean": pytest.approx(0.4),
        "std": None,
    }


def test_a_run_that_is_measured_on_another_split(tmp_path):
    (run,) = planned(tmp_path, {("a", "r", None): 0.8})
    (run.path / "results.json").rename(run.path / "results-holdout.json")
    assert summarise([run])["missing"] == [str(run.path)]
    moved = PlannedRun(run.task, run.name, None, run.path, "holdout")
    assert summarise([moved])["tasks"]["a"]["runs"]["r"][""] == [0.8]


def test_a_gap_is_named_and_no_average_hides_it(tmp_path):
    values = {("a", "r", None): 0.8, ("b", "r", None): None, ("a", "s", None): 0.5, ("b", "s", None): 0.7}
    runs = planned(tmp_path, values, groups=GROUPS)
    summary = summarise(runs)
    assert summary["missing"] == [str(runs[1].path)]
    assert summary["averages"]["r"]["groups"] == {"natural": None}
    assert summary["averages"]["r"]["mean_of_tasks"] is None
    assert summary["averages"]["s"]["mean_of_tasks"]["mean"] == pytest.approx(0.6)
    assert summary["gains"]["s"] is None
    text = format_summary(summary)
    assert "no results yet of 1 run:" in text
    assert str(runs[1].path) in text
    assert [line.split()[2:] for line in text.splitlines()[1:3]] == [["80.0", "50.0"], [NONE, "70.0"]]


def test_a_metric_that_results_lack_is_a_gap(tmp_path):
    runs = planned(tmp_path, {("a", "r", None): 0.8}, metric="kappa")
    write_results(runs[0].path / "results.json", whole_results({"top1": [0.5]}))
    assert summarise(runs)["missing"] == [str(runs[0].path)]


def test_gains_are_paired_by_backbone(tmp_path):
    values = {
        ("a", "base", "x"): 0.5,
        ("a", "base", "y"): 0.7,
        ("b", "base", "x"): 0.2,
        ("b", "base", "y"): 0.4,
        ("a", "new", "x"): 0.6,
        ("a", "new", "y"): 0.7,
        ("b", "new", "x"): 0.4,
        ("b", "new", "y"): 0.5,
    }
    summary = summarise(planned(tmp_path, values))
    # x gains .1 and .2, y 0 and .1: means of .15 and .05
    assert summary["gains"]["new"] == pytest.approx({"mean": 0.1, "std": 0.1 / 2**0.5, "backbones": 2})
    assert summary["averages"]["base"]["mean_of_tasks"]["mean"] == pytest.approx(0.45)
    assert "new  +10.0 ± 7.1  2 backbones" in format_summary(summary)


def test_places_and_mean_ranks_over_tasks(tmp_path):
    """Of 8 tasks `up` is ahead of `r` by far on all, `even` now ahead and now behind; `gap` lacks one."""
    noise = [0.001, -0.002, 0.003, -0.001, 0.002, -0.003, 0.001, -0.001]
    values = {}
    for i, wobble in enumerate(noise):
        base = 0.4 + 0.05 * i
        values |= {
            (f"t{i}", "r", None): base,
            (f"t{i}", "up", None): base + 0.1 + wobble,
            (f"t{i}", "even", None): base + (0.02 if i % 2 else -0.02) + wobble,
            (f"t{i}", "gap", None): None if i == 3 else base,
        }
    summary = summarise(planned(tmp_path, values))
    ranks = summary["ranks"]
    assert {name: found["place"] for name, found in ranks.items()} == {"r": [2, 3], "up": [1, 1], "even": [2, 3]}
    assert [name for name, found in ranks.items() if found["tied_with_best"]] == ["up"]
    of_r = [3 if i % 2 else 2 for i in range(8)]  # `even` is ahead of it on every second task
    half = 2.365 * statistics.stdev(of_r) / 8**0.5  # Student's t of 7 degrees of freedom
    assert ranks["r"]["mean_rank"] == pytest.approx(2.5)
    assert ranks["r"]["mean_rank_ci95"] == pytest.approx([2.5 - half, 2.5 + half], abs=1e-3)
    assert ranks["up"]["mean_rank_ci95"] == [1, 1]
    text = format_summary(summary).splitlines()
    (place,) = (line.split() for line in text if line.startswith("place "))
    (mean,) = (line.split() for line in text if line.startswith("mean rank"))
    assert place == ["place", "2-3", "1*", "2-3", NONE]
    assert mean[:3] == ["mean", "rank", "2.5"]
    assert "* tied with the best" in "".join(text)
    assert json.loads(json.dumps(summary)) == summary


def test_less_of_an_error_is_the_better_place(tmp_path):
    values = {
        (f"t{i}", run, None): 2.0 + 0.01 * i * i + more
        for i in range(5)
        for run, more in (("r", 1.0 + i / 9), ("less", 0.0))
    }
    ranks = summarise(planned(tmp_path, values, metric="log_loss"))["ranks"]
    assert (ranks["less"]["mean_rank"], ranks["r"]["mean_rank"]) == (1, 2)


def test_few_tasks_rank_nobody(tmp_path):
    values = {(f"t{i}", run, None): 0.5 for i in range(4) for run in ("r", "other")}
    summary = summarise(planned(tmp_path, values))
    assert summary["ranks"] == {}
    assert "place" not in format_summary(summary)

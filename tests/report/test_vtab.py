"""Both averages against the arithmetic of published tables."""

import statistics

import pytest

from loffta.errors import LofftaError, UsageError
from loffta.report.vtab import GROUPS, VTAB_TASKS, format_vtab, read_vtab, summarise_vtab

COMBO = {"natural": 0.797, "specialised": 0.845, "structured": 0.595}  # the paper's group means


def results(per_seed, ci95=(0.1, 0.9)):
    return {"metrics": {"top1": {"mean": sum(per_seed) / len(per_seed), "per_seed": per_seed, "ci95": list(ci95)}}}


def published():
    return {task: results([COMBO[group]]) for group, tasks in GROUPS.items() for task in tasks}


def test_the_tasks():
    assert [len(tasks) for tasks in GROUPS.values()] == [7, 4, 8]
    assert len(set(VTAB_TASKS)) == 19


def test_both_averages_of_published_group_means():
    """(79.7 + 84.5 + 59.5) / 3 = 74.6, where the mean of the 19 tasks would be 72.2."""
    found = summarise_vtab(published())
    assert {group: average.mean for group, average in found.groups.items()} == pytest.approx(COMBO)
    assert round(100 * found.mean_of_groups.mean, 1) == 74.6
    assert round(100 * found.mean_of_tasks.mean, 1) == 72.2
    assert (found.mean_of_groups.std, found.missing) == (None, ())


def test_deviation_is_that_of_the_average_over_seeds():
    given = published() | {"kitti": results([0.5, 0.6]), "svhn": results([0.75, 0.85])}
    found = summarise_vtab(given)
    assert (found.tasks["kitti"].mean, found.tasks["kitti"].std) == pytest.approx((0.55, 0.1 / 2**0.5))
    assert found.mean_of_tasks.std is None, "the others have one seed"
    given = {task: results([0.5 + i / 100, 0.5 - i / 100, 0.7]) for i, task in enumerate(VTAB_TASKS)}
    found = summarise_vtab(given)
    average = found.mean_of_tasks
    assert (average.mean, average.std) == pytest.approx((1.7 / 3, statistics.stdev([0.59, 0.41, 0.7])))
    assert found.groups["specialised"].mean == pytest.approx(1.7 / 3)


def test_what_is_missing_has_no_average():
    given = published()
    del given["dtd"], given["sun397"]
    found = summarise_vtab(given)
    assert found.missing == ("dtd", "sun397")
    assert (found.groups["natural"], found.mean_of_tasks, found.mean_of_groups) == (None, None, None)
    assert found.groups["structured"].mean == pytest.approx(0.595)
    assert len(found.tasks) == 17


def test_names_and_results_that_cannot_be_used():
    with pytest.raises(UsageError, match=r"unknown VTAB task 'cifar100'(.|\n)*did you mean cifar"):
        summarise_vtab(published() | {"cifar100": results([0.5])})
    with pytest.raises(LofftaError, match=r"results of dtd have no top-1(.|\n)*train on it as classification"):
        summarise_vtab({"dtd": {"metrics": {"map": {}}}})


def test_text():
    given = published() | {"kitti": results([0.5, 0.6], (0.41, 0.63))}
    lines = format_vtab(summarise_vtab(given)).splitlines()
    assert "kitti                       55.0 ± 7.1  41.0\u201363.0" in lines
    assert "specialised, mean of 4            84.5" in lines
    assert lines[-1] == "mean of group means               74.4"
    del given["eurosat"]
    lines = format_vtab(summarise_vtab(given)).splitlines()
    assert "eurosat                              \u2013" in lines
    assert lines[-1] == "missing: eurosat"
    assert len({line.index("\u2013") for line in lines if line.endswith("\u2013")}) == 1


def test_finished_runs(make_run):
    roots = {"dtd": make_run("dtd", [0.5, 0.7], {"net": ["stages.0"]}), "svhn": make_run("svhn", [0.5], {"net": []})}
    (roots["svhn"] / "results.json").unlink()
    found = read_vtab(roots)
    assert list(found.tasks) == ["dtd"]
    assert (found.tasks["dtd"].mean, found.tasks["dtd"].std) == pytest.approx((0.6, 0.02**0.5))
    assert found.intervals == {"dtd": (0.5, 0.9)}
    assert len(found.missing) == 18

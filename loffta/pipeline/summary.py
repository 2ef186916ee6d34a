"""The runs of a pipeline over many tasks as one table, and its averages both ways.

In: the runs that a pipeline plans.   Out: a mapping for summary.json, and the same as text. Called by `results`.
A run that has no results yet is a gap that is listed, never a zero; an average names how many tasks it is over. VTAB's
own score is the mean of all tasks; most papers on small heads print the mean of the group means, which weighs a task of
the smallest group twice as much as one of the largest. The two differ by 2 points and more, so both are given.
Of five tasks and more every run has the places that it may have by its mean, and its mean rank, for tasks like these.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from loffta.pipeline.plan import PlannedRun
from loffta.reporting.text import NONE, count
from loffta.runs.run import read_results
from loffta.tasks.figures import points, show, show_difference, show_spread, smaller_is_better
from loffta.tasks.ranks import FEWEST_TASKS, mean_ranks, rank_over_tasks

_HOW_RANKED = (
    "place: by the mean of all tasks, for tasks like these; the intervals of all runs hold together in 95 of 100 such\n"
    "tables; * tied with the best. mean rank: of the ranks on the tasks, with its 95 % interval"
)

Summary = dict[str, Any]
Average = dict[str, float | None]  # mean, and std over seeds: None for one seed, or where tasks differ in their number


def summarise(runs: Sequence[PlannedRun]) -> Summary:
    """Values (fractions, one per seed) by task, run and backbone; averages by run.

    A run that is made for each backbone counts with its mean over them; its gains are over the first run, backbone by
    backbone. `mean_of_tasks` is VTAB's own average, `mean_of_groups` (the mean of the groups' means) that of most
    papers.
    """
    found: Summary = {"tasks": {}, "missing": []}
    for run in runs:
        assert run.task is not None, "a summary is over tasks"
        task = found["tasks"].setdefault(
            run.task.name, {"group": run.task.group, "metric": run.task.metric, "runs": {}}
        )
        values = _per_seed(run)
        if values is None:
            found["missing"].append(str(run.path))
        task["runs"].setdefault(run.name, {})[run.backbone or ""] = values
    names = list(dict.fromkeys(run.name for run in runs))
    found["averages"] = {name: _averages(found, name) for name in names}
    found["ranks"] = _ranks(found, names)
    found["gains"] = {name: _gains(found, names[0], name) for name in names[1:]}
    return found


def format_summary(summary: Summary) -> str:
    """Tasks as lines, runs as columns, percent; mean ± standard deviation over seeds."""
    names = list(summary["averages"])
    lines = [["task", "metric", *names]]
    for task, entry in summary["tasks"].items():
        found = [_over_backbones(entry, name) for name in names]
        cells = [_shown(_average(values) if values else None, entry["metric"]) for values in found]
        lines.append([task, entry["metric"], *cells])
    metrics = {entry["metric"] for entry in summary["tasks"].values()}
    shared = metrics.pop() if len(metrics) == 1 else "top1"
    n_tasks = len(summary["tasks"])
    groups = list(dict.fromkeys(entry["group"] for entry in summary["tasks"].values() if entry["group"]))
    both = {"mean_of_tasks": count(n_tasks, "task"), "mean_of_groups": count(len(groups), "group")}
    for key, of_what in both.items():
        averages = [summary["averages"][name][key] for name in names]
        if any(average is not None for average in averages):
            lines.append([f"mean of {of_what}", "", *(_shown(average, shared) for average in averages)])
    for group in groups:
        of_group = [summary["averages"][name]["groups"][group] for name in names]
        lines.append([f"  {group}", "", *(_shown(average, shared) for average in of_group)])
    lines += _rank_lines(summary["ranks"], names)
    text = _columns(lines)
    if summary["ranks"]:
        text += f"\n\n{_HOW_RANKED}"
    gains = {name: gain for name, gain in summary["gains"].items() if gain and gain["backbones"] > 1}
    if gains:
        counted = " in points" if points(shared) else ""
        head = f"\n\ngain over {names[0]}{counted}, mean of the tasks, mean ± standard deviation over the backbones\n"
        text += head + _columns(
            [
                [
                    name,
                    f"{show_difference(shared, g['mean'])} ± {show(shared, g['std'])}",
                    f"{g['backbones']} backbones",
                ]
                for name, g in gains.items()
            ]
        )
    if summary["missing"]:
        missing = summary["missing"]
        text += f"\n\nno results yet of {count(len(missing), 'run')}: averages leave out every task that lacks one\n  "
        text += "\n  ".join(missing)
    return text


def _per_seed(run: PlannedRun) -> list[float] | None:
    assert run.task is not None
    if not run.results.exists():
        return None
    metric = read_results(run.results)["metrics"].get(run.task.metric)
    return None if metric is None else [float(value) for value in metric["per_seed"]]


def _over_backbones(entry: dict[str, Any], name: str) -> list[float] | None:
    """One run on one task, per seed."""
    return _mean(list(entry["runs"].get(name, {}).values()))


def _mean(values: Sequence[list[float] | None]) -> list[float] | None:
    """Seed by seed; where the numbers of seeds differ, one mean; None where one is missing: the rest would flatter."""
    there = [per_seed for per_seed in values if per_seed is not None]
    if len(there) < len(values) or not there:
        return None
    if len({len(per_seed) for per_seed in there}) > 1:
        return [fmean(fmean(per_seed) for per_seed in there)]
    return [fmean(found) for found in zip(*there, strict=True)]


def _average(per_seed: Sequence[float]) -> Average:
    return {"mean": fmean(per_seed), "std": stdev(per_seed) if len(per_seed) > 1 else None}


def _averages(summary: Summary, name: str) -> dict[str, Any]:
    """Averages of one run; each is None where a task of it has no results."""
    by_group: dict[str, list[list[float] | None]] = {}
    values = []
    for entry in summary["tasks"].values():
        values.append(_over_backbones(entry, name))
        if entry["group"]:
            by_group.setdefault(entry["group"], []).append(values[-1])
    groups = {group: _mean(found) for group, found in by_group.items()}
    tasks, whole = _mean(values), _mean(list(groups.values()))
    return {
        "n_tasks": sum(found is not None for found in values),
        "mean_of_tasks": tasks and _average(tasks),
        "mean_of_groups": whole and _average(whole),
        "groups": {group: found and _average(found) for group, found in groups.items()},
    }


def _ranks(summary: Summary, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Places and mean ranks of the runs that have results on all tasks; empty of few tasks, or of one such run."""
    scores: dict[str, list[float]] = {}
    for name in names:
        found = [(entry["metric"], _over_backbones(entry, name)) for entry in summary["tasks"].values()]
        if all(values is not None for _, values in found):
            scores[name] = [(-1 if smaller_is_better(metric) else 1) * fmean(values or ()) for metric, values in found]
    if len(scores) < 2 or len(summary["tasks"]) < FEWEST_TASKS:
        return {}
    table = np.array(list(scores.values()))
    places = rank_over_tasks(table)
    return {
        name: {
            "place": [int(low), int(high)],
            "tied_with_best": bool(tied),
            "mean_rank": float(mean),
            "mean_rank_ci95": [float(bound) for bound in bounds],
        }
        for name, low, high, tied, (mean, *bounds) in zip(
            scores, places.low, places.high, places.tied_with_best, mean_ranks(table), strict=True
        )
    }


def _rank_lines(ranks: dict[str, dict[str, Any]], names: Sequence[str]) -> list[list[str]]:
    if not ranks:
        return []
    places, means = ["place", ""], ["mean rank", ""]
    for name in names:
        found = ranks.get(name)
        if found is None:
            places.append(NONE)
            means.append(NONE)
            continue
        low, high = found["place"]
        places.append(f"{low if low == high else f'{low}-{high}'}{'*' * found['tied_with_best']}")
        means.append(f"{found['mean_rank']:.1f} ({'-'.join(f'{bound:.1f}' for bound in found['mean_rank_ci95'])})")
    return [places, means]


def _gains(summary: Summary, first: str, name: str) -> dict[str, float] | None:
    """Mean over the tasks for each backbone, then mean and spread over the backbones; None with a gap."""
    by_backbone: dict[str, list[float]] = {}
    for entry in summary["tasks"].values():
        base, values = entry["runs"].get(first, {}), entry["runs"].get(name, {})
        if set(base) != set(values) or None in (*base.values(), *values.values()):
            return None
        for backbone, per_seed in values.items():
            by_backbone.setdefault(backbone, []).append(fmean(per_seed) - fmean(base[backbone]))
    means = [fmean(found) for found in by_backbone.values()]
    spread = stdev(means) if len(means) > 1 else 0.0
    return {"mean": fmean(means), "std": spread, "backbones": len(means)}


def _shown(average: Average | None, metric: str = "top1") -> str:
    """As everywhere; the mean of several metrics like a share, in percent."""
    if average is None or average["mean"] is None:
        return NONE
    return show_spread(metric, average["mean"], average["std"])


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )

"""The runs of a pipeline over many tasks as one table, and its averages both ways.

In: the runs that a pipeline plans.   Out: a mapping for summary.json, and the same as text. Called by `run.py`.
A run that has no results yet is a gap that is listed, never a zero; an average names how many tasks it is over.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from loffta.pipeline import PlannedRun
from loffta.runs import RunPaths, read_results

Summary = dict[str, Any]


def summarise(runs: Sequence[PlannedRun]) -> Summary:
    """Values (fractions, mean over seeds) by task, run and backbone; averages by run.

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
        value = _value(run)
        if value is None:
            found["missing"].append(str(run.path))
        task["runs"].setdefault(run.name, {})[run.backbone or ""] = value
    names = list(dict.fromkeys(run.name for run in runs))
    found["averages"] = {name: _averages(found, name) for name in names}
    found["gains"] = {name: _gains(found, names[0], name) for name in names[1:]}
    return found


def format_summary(summary: Summary) -> str:
    """Tasks as lines, runs as columns, percent."""
    names = list(summary["averages"])
    lines = [["task", "metric", *names]]
    for task, entry in summary["tasks"].items():
        lines.append([task, entry["metric"], *(_percent(_mean_over_backbones(entry, name)) for name in names)])
    n_tasks = len(summary["tasks"])
    groups = list(dict.fromkeys(entry["group"] for entry in summary["tasks"].values() if entry["group"]))
    both = (("mean_of_tasks", f"mean of {n_tasks} tasks"), ("mean_of_groups", f"mean of {len(groups)} groups"))
    for key, label in both:
        values = [summary["averages"][name][key] for name in names]
        if any(value is not None for value in values):
            lines.append([label, "", *(_percent(value) for value in values)])
    for group in groups:
        values = [summary["averages"][name]["groups"].get(group) for name in names]
        lines.append([f"  {group}", "", *(_percent(value) for value in values)])
    text = _columns(lines)
    gains = {name: gain for name, gain in summary["gains"].items() if gain and gain["backbones"] > 1}
    if gains:
        head = f"\n\ngain over {names[0]} in points, mean of the tasks, mean ± standard deviation over the backbones\n"
        text += head + _columns(
            [
                [name, f"{100 * g['mean']:+.2f} ± {100 * g['std']:.2f}", f"{g['backbones']} backbones"]
                for name, g in gains.items()
            ]
        )
    if summary["missing"]:
        text += (
            f"\n\nno results yet of {len(summary['missing'])} runs: averages leave out every task that lacks one\n  "
        )
        text += "\n  ".join(summary["missing"])
    return text


def _value(run: PlannedRun) -> float | None:
    assert run.task is not None
    path = RunPaths(run.path).results("test")
    if not path.exists():
        return None
    metric = read_results(path)["metrics"].get(run.task.metric)
    return None if metric is None else float(metric["mean"])


def _mean_over_backbones(entry: dict[str, Any], name: str) -> float | None:
    values = list(entry["runs"].get(name, {}).values())
    return statistics.fmean(values) if values and None not in values else None


def _averages(summary: Summary, name: str) -> dict[str, Any]:
    """Averages of one run over the tasks that have it; None over groups where a task lacks it: it would flatter."""
    values = {task: _mean_over_backbones(entry, name) for task, entry in summary["tasks"].items()}
    have = {task: value for task, value in values.items() if value is not None}
    groups: dict[str, list[float]] = {}
    for task, value in have.items():
        if group := summary["tasks"][task]["group"]:
            groups.setdefault(group, []).append(value)
    means = {group: statistics.fmean(found) for group, found in groups.items()}
    whole = len(have) == len(values)
    return {
        "n_tasks": len(have),
        "mean_of_tasks": statistics.fmean(have.values()) if whole else None,
        "mean_of_groups": statistics.fmean(means.values()) if means and whole else None,
        "groups": means,
    }


def _gains(summary: Summary, first: str, name: str) -> dict[str, float] | None:
    """Mean over the tasks for each backbone, then mean and spread over the backbones; None with a gap."""
    by_backbone: dict[str, list[float]] = {}
    for entry in summary["tasks"].values():
        base, values = entry["runs"].get(first, {}), entry["runs"].get(name, {})
        if set(base) != set(values) or None in (*base.values(), *values.values()):
            return None
        for backbone, value in values.items():
            by_backbone.setdefault(backbone, []).append(value - base[backbone])
    means = [statistics.fmean(found) for found in by_backbone.values()]
    spread = statistics.stdev(means) if len(means) > 1 else 0.0
    return {"mean": statistics.fmean(means), "std": spread, "backbones": len(means)}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )

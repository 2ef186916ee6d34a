"""VTAB-1k in two numbers: the mean of its 19 tasks, and the mean of its three groups' means.

In: results of runs by task, named as the folders of the dump (`vtab:ROOT/NAME`).   Out: a VtabSummary and a text table.
The benchmark's own score is the mean of all tasks; most papers on small heads and adapters print the mean of the group
means, which weighs a task of the smallest group twice as much as one of the largest. The two differ by 2 points and
more, so both are given, and neither unless all 19 tasks are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from loffta.errors import LofftaError, unknown_name
from loffta.report.text import NONE, interval, percent
from loffta.runs import open_run, read_results

GROUPS: dict[str, tuple[str, ...]] = {
    "natural": ("caltech101", "cifar", "dtd", "oxford_flowers102", "oxford_iiit_pet", "sun397", "svhn"),
    "specialised": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": (
        "clevr_count",
        "clevr_dist",
        "dmlab",
        "kitti",
        "dsprites_loc",
        "dsprites_ori",
        "smallnorb_azi",
        "smallnorb_ele",
    ),
}
VTAB_TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)


@dataclass(frozen=True)
class Average:
    """A mean over tasks, fractions 0-1."""

    mean: float
    std: float | None  # of the same mean over seeds; None for one seed, or where the tasks differ in their number


@dataclass(frozen=True)
class VtabSummary:
    """Top-1 of the tasks that are there, and their averages; None where a task of an average is missing."""

    tasks: dict[str, Average]
    intervals: dict[str, tuple[float, float]]  # 95 %, over images
    groups: dict[str, Average | None]
    mean_of_tasks: Average | None
    mean_of_groups: Average | None
    missing: tuple[str, ...]


def summarise_vtab(results: Mapping[str, Mapping[str, Any]]) -> VtabSummary:
    """Averages top-1 over tasks.

    Args:
        results: what results.json holds, by task.
    Raises:
        UsageError: a name that is no task of VTAB-1k.
        LofftaError: results without top-1.
    """
    for name in results:
        if name not in VTAB_TASKS:
            raise unknown_name("VTAB task", name, VTAB_TASKS, where="VTAB-1k")
    top1 = {task: _top1(task, results[task]) for task in VTAB_TASKS if task in results}
    seeds = {task: [float(value) for value in found["per_seed"]] for task, found in top1.items()}
    groups = {group: _over_tasks([seeds.get(task) for task in tasks]) for group, tasks in GROUPS.items()}
    whole = [per_seed for per_seed in groups.values() if per_seed is not None]
    return VtabSummary(
        tasks={task: _average(per_seed) for task, per_seed in seeds.items()},
        intervals={task: (float(found["ci95"][0]), float(found["ci95"][1])) for task, found in top1.items()},
        groups={group: _average(found) if found else None for group, found in groups.items()},
        mean_of_tasks=_mean_of([seeds[task] for task in seeds]) if len(seeds) == len(VTAB_TASKS) else None,
        mean_of_groups=_mean_of(whole) if len(whole) == len(GROUPS) else None,
        missing=tuple(task for task in VTAB_TASKS if task not in results),
    )


def read_vtab(runs: Mapping[str, Path]) -> VtabSummary:
    """The summary of finished runs by task; a run without results counts as missing."""
    found = {}
    for task, root in runs.items():
        paths, config = open_run(root)
        if paths.results(config.test_on).exists():
            found[task] = read_results(paths.results(config.test_on))
    return summarise_vtab(found)


def format_vtab(summary: VtabSummary) -> str:
    """A text table: tasks by group with their intervals, the groups' means, both averages, and what is missing."""
    lines = [f"{'task':<24}{'top-1 %':>14}  95 % CI", "-" * 50]
    for group, tasks in GROUPS.items():
        for task in tasks:
            found = summary.tasks.get(task)
            bounds = interval(summary.intervals[task]) if found else ""
            lines.append(f"{task:<24}{_percent(found):>14}  {bounds}".rstrip())
        lines += [f"{f'{group}, mean of {len(tasks)}':<24}{_percent(summary.groups[group]):>14}", ""]
    lines.append(f"{f'mean of {len(VTAB_TASKS)} tasks':<24}{_percent(summary.mean_of_tasks):>14}")
    lines.append(f"{'mean of group means':<24}{_percent(summary.mean_of_groups):>14}")
    if summary.missing:
        lines += ["", f"missing: {', '.join(summary.missing)}"]
    return "\n".join(lines)


def _top1(task: str, results: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = results["metrics"]["top1"]
    except KeyError as error:
        raise LofftaError(
            f"the results of {task} have no top-1, which VTAB-1k is measured by",
            where=f"VTAB task {task}",
            remedy="train on it as classification, `loffta extract vtab:ROOT/NAME`",
        ) from error
    return found


def _over_tasks(seeds: Sequence[list[float] | None]) -> list[float] | None:
    """The mean over tasks, seed by seed; where they differ in number of seeds, one mean; None where one is missing."""
    there = [per_seed for per_seed in seeds if per_seed is not None]
    if len(there) < len(seeds):
        return None
    if len({len(per_seed) for per_seed in there}) > 1:
        return [fmean(fmean(per_seed) for per_seed in there)]
    return [fmean(values) for values in zip(*there, strict=True)]


def _mean_of(seeds: Sequence[list[float]]) -> Average:
    found = _over_tasks(seeds)
    assert found is not None, "nothing is missing"
    return _average(found)


def _average(per_seed: Sequence[float]) -> Average:
    return Average(fmean(per_seed), stdev(per_seed) if len(per_seed) > 1 else None)


def _percent(found: Average | None) -> str:
    if found is None:
        return NONE
    return percent(found.mean) + ("" if found.std is None else f" ± {percent(found.std)}")

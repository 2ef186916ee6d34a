"""Dense runs of one image set as a table: task after task, the best run of each first.

In: the runs that a pipeline plans.   Out: text. Called by `results`. Runs of different tasks have different figures, so
they are ranked by task, and every figure has its name and its protocol beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loffta.machine.terminal import Table, wrap
from loffta.pipeline.plan import PlannedRun
from loffta.reporting.text import NONE, human_seconds
from loffta.runs.run import read_results
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.figures import best_first, metric_head, show_interval, show_spread

_HEADS = ("task", "run", "metric", "value", "95 % CI", "parameters", "train")


def format_dense(runs: Sequence[PlannedRun]) -> str | None:
    """A line a run that has results; None where there is no dense one."""
    found = [(run, read_results(run.results)) for run in runs if run.results.exists()]
    dense = [(run, results) for run, results in found if results.get("task") in DENSE_TASKS]
    if not dense:
        return None
    rows = []
    for task in DENSE_TASKS:
        metric = DENSE_TASKS[task].headline
        of_task = [(run, results) for run, results in dense if results["task"] == task]
        measured = [pair for pair in of_task if metric in pair[1]["metrics"]]
        measured.sort(key=lambda pair: best_first(metric, pair[1]["metrics"][metric]["mean"]))
        rows += [_row(task, metric, run, results) for run, results in measured]
        rows += [_row(task, metric, *pair) for pair in of_task if pair not in measured]
    table = Table(rows, _HEADS, right={3, 4, 5, 6})
    lines = table.head() + [line for row in rows for line in table.lines(row)]
    protocols = sorted({str(results["protocol"]) for _, results in dense if results.get("protocol")})
    if protocols:
        lines += wrap(f"protocol: {', '.join(protocols)}")
    return "\n".join(lines)


def _row(task: str, metric: str, run: PlannedRun, results: Mapping[str, Any]) -> list[str]:
    name = run.name + (f" {run.backbone}" if run.backbone else "")
    value = results["metrics"].get(metric)
    shown = [NONE, NONE]  # no image defines it: no object, no valid depth
    if value is not None:
        shown = [show_spread(metric, value["mean"], value["std"]), show_interval(metric, value["ci95"])]
    parameters = f"{results['dense']['adapter_parameters']:,}"
    return [task, name, metric_head(metric), *shown, parameters, human_seconds(results.get("train_seconds"))]

"""What a pipeline comes to: a report for each image set, and one summary of all.

In: a Pipeline and what its stages cost.   Out: HTML pages, summary.txt and summary.json. Called by `loffta run`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from loffta.errors import LofftaError
from loffta.files.durable import replace_file
from loffta.machine.progress import say as warn
from loffta.pipeline.dense_table import format_dense
from loffta.pipeline.plan import Pipeline
from loffta.pipeline.summary import format_summary, summarise
from loffta.reporting import StageCost, read_good_runs, write_report

Say: TypeAlias = Callable[[str], None]


def write_results(pipeline: Pipeline, costs: Sequence[StageCost], out: Path, say: Say) -> dict[str, Any]:
    """A report for each task that has results, and the summary of all; without tasks the report alone, and a
    table of dense runs.

    Args:
        costs: of stages, under their names.
    Returns:
        Where they are: `reports`, `summary`.
    """
    reports = []
    for report, runs in pipeline.reports.items():
        done = [run for run in pipeline.runs if run.path in runs and run.results.exists()]
        if done:
            of_task = f"{done[0].task.name}/" if done[0].task else ""
            (split, *others) = {run.split for run in done}
            try:
                found, left_out = read_good_runs([run.path for run in done], None if others else split)
            except LofftaError as error:  # none that a report can show: the summary is not lost for it
                warn(f"no report {report}: {error.what}")
                continue
            for bad in left_out:
                warn(f"left out: {bad.why}")
            write_report(found, report, stages=[cost for cost in costs if cost.name.startswith(of_task)])
            say(f"report: {report}")
            reports.append(str(report))
    if any(run.task is None for run in pipeline.runs):
        for line in (format_dense(pipeline.runs) or "").splitlines():
            say(line)
        return {"reports": reports, "summary": None}
    summary = summarise(pipeline.runs)
    text = format_summary(summary)
    out.mkdir(parents=True, exist_ok=True)
    written = out / f"summary{pipeline.suffix}.json"
    replace_file(written, json.dumps(summary, indent=2).encode())
    replace_file(written.with_suffix(".txt"), f"{text}\n".encode())
    for line in ["", *text.splitlines(), "", f"summary: {written}"]:
        say(line)
    return {"reports": reports, "summary": str(written)}

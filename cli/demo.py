"""`loffta demo`: pipelines/demo.yaml or demo-dense.yaml as local processes, then a table and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import emit, json_option, show, show_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loffta.pipeline.plan import Pipeline
    from loffta.reporting import StageCost


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), help="[demo-run; with --dense: demo-dense-run]")
@click.option("--dense", is_flag=True, help="Scenes: segmentation, depth, boundaries, detection, instances.")
@click.option("--full", is_flag=True, help="The paper's 100 epochs for ComBo, in place of 12.")
@json_option
def command(out: Path | None, dense: bool, full: bool, as_json: bool) -> None:
    """Cache, train and report on real images with real pretrained weights; minutes on a laptop.

    Needs the extra `demo`. Every step is printed as the command that does it.
    """
    from importlib.resources import as_file, files

    from loffta.errors import UsageError
    from loffta.pipeline.file import overrule_recipes, read_pipeline
    from loffta.pipeline.local import run_local
    from loffta.pipeline.plan import make_pipeline
    from loffta.reporting import StageCost

    if dense and full:
        raise UsageError("--dense has no longer form", where="--full", remedy="leave one of --dense and --full out")
    out = out or Path("demo-dense-run" if dense else "demo-run")
    with as_file(files("loffta_pipelines") / ("demo-dense.yaml" if dense else "demo.yaml")) as path:
        config = read_pipeline(path)
        pipeline = make_pipeline(overrule_recipes(config, {"epochs": 100} if full else {}), out, where=path)
    outcome = run_local(pipeline.stages, out, show)
    outcome.check(out)
    done = outcome.results
    costs = [StageCost(s.name, s.command, s.seconds, s.bytes) for s in done]
    result = (_show_dense if dense else _show)(pipeline, costs, out)
    emit({**result, "stages": [vars(stage) for stage in done]}, as_json)


def _show(pipeline: Pipeline, costs: Sequence[StageCost], _out: Path) -> dict[str, Any]:
    """Table, comparisons and report of runs of one task."""
    from loffta.machine.terminal import columns
    from loffta.reporting import (
        Comparisons,
        find_places,
        format_comparison,
        format_table,
        read_runs,
        write_report,
    )

    ((report, runs),) = pipeline.reports.items()
    found = read_runs(runs)
    comparisons = Comparisons(found)
    write_report(found, report, comparisons, stages=costs)
    table = format_table([run.row for run in found], columns(), find_places(comparisons))
    for text in (table, format_comparison(found, comparisons, columns())):
        for line in ["", *text.splitlines()]:
            show(line)
    show("")
    show(f"report: {report}")
    return {"report": str(report)}


def _show_dense(pipeline: Pipeline, costs: Sequence[StageCost], out: Path) -> dict[str, Any]:
    """A table task by task, and the report."""
    from loffta.pipeline.results import write_results

    show("")
    written = write_results(pipeline, costs, out, lambda line: show_lines([line]))
    return {"report": next(iter(written["reports"]), None)}

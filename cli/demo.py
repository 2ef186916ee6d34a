"""`loffta demo`: pipelines/demo.yaml as local processes, then a table and a report."""

from __future__ import annotations

from pathlib import Path

import click

from .common import emit, json_option, show


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default="demo-run", show_default=True)
@click.option("--full", is_flag=True, help="The paper's 100 epochs for ComBo, in place of 12.")
@json_option
def command(out: Path, full: bool, as_json: bool) -> None:
    """Cache, train and report on real images with real pretrained weights; minutes on a laptop.

    Needs the extra `demo`. Every step is printed as the command that does it.
    """
    from importlib.resources import as_file, files

    from loffta.machine.terminal import columns
    from loffta.pipeline.file import overrule_recipes, read_pipeline
    from loffta.pipeline.local import run_local
    from loffta.pipeline.plan import make_pipeline
    from loffta.reporting import (
        Comparisons,
        StageCost,
        find_places,
        format_comparison,
        format_table,
        read_runs,
        write_report,
    )

    with as_file(files("loffta_pipelines") / "demo.yaml") as path:
        config = read_pipeline(path)
        pipeline = make_pipeline(overrule_recipes(config, {"epochs": 100} if full else {}), out, where=path)
    outcome = run_local(pipeline.stages, out, show)
    outcome.check(out)
    done = outcome.results
    ((report, runs),) = pipeline.reports.items()
    found = read_runs(runs)
    comparisons = Comparisons(found)
    costs = [StageCost(s.name, s.command, s.seconds, s.bytes) for s in done]
    write_report(found, report, comparisons, stages=costs)
    table = format_table([run.row for run in found], columns(), find_places(comparisons))
    for text in (table, format_comparison(found, comparisons, columns())):
        for line in ["", *text.splitlines()]:
            show(line)
    show("")
    show(f"report: {report}")
    emit({"report": str(report), "stages": [vars(stage) for stage in done]}, as_json)

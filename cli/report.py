"""`loffta report`: one HTML page about runs."""

from __future__ import annotations

from pathlib import Path

import click

from loffta.words import printable

from .common import emit, json_option, show, show_lines


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="report.html", show_default=True)
@click.option(
    "--cache",
    "caches",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Where a cache is that was moved; it is known by its images. May be given several times.",
)
@json_option
def command(runs: tuple[Path, ...], out: Path, caches: tuple[Path, ...], as_json: bool) -> None:
    """Write one self-contained HTML page about RUNS; a table goes to the terminal.

    A run that has no results yet is left out.
    """
    from loffta.report import format_table, format_worth, part_runs, read_runs, worth_as_json, write_report
    from loffta.terminal import columns

    finished, unfinished = part_runs(runs)
    if finished:
        for run in unfinished:
            click.echo(printable(f"left out: {run} has no results yet"), err=True)
    shown = finished or runs  # without any, the error of the first says what to do
    found = read_runs(shown, elsewhere=caches)
    write_report(shown, out, caches=caches)
    show_lines(format_table([run.row for run in found], columns()).splitlines())
    if worth := format_worth(found):
        show("")
        for line in worth.splitlines():
            show(line)
    for loaded in found:
        if loaded.grown:
            show(f"{loaded.row.name}: {loaded.grown}")
    show(f"report: {out}")
    emit({"report": str(out), "runs": len(found), "worth": worth_as_json(found)}, as_json)

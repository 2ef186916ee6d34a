"""`loffta report`: one HTML page about runs."""

from __future__ import annotations

from pathlib import Path

import click

from .common import emit, json_option, show


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="report.html", show_default=True)
@json_option
def command(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Write one self-contained HTML page about RUNS; a table goes to the terminal."""
    from loffta.report import format_table, read_rows, write_report

    rows = read_rows(runs)
    write_report(runs, out)
    click.echo(format_table(rows))
    show(f"report: {out}")
    emit({"report": str(out), "runs": len(rows)}, as_json)

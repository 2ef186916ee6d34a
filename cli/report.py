"""`loffta report`: one HTML page about runs."""

from __future__ import annotations

from pathlib import Path

import click

from .common import emit, json_option, show


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="report.html", show_default=True)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Where a cache is that was moved; it is known by its images. May be given several times.",
)
@click.option(
    "--baseline", metavar="RUN", help="One of RUNS, its folder or its name in the table: what the others gain over it."
)
@json_option
def command(runs: tuple[Path, ...], out: Path, cache: tuple[Path, ...], baseline: str | None, as_json: bool) -> None:
    """Write one self-contained HTML page about RUNS; a table goes to the terminal.

    A run that has no results yet, or cannot be read, is named and left out.
    """
    import loffta
    from loffta.machine.terminal import columns

    done = loffta.report(runs, out=out, cache=cache, baseline=baseline)
    for line in done.text(columns()).splitlines():
        show(line)
    show(f"report: {out}")
    emit(done.as_json(), as_json)

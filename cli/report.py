"""`loffta report`: one HTML page about runs."""

from __future__ import annotations

from pathlib import Path

import click

from loffta.words import printable

from .common import emit, json_option, show


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

    A run that has no results yet, or cannot be read, is named and left out.
    """
    from loffta.machine.terminal import columns
    from loffta.reporting import (
        Comparisons,
        comparisons_as_json,
        format_comparison,
        format_table,
        format_worth,
        read_good_runs,
        worth_as_json,
        write_report,
    )

    found, left_out = read_good_runs(runs, elsewhere=caches)
    for bad in left_out:
        click.echo(printable(f"left out: {bad.why}"), err=True)
    comparisons = Comparisons(found)
    write_report(found, out, comparisons)
    width = columns()
    texts = (
        format_table([run.row for run in found], width),
        format_comparison(found, comparisons, width),
        format_worth(found, comparisons, width),
    )
    for line in "\n\n".join(filter(None, texts)).splitlines():
        show(line)
    for loaded in found:
        if loaded.grown:
            show(f"{loaded.row.name}: {loaded.grown}")
    show(f"report: {out}")
    told = {"comparisons": comparisons_as_json(found, comparisons), "worth": worth_as_json(found, comparisons)}
    emit({"report": str(out), "runs": len(found), "left_out": [str(bad.root) for bad in left_out]} | told, as_json)

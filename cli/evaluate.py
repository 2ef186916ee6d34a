"""`loffta evaluate`: options in, one call of loffta.evaluate, a summary out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import emit, json_option, opening_options, show
from .train import print_results


@click.command("evaluate")
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN...")
@click.option("--split", help="Split, or several joined by +.  [the run's --test-on; with --online: test]")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Where the cache is now.  [where it was, or lay beside the run]"
)
@click.option("--labels", metavar="NAME_OR_FILE", help="What is right: a set of labels of the cache, or a file.")
@click.option("--output-px", type=int, metavar="PX", help="Of dense heads: side of the outputs.  [as trained]")
@click.option("--online", metavar="SOURCE", help="Images that are not cached: features are made and forgotten.")
@click.option("--windows", metavar="SIDE/STRIDE", help="With --online, of dense heads: windows in px: 512/341.")
@click.option("--batch-size", type=click.IntRange(1, 1 << 20), help="With --online: images per pass.  [32]")
@click.option("--max-bad-frac", type=click.FloatRange(0, 1), help="With --online: more are exit code 3.  [0.01]")
@opening_options
@click.option("--stage-dir", metavar="DIR", help="Copy what is read to this disk of the node first: $SLURM_TMPDIR.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@json_option
def command(runs: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Measure the trained heads of RUNs on a split; results and predictions are written into each RUN.

    Where a RUN cannot be written to, its results are shown, and the exit code is 1. With --online the split is one of
    SOURCE, whose classes are matched with the run's by name; several runs share one pass over the images, and no cache
    is needed.
    """
    import loffta
    from loffta.errors import NotSaved
    from loffta.machine import process

    unsaved: NotSaved | None = None
    stop = process.StopFlag().listen()
    process.cap_threads()
    try:
        found = [one.as_json() for one in loffta.evaluate(runs, stop=stop, **options)]
    except NotSaved as error:
        found, unsaved = [dict(results) for results in error.runs], error
    for run, results in zip(runs, found, strict=True):
        if len(runs) > 1:
            show(f"{run}:")
        print_results(results)
    emit(found[0] if len(runs) == 1 else {"runs": found}, as_json)
    if unsaved is not None:
        raise unsaved

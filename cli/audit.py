"""`loffta audit`: what is wrong with an image set, as far as its features show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loffta.words import plural

from .common import emit, json_option, show, show_lines


@click.command("audit")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--features", multiple=True, metavar="STORE[:TAPS]", help="Store or backbone, and taps.  [all stores]")
@click.option("--pooling", type=click.Choice(["mean", "class"]), default="mean", show_default=True)
@click.option("--labels", metavar="NAME_OR_FILE", help="Labels and splits of `loffta label`.  [the cache's own]")
@click.option("--train-on", default="train", show_default=True, help="For --fix: split that copies of others leave.")
@click.option(
    "--near",
    type=float,
    default=0.13,
    show_default=True,
    help="Copies are nearer than this fraction of the median distance to the nearest image.",
)
@click.option("--folds", type=int, default=5, show_default=True, help="That labels are judged by.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the folds.")
@click.option("--out", type=click.Path(path_type=Path), help="HTML page with pictures.")
@click.option("--fix", type=click.Path(path_type=Path), help="Corrections for `loffta label`: .csv or .parquet.")
@click.option("--show", "shown", type=click.IntRange(min=0), default=5, show_default=True, help="So many of each kind.")
@click.option("--partial", is_flag=True, help="Take what is there though the cache is not finished.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@json_option
def command(cache: Path, fix: Path | None, shown: int, as_json: bool, **options: Any) -> None:
    """Find copies, leaks between splits, wrong labels and outliers of CACHE's images, by their features.

    All splits are looked at. Nothing of the cache changes; --fix writes what `loffta label CACHE FILE` takes.
    """
    import loffta
    from loffta.machine.process import StopFlag
    from loffta.machine.terminal import columns

    done = loffta.audit(cache, fix=fix, show=shown, stop=StopFlag().listen(), **options)
    show_lines(done.text(columns()).splitlines())
    if done.out is not None:
        show(f"page: {done.out}")
    if fix is not None:
        n = done.corrections or 0
        show(f"{n} {plural(n, 'correction')} in {fix}: look through them, then `loffta label {cache} {fix}`")
    emit(done.as_json(), as_json)

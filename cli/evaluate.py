"""`loffta evaluate`: options in, one call of loffta.evaluate.evaluate, a summary out."""

from __future__ import annotations

from pathlib import Path

import click

from .common import emit, json_option
from .train import print_results


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="test", show_default=True, help="Split, or several joined by +.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where the cache is now.  [where it was in training]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@json_option
def command(run: Path, split: str, cache: Path | None, device: str, as_json: bool) -> None:
    """Measure the trained heads of RUN on a split; results and predictions are written into RUN."""
    from loffta.evaluate import evaluate
    from loffta.machine import StopFlag

    results = evaluate(run, split, cache_root=cache, device=device, stop=StopFlag().listen())
    print_results(results)
    emit(results, as_json)

"""`loffta scan`: options in, one call of loffta.scan, a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import emit, json_option, show, show_lines


@click.command("scan")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option(
    "--features", multiple=True, metavar="STORE[:TAPS]", help="Store or backbone, and taps.  [all, every tap]"
)
@click.option("--labels", metavar="NAME_OR_FILE", help="A set of labels of the cache, or a file.  [its source's]")
@click.option("--heads", metavar="NAME,...", help="knn, ncm, ridge, logreg (slow).  [knn,ncm,ridge]")
@click.option("--pooling", default="mean", show_default=True, help="A layer's vector: mean, cls, cls+mean, or several.")
@click.option("--train-on", default="train", show_default=True, help="Split, or several joined by +.")
@click.option("--validate-on", metavar="SPLIT", help="Chooses C and lambda.  [a fifth of the training images]")
@click.option("--holdout", type=float, metavar="SHARE", help="Keep so much of --train-on out, as split 'holdout': 0.2.")
@click.option("--test-on", default="test", show_default=True, help="Split that the scores are of.")
@click.option("--folds", type=int, metavar="N", help="Test all images of --train-on, each by heads of other folds.")
@click.option("--group", metavar="COLUMN", help="Groups that are never on both sides of a fold: patient.")
@click.option("--shots", metavar="N,...", help="Train on so many images of each class: 1,2,5,10.")
@click.option("--draws", type=int, default=5, show_default=True, help="Of --shots.")
@click.option("--k", type=int, metavar="N", help="Neighbours of knn.  [20, or all of fewer images]")
@click.option("--temperature", type=float, default=0.07, show_default=True, help="Of a neighbour's vote.")
@click.option("--standardise", is_flag=True, help="Scale features to standard deviation 1, for ridge and logreg.")
@click.option("--data-seed", type=int, default=0, show_default=True, help="Of what is held out or drawn.")
@click.option("--stage-dir", metavar="DIR", help="Copy what is read to this disk of the node first: $SLURM_TMPDIR.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--partial", is_flag=True, help="Scan what is there though the cache is not finished.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Written: .csv, .md, .tex, .json or .html."
)
@json_option
def command(cache: Path, as_json: bool, **options: Any) -> None:
    """Measure every backbone and layer of CACHE with heads that need no training loop.

    Which backbone, which layer? A row for each layer and head, the best first, with 95 % intervals and the ranks that
    it may have. Every byte is read once.
    """
    import loffta
    from loffta.machine.process import StopFlag
    from loffta.reporting.scan_text import notes_of, scan_lines

    found = loffta.scan(cache, stop=StopFlag().listen(), **options)
    show_lines(scan_lines(found))
    show("")
    for note in notes_of(found):
        show(note)
    if options["out"] is not None:
        show(f"written to {options['out']}")
    emit(found.as_json(), as_json)

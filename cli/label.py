"""`loffta label`: options in, one call of loffta.label, a summary out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from loffta.words import first_of, plural

from .common import emit, json_option, labels_line, show, show_lines


@click.command("label")
@click.argument("cache", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Of the set.  [the file's]")
@click.option("--key", metavar="COLUMN", help="Names the images.  [image or key]")
@click.option("--label", metavar="COLUMN", help="Classes.  [label, or labels as cat;dog]")
@click.option("--value", metavar="COLUMN", help="Numbers.  [value]")
@click.option("--split", metavar="COLUMN", help="Splits.  [split]")
@click.option("--group", metavar="COLUMN", help="Who an image is of: a patient, a site.  [group]")
@json_option
def command(cache: Path, file: Path, as_json: bool, **columns: Any) -> None:
    """Put labels, splits or groups of FILE beside the images of CACHE, as a set with a name; no feature is touched.

    FILE is CSV, TSV or parquet. Its rows are found by their keys, or by their file names where these are unique. What
    it says nothing of is unknown; columns that it lacks are as the image set says.
    """
    import loffta
    from loffta.machine.terminal import command as to_type

    done = loffta.label(cache, file, **columns)
    found = f"{done.matched} of {done.images} {plural(done.images, 'image')}"
    by_name = f", {done.by_file_name} by their file names" if done.by_file_name else ""
    show(f"{'replaced' if done.replaced else 'added'} {labels_line(asdict(done.set), done.images)}")
    show(f"{file} has a row for {found}{by_name}")
    if done.strangers:
        show(f"  rows without an image: {len(done.strangers)}: {first_of(done.strangers, ', ')}")
    if done.unknown:
        show(f"  images without a row: {len(done.unknown)}: {first_of(done.unknown, ', ')}")
    show("next:")
    words = ["loffta", "train", str(cache), "--labels", done.set.name, "--head", "linear", "--out", "RUN"]
    show_lines(to_type(words))
    emit(asdict(done), as_json)

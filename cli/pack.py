"""`loffta pack` and `loffta unpack`: a compressed copy of a cache, and its fast form again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loffta.machine.terminal import Table
from loffta.words import human_size, plural

from .common import emit, json_option, show, show_lines

if TYPE_CHECKING:
    from loffta.store.packing import CopyReport


@click.command("pack")
@click.argument("cache", type=click.Path(path_type=Path))
@click.argument("store", required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The copy; new or begun.")
@click.option("--codec", default="zstd", show_default=True, metavar="NAME", help="zstd, blosc or pcodec; lossless.")
@json_option
def pack(cache: Path, store: str | None, out: Path, codec: str, as_json: bool) -> None:
    """Write a compressed copy of CACHE, or of one STORE of it, to DIR; a second run continues.

    Every command reads the copy as it is, slower. Names of stores are those of `loffta info`.
    """
    from loffta.machine.process import StopFlag
    from loffta.machine.terminal import command
    from loffta.store.cache import Cache
    from loffta.store.packing import copy_cache

    done = copy_cache(Cache.open(cache), out, codec=codec, store=store, stop=StopFlag().listen())
    _show(done)
    show("next: compare every byte of the copy with the checksums of the extraction")
    show_lines(command(["loffta", "verify", str(out)]))
    emit(asdict(done) | {"bytes": done.bytes, "plain_bytes": done.plain_bytes}, as_json)


@click.command("unpack")
@click.argument("cache", metavar="PACKED", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="CACHE", help="New, begun, or the old.")
@json_option
def unpack(cache: Path, out: Path, as_json: bool) -> None:
    """Write what `loffta pack` made in its fast form to CACHE; a second run continues.

    Every chunk is the one that was extracted, bit for bit. CACHE is new, or holds the same images: stores come beside
    those that it has.
    """
    from loffta.machine.process import StopFlag
    from loffta.store.cache import Cache
    from loffta.store.packing import copy_cache

    done = copy_cache(Cache.open(cache), out, codec=None, stop=StopFlag().listen())
    _show(done)
    emit(asdict(done) | {"bytes": done.bytes, "plain_bytes": done.plain_bytes}, as_json)


def _show(done: CopyReport) -> None:
    cells = [
        (
            array.array,
            array.codec or "plain",
            f"{human_size(array.plain_bytes)} -> {human_size(array.bytes)}",
            f"{array.images} of {done.images} {plural(done.images, 'image')}",
        )
        for array in done.arrays
    ]
    table = Table(cells, indent=2)
    for row in cells:
        show_lines(table.lines(row))
    written = f"{done.units} {plural(done.units, 'unit')} written" if done.units else "nothing to do"
    show(f"{written}; {human_size(done.plain_bytes)} -> {human_size(done.bytes)} in {done.cache}")
    if any(array.images < done.images for array in done.arrays):
        show("some images have no features in it: their units are not extracted yet")

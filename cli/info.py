"""`loffta info`: what a cache holds, as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import emit, human_bytes, json_option


@click.command("info")
@click.argument("cache", type=click.Path(path_type=Path))
@json_option
def command(cache: Path, as_json: bool) -> None:
    """Show what CACHE holds: images, stores, finished units, bytes; works while `extract` runs."""
    from loffta.inventory import take_inventory
    from loffta.store.cache import Cache

    held = take_inventory(Cache.open(cache))
    splits = ", ".join(f"{name} {count}" for name, count in held["splits"].items())
    click.echo(
        f"{held['source']}: {held['images']} images ({splits}), {held['classes']} classes, {held['label_kind']}, "
        f"{len(held['bad'])} bad"
    )
    for store in held["stores"]:
        recipe = store["recipe"]
        total = sum(array["bytes"] for array in store["arrays"])
        click.echo(f"\n{store['store']}  {store['label']}, {recipe['input']['image_px']} px, {human_bytes(total)}")
        for array in store["arrays"]:
            click.echo("  " + _line(array))
    click.echo("\n" + _line(held["thumbnails"]))
    emit(held, as_json)


def _line(array: dict[str, Any]) -> str:
    taps = array["taps"]
    span = f"{taps[0]} .. {taps[-1]}" if len(taps) > 1 else "".join(taps)
    shape = " x ".join(str(side) for side in array["shape"][1:])
    grown = "  old rows only: the image set has grown" if array["old_rows_only"] else ""
    name = array["array"].rpartition("/")[2]
    size = human_bytes(array["bytes"])
    done = f"{array['units_done']}/{array['units']} units, {array['images_done']} images"
    return f"{name:10} {span:24} {shape:20} {done:24} {size:>9}{grown}"

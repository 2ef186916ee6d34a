"""`loffta info`: what a cache holds, as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import emit, human_bytes, json_option, show

SHOWN = 5


@click.command("info")
@click.argument("cache", type=click.Path(path_type=Path))
@json_option
def command(cache: Path, as_json: bool) -> None:
    """Show what CACHE holds: images, stores, finished units, bytes; works while `extract` runs."""
    from loffta.inventory import take_inventory
    from loffta.store.cache import Cache

    held = take_inventory(Cache.open(cache))
    splits = ", ".join(f"{name} {count}" for name, count in held["splits"].items())
    show(f"{held['source']}: {held['images']} images ({splits}), {held['classes']} classes, {len(held['bad'])} bad")
    for store in held["stores"]:
        recipe = store["recipe"]
        total = sum(array["bytes"] for array in store["arrays"])
        click.echo(f"\n{store['store']}  {store['label']}, {recipe['input']['image_px']} px, {human_bytes(total)}")
        for array in store["arrays"]:
            click.echo("  " + _line(array))
    click.echo("\n" + _line(held["thumbnails"]))
    for line in [*_bad_lines(held["bad"]), *_gone_lines(held)]:
        show(line)
    emit(held, as_json)


def _bad_lines(bad: dict[str, str]) -> list[str]:
    """The first quarantined images with their reasons."""
    lines = [f"bad: {key}: {reason}" for key, reason in list(bad.items())[:SHOWN]]
    return [*lines, f"bad: {len(bad) - SHOWN} more; --json lists all"] if len(bad) > SHOWN else lines


def _gone_lines(held: dict[str, Any]) -> list[str]:
    """What a purge took."""
    from loffta.store.purge import describe_lost, describe_missing

    gone = [describe_lost(held["lost_metadata"])] if held["lost_metadata"] else []
    gone += [describe_missing(held["missing_shards"])] if held["missing_shards"] else []
    lines = [line for text in gone for line in text.splitlines()]
    return [*lines, "was the file system purged? The `loffta extract` that made it writes it anew"] if lines else []


def _line(array: dict[str, Any]) -> str:
    taps = array["taps"]
    span = f"{taps[0]} .. {taps[-1]}" if len(taps) > 1 else "".join(taps)
    shape = " x ".join(str(side) for side in array["shape"][1:])
    grown = "  old rows only: the image set has grown" if array["old_rows_only"] else ""
    name = array["array"].rpartition("/")[2]
    size = human_bytes(array["bytes"])
    done = f"{array['units_done']}/{array['units']} units, {array['images_done']} images"
    return f"{name:10} {span:24} {shape:20} {done:24} {size:>9}{grown}"

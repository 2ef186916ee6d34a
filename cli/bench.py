"""`loffta bench`: options in, one call of loffta.bench.bench, a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .common import emit, human_bytes, json_option, parse_settings, plural, show, split_settings

_NAMES = {
    "disk": "disk, 16 threads",
    "page cache": "page cache, 2 threads",
    "crc32c": "crc32c, first touch alone",
    "copy": "copy to the device",
    "reduce": "pool, dequantise",
    "augment": "augment",
    "prepare": "head: prepare",
    "head": "head: forward, backward",
}


@click.command("bench")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--head", default="linear", show_default=True, help="As in `loffta train`.")
@click.option("--features", multiple=True, metavar="STORE[:TAPS]", help="Store or backbone, and taps.  [all stores]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change the head's recipe: width=64.")
@click.option("--augment", default="none", show_default=True, metavar="PRESET", help="As in `loffta train`.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images of a step.  [the recipe's]")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Time to measure for, about.")
@click.option("--feed", type=click.Choice(["auto", "device", "host", "stream"]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@json_option
def command(cache: Path, settings: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Show where the time of a training step on CACHE goes: disk, checksums, copies, head.

    Writes nothing. What it reads is dropped from the page cache first.
    """
    from loffta.bench import bench

    recipe, augmentation = split_settings(parse_settings(settings), options.pop("augment"))
    found = bench(cache, settings=recipe, augmentation=augmentation, **options)
    show(
        f"head {found['head']} on {found['device']}, batches of {found['batch_size']} of {found['images']} "
        f"{plural(found['images'], 'image')}, {human_bytes(found['bytes_per_image'])} each"
    )
    click.echo(f"\n{'part':26} {'ms/batch':>9} {'images/s':>10} {'GB/s':>6} {'1st epoch':>10} {'later':>6}")
    for part in found["parts"]:
        show(_line(part))
    step = found["step"]
    click.echo()
    show(
        f"whole steps with the feed: {step['images_per_s']:,.0f} images/s, waiting for data {step['waited']:.0%} of "
        "the time"
    )
    show(f"  {found['feed']}; {step['order']} order")
    click.echo()
    show(found["advice"])
    emit(found, as_json)


def _line(part: dict[str, Any]) -> str:
    rate = f"{part['gb_per_s']:.2f}" if part["gb_per_s"] is not None else "-"
    shares = [f"{s:.0%}" if s is not None else "-" for s in (part["share_first_epoch"], part["share_later"])]
    return (
        f"{_NAMES[part['part']]:26} {part['ms']:9.2f} {part['images_per_s']:10,.0f} {rate:>6} {shares[0]:>10} "
        f"{shares[1]:>6}"
    )

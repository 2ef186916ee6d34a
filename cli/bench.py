"""`loffta bench`: options in, one call of loffta.training.bench.bench, a table out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from loffta.machine.terminal import Table
from loffta.words import human_size, plural

from .common import emit, json_option, parse_settings, show, show_lines

_NAMES = {
    "disk": "disk, 16 threads",
    "crc32c": "crc32c, first touch alone",
    "hold": "pool, once, to hold it",
    "page cache": "page cache, 2 threads",
    "memory": "gather from memory",
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
@click.option("--stage-dir", metavar="DIR", help="Measure whether copies on this disk of the node would pay.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@json_option
def command(cache: Path, settings: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Show where the time of a training step on CACHE goes: disk, checksums, copies, head.

    Writes nothing, but for a sample into --stage-dir, which it deletes. What it reads is dropped from the page cache
    first.
    """
    from loffta.door.options import split_settings
    from loffta.training.bench import bench

    recipe, augmentation = split_settings(parse_settings(settings), options.pop("augment"))
    found = bench(cache, settings=recipe, augmentation=augmentation, **options)
    show(
        f"head {found['head']} on {found['device']}, batches of {found['batch_size']} of {found['images']} "
        f"{plural(found['images'], 'image')}, {human_size(found['bytes_per_image'])} each"
    )
    show("")
    show_lines(_table(found["parts"]))
    step = found["step"]
    show("")
    show(
        f"whole steps with the feed: {step['images_per_s']:,.0f} images/s, waiting for data {step['waited']:.0%} of "
        "the time"
    )
    show(f"  {found['feed']}; {step['order']} order")
    show("")
    show(found["advice"])
    if "staging" in found:
        show("")
        show_lines(_staging(found["staging"]))
    emit(found, as_json)


def _staging(found: Mapping[str, Any]) -> list[str]:
    """Rates of both places, where they could be measured, and what follows from them."""
    if "copy_gb_per_s" not in found:
        return [found["advice"]]
    rates = {"cache": "the cache", "near": "the folder", "copy": "a copy"}
    told = ", ".join(f"{name} {found[f'{key}_gb_per_s']:.2f} GB/s" for key, name in rates.items())
    return [f"--stage-dir {found['folder']}: {told}", found["advice"]]


def _table(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    first, later = (_percents([part[key] for part in parts]) for key in ("share_first_epoch", "share_later"))
    rows = [
        (
            _NAMES[part["part"]],
            f"{part['ms']:.2f}",
            f"{part['images_per_s']:,.0f}",
            f"{part['gb_per_s']:.2f}" if part["gb_per_s"] is not None else "-",
            *shares,
        )
        for part, *shares in zip(parts, first, later, strict=True)
    ]
    table = Table(rows, ("part", "ms/batch", "images/s", "GB/s", "1st epoch", "later"), right=range(1, 6))
    return [*table.head(), *(line for row in rows for line in table.lines(row))]


def _percents(shares: Sequence[float | None]) -> list[str]:
    """Whole percents that add up to 100, by the largest remainders; `-` for None."""
    exact = [100 * share if share is not None else 0.0 for share in shares]
    whole = [int(value) for value in exact]
    for i in sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])[: round(sum(exact)) - sum(whole)]:
        whole[i] += 1
    return [f"{n}%" if share is not None else "-" for n, share in zip(whole, shares, strict=True)]

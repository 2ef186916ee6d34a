"""`loffta info`: what a cache holds, as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loffta.machine.terminal import Table
from loffta.words import human_size, plural

from .common import emit, json_option, labels_line, seen_line, show, show_lines, targets_line

_SHOWN = 5  # names of bad images a reason; --json gives all


@click.command("info")
@click.argument("cache", type=click.Path(path_type=Path))
@json_option
def command(cache: Path, as_json: bool) -> None:
    """Show what CACHE holds: images, stores, finished units, bytes; works while `extract` runs.

    Also who is writing and how fast, what is missing, and what takes space and serves nobody. What is damaged is named
    at the end, with exit code 4.
    """
    from loffta.errors import DamageFound
    from loffta.store.cache import Cache
    from loffta.store.inventory import by_reason, take_inventory
    from loffta.store.reads import REPAIR

    held = take_inventory(Cache.open(cache))
    splits = ", ".join(f"{name} {count}" for name, count in held["splits"].items())
    images = f"{held['images']} {plural(held['images'], 'image')} ({splits})"
    classes = f"{held['classes']} {plural(held['classes'], 'class', 'classes')}"
    bad = "the bad ones are not known" if held["bad"] is None else f"{len(held['bad'])} bad"
    show(f"{held['source']}: {images}, {classes}, {held['label_kind']}, {bad}")
    for reason, keys in by_reason(held["bad"] or {}).items():
        show(f"  {len(keys)} bad: {reason}: {_first(keys)}")
    if seen := seen_line(held):
        show(f"  {seen}")
    if len(held["labels"]) > 1:
        for facts in held["labels"]:
            show(f"  {labels_line(facts, held['images'])}")
    if held["moved"] or held["gone"]:
        show(f"  {held['moved']} moved at the source since, {held['gone']} gone there")
    arrays = [array for store in held["stores"] for array in store["arrays"]]
    squares = [square for target in held["targets"] for square in target["squares"]]
    table = Table([_cells(array) for array in [*arrays, held["thumbnails"], *squares]], right={4}, indent=2)
    for store in held["stores"]:
        show("")
        show(_head(store))
        for array in store["arrays"]:
            show_lines(table.lines(_cells(array), *_array_notes(array)))
    show("")
    show_lines(table.lines(_cells(held["thumbnails"]), *_array_notes(held["thumbnails"])))
    for target in held["targets"]:
        show_lines(_target_lines(target, table))
    for line in _notes(held):
        show(line)
    emit(held, as_json)
    if held["damaged"]:
        n = len(held["damaged"])
        raise DamageFound(f"{n} {plural(n, 'part')} of the cache cannot be read", where=cache, remedy=REPAIR)


def _head(store: dict[str, Any]) -> str:
    total = sum(array["bytes"] + array.get("scale_bytes", 0) for array in store["arrays"])
    size = f"{store['recipe']['input'].get('image_px', '?')} px, {human_size(total)}"
    done = f"{store['units_done']}/{store['units']} {plural(store['units'], 'unit')}"
    pace = ""
    if store["images_per_s"]:
        pace = f", {store['images_per_s']:.1f} images/s of late, {store['eta_s'] / 60:.0f} min left at that"
    codecs = sorted({array["codec"] for array in store["arrays"]} - {None})
    packed = f", packed ({', '.join(codecs)})" if codecs else ""
    return f"{store['store']}  {store['label']}, {size}, {done}{pace}{packed}"


def _target_lines(target: dict[str, Any], table: Table) -> list[str]:
    """One kind of dense targets, and a line for each of its squares."""
    from loffta.store.inventory import by_reason

    done = f"{target['units_done']}/{target['units']} {plural(target['units'], 'unit')}"
    lines = ["", f"{targets_line(target)}, {human_size(target['bytes'])}, {done}"]
    for reason, keys in by_reason(target["bad"]).items():
        lines.append(f"  {len(keys)} bad: {reason}: {_first(keys)}")
    return lines + [line for square in target["squares"] for line in table.lines(_cells(square), *_array_notes(square))]


def _notes(held: dict[str, Any]) -> list[str]:
    """Writers, damage, missing shards and orphans; nothing where there are none."""
    lines = [
        f"writing: process {w['pid']} on {w['host']}, {w['files']} {plural(w['files'], 'file')}, "
        f"{human_size(w['bytes'])} so far, last {w['age_s']:.0f} s ago"
        for w in held["writers"]
    ]
    lines += [f"damaged: {d['array']}: {d['what']} ({d['path']})" for d in held["damaged"]]
    lines += _gone_lines(held)
    if held["orphans"]:
        total = sum(orphan["bytes"] for orphan in held["orphans"])
        n = len(held["orphans"])
        lines.append(f"{n} {plural(n, 'orphan')}, {human_size(total)}, that {plural(n, 'serves', 'serve')} nobody:")
        lines += [f"  {o['what']}: {o['path']}, {human_size(o['bytes'])}" for o in held["orphans"]]
    return ["", *lines] if lines else []


def _gone_lines(held: dict[str, Any]) -> list[str]:
    """What a purge took."""
    from loffta.store.purge import describe_lost, describe_missing

    gone = [describe_lost(held["lost_metadata"])] if held["lost_metadata"] else []
    gone += [describe_missing(held["missing_shards"])] if held["missing_shards"] else []
    lines = [line for text in gone for line in text.splitlines()]
    return [*lines, "was the file system purged? The `loffta extract` that made it writes it anew"] if lines else []


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _cells(array: dict[str, Any]) -> tuple[str, ...]:
    """Name, taps, shape, what is done, bytes."""
    taps = array["taps"]
    span = f"{taps[0]} .. {taps[-1]}" if len(taps) > 1 else "".join(taps)
    shape = " x ".join(str(side) for side in array["shape"][1:])
    images = f"{array['images_done']} {plural(array['images_done'], 'image')}"
    done = f"{array['units_done']}/{array['units']} {plural(array['units'], 'unit')}, {images}"
    return array["array"].rpartition("/")[2], span, shape, done, human_size(array["bytes"])


def _array_notes(array: dict[str, Any]) -> list[str]:
    grown = ["old rows only: the image set has grown"] if array["old_rows_only"] else []
    return ([f"int8: {_int8_note(array)}"] if "int8_error" in array else []) + grown


def _int8_note(array: dict[str, Any]) -> str:
    return f"error {max(array['int8_error'].values()):.2%}, out of range {array['saturated']:.4%}"

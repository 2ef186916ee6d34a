"""`loffta verify`: lists damage, and mends it when told; exit code 4 when there is any left."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loffta.words import plural

from .common import emit, json_option, show, show_lines

if TYPE_CHECKING:
    from loffta.machine.process import StopFlag
    from loffta.online.recompute import Comparison
    from loffta.store.cache import Cache
    from loffta.store.verify import Damage


@click.command("verify")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte, not only the checksums.")
@click.option("--repair", is_flag=True, help="Extract the damaged units anew, and no others.")
@click.option("--images", is_flag=True, help="Hash every source image: is it the one that was extracted?")
@click.option("--recompute", type=click.IntRange(min=1), metavar="N", help="Compute N images of each store anew.")
@click.option("--device", default="auto", show_default=True, help="For --recompute: auto, cpu, cuda, mps.")
@json_option
def command(
    cache: Path, deep: bool, repair: bool, images: bool, recompute: int | None, device: str, as_json: bool
) -> None:
    """Check every finished unit of CACHE against the checksums written with it.

    --images and --recompute compare a cache without damage with what it was made from; they need the images, the
    latter also the weights.
    """
    from loffta.errors import DamageFound
    from loffta.machine.process import StopFlag
    from loffta.store.cache import Cache
    from loffta.store.purge import lost_metadata, still_lost
    from loffta.store.verify import tidy, verify

    stop = StopFlag().listen()
    looking = "looking for damage; nothing was changed by that"
    opened = Cache.open(cache)
    lost = still_lost(opened)
    found = list(stop.each(verify(opened, deep=deep), looking))
    for damage in found:
        place = damage.array if damage.unit is None else f"{damage.array}, unit {damage.unit}"
        show(f"{place}: {damage.what} ({damage.path})")
    for name in lost:
        show(f"{name}: its zarr.json is gone")
    repaired = 0
    if repair and not (found or lost):
        tidy(opened)
    elif repair:
        from loffta.extraction.repair import repair as repair_units

        repaired = repair_units(opened, found, lost, stop)
        opened = Cache.open(cache)
        lost = lost_metadata(opened)
        found = list(stop.each(verify(opened, deep=deep), looking))
        show(f"{repaired} {plural(repaired, 'unit')} written anew")
    if not found and not lost:
        show("no damage found" if deep else "no damage found in the checksums; --deep reads every byte")
    sound = not found and not lost
    altered = _check_images(opened, stop) if images and sound else []
    compared = _compare(opened, recompute, device, stop) if recompute and sound else []
    damaged = [{name: value for name, value in vars(damage).items() if name != "layout"} for damage in found]
    result = {"damaged": damaged, "lost_metadata": lost, "deep": deep, "repaired": repaired}
    emit(result | {"altered_images": altered, "recomputed": compared}, as_json)
    if lost:
        raise DamageFound(
            f"{_damaged(found)}, and the zarr.json is gone of {', '.join(lost)}",
            where=cache,
            remedy="was the file system purged? Add --repair, which writes those anew that it can, or run the "
            "`loffta extract` that made them again",
        )
    if found:
        raise DamageFound(_damaged(found), where=cache, remedy=_remedy(cache, found))
    _refuse(opened, altered, [entry for entry in compared if not entry["agrees"]])


def _damaged(found: Sequence[Damage]) -> str:
    units = sum(damage.unit is not None for damage in found)
    documents = len(found) - units
    parts = [f"{units} {plural(units, 'unit is', 'units are')} damaged"] if units or not documents else []
    if documents:
        labels = sum(damage.array.startswith("labels/") for damage in found)
        owners = plural(documents - labels, "array or store is", "arrays or stores are")
        parts += [f"the metadata of {documents - labels} {owners} damaged"] if documents > labels else []
        parts += [f"{labels} {plural(labels, 'set of labels is', 'sets of labels are')} damaged"] if labels else []
    return ", and ".join(parts)


def _remedy(cache: Path, found: Sequence[Damage]) -> str:
    """What mends it, and what a person may do instead."""
    beyond = [damage for damage in found if damage.unit is None and damage.layout is None]
    labels = [damage for damage in beyond if damage.array.startswith("labels/")]
    if labels:
        again = shlex.join(["loffta", "label", str(cache), "FILE", "--name", labels[0].path.stem])
        return f"restore {labels[0].path} from a backup, or make the set anew, which replaces it: {again}"
    stores = [damage for damage in beyond if "/" not in damage.array]
    if stores:
        drop = shlex.join(["loffta", "drop", str(cache), stores[0].array])
        return f"restore {stores[0].path} from a backup, or give the store up: {drop}"
    useless = dict.fromkeys(path for damage in found for path in (damage.done, damage.scales) if path is not None)
    paths = [path for path in (*useless, *(damage.path for damage in beyond)) if path.exists()]
    if not paths:
        return "add --repair to write them anew, or run the `loffta extract` that made them"
    remove = shlex.join(["rm", *(["-r"] if any(path.is_dir() for path in paths) else []), *map(str, paths)])
    if any(damage.packed for damage in found):
        return f"delete what is damaged, and run the `loffta pack` that made this copy again:\n    {remove}"
    offer = "" if beyond else "add --repair to write these units anew; or, "
    return f"{offer}to do it with the same `loffta extract` later,\n    {remove}"


def _check_images(cache: Cache, stop: StopFlag) -> list[dict[str, Any]]:
    from loffta.extraction.recheck import verify_images
    from loffta.images.sources import open_source

    looking = "comparing images; nothing was changed by that"
    altered = list(stop.each(verify_images(cache, open_source(cache.table.source)), looking))
    for image in altered:
        show(f"row {image.row}, {image.key}: {image.what}")
    if not altered:
        show("every image is the one that was extracted")
    return [vars(image) for image in altered]


def _compare(cache: Cache, n_images: int, device: str, stop: StopFlag) -> list[dict[str, Any]]:
    from loffta.extraction.begin import backbone_loader
    from loffta.images.sources import open_source
    from loffta.machine import process
    from loffta.online.recompute import recompute

    process.cap_threads()
    load = backbone_loader(process.resolve_device(device))
    looking = "comparing features; nothing was changed by that"
    compared = list(stop.each(recompute(cache, open_source(cache.table.source), load, n_images), looking))
    _show_compared(compared)
    return [vars(entry) for entry in compared]


def _show_compared(compared: Sequence[Comparison]) -> None:
    """A line for each tap, under its array."""
    from loffta.machine.terminal import Table

    def cells(entry: Comparison) -> tuple[str, ...]:
        figures = (f"{entry.relative_rms:.1e}", f"{entry.tolerance:.0e}", f"{entry.max_abs:.1e}")
        state = "agrees" if entry.agrees else "DISAGREES"
        return entry.tap, state, *(("", "", "") if entry.what else figures), str(entry.images), entry.worst

    heads = ("tap", "features", "relative RMS", "allowed", "largest", "images", "worst image")
    table = Table([cells(entry) for entry in compared], heads, right={2, 3, 4, 5}, indent=2)
    for array, entries in groupby(compared, key=lambda entry: entry.array):
        show(f"{array}:")
        show_lines(table.head())
        for entry in entries:
            show_lines(table.lines(cells(entry), *([entry.what] if entry.what else [])))


def _refuse(cache: Cache, altered: list[dict[str, Any]], apart: list[dict[str, Any]]) -> None:
    """Raises DamageFound for features that do not belong to the images or weights that there are now."""
    from loffta.errors import DamageFound

    images = [entry for entry in altered if entry["target"] is None]
    if altered and not images:
        drop = shlex.join(["loffta", "drop", str(cache.paths.root), f"targets:{altered[0]['target']}"])
        raise DamageFound(
            f"{len(altered)} dense {plural(len(altered), 'target is', 'targets are')} not what is cached, the first "
            f"of {altered[0]['key']}: {altered[0]['what']}",
            where=cache.table.source,
            remedy=f"to take them as they are now: {drop}\n    then the same `loffta extract` with --targets",
        )
    if images:
        altered, first = images, images[0]
        differ = plural(len(altered), "image is not the one that was", "images are not those that were")
        raise DamageFound(
            f"{len(altered)} {differ} extracted, the first {first['key']}: {first['what']}",
            where=cache.table.source,
            remedy="bring the old images back, or extract the set as it is now into a new cache (--cache OTHER)",
        )
    if apart:
        first = apart[0]
        drop = shlex.join(["loffta", "drop", str(cache.paths.root), first["array"].partition("/")[0]])
        raise DamageFound(
            f"{len(apart)} {plural(len(apart), 'tap disagrees', 'taps disagree')} with fresh features, the first "
            f"{first['array']}, {first['tap']}, image {first['worst']}",
            where=cache.paths.root,
            remedy="did images or libraries change? `loffta verify CACHE --images` tells the former, `versions` in the "
            f"store's zarr.json the latter.\n    To make the features anew: {drop}\n    then the same `loffta extract`",
        )

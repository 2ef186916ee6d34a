"""`loffta verify`: lists damage, and mends it when told; exit code 4 when there is any left."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .common import emit, json_option, show


@click.command("verify")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte, not only the checksums.")
@click.option("--repair", is_flag=True, help="Extract the damaged units anew, and no others.")
@json_option
def command(cache: Path, deep: bool, repair: bool, as_json: bool) -> None:
    """Check every finished unit of CACHE against the checksums written with it."""
    from loffta.errors import DamageFound
    from loffta.machine import StopFlag
    from loffta.store.cache import Cache
    from loffta.store.purge import lost_metadata
    from loffta.store.verify import verify

    stop = StopFlag().listen()
    looking = "looking for damage; nothing was changed by that"
    opened = Cache.open(cache)
    lost = lost_metadata(opened)
    found = list(stop.each(verify(opened, deep=deep), looking))
    for damage in found:
        show(f"{damage.array}, unit {damage.unit}: {damage.what} ({damage.path})")
    for name in lost:
        show(f"{name}: its zarr.json is gone")
    repaired = 0
    if found and repair:
        from loffta.repair import repair as repair_units

        repaired = repair_units(opened, found, stop)
        found = list(stop.each(verify(Cache.open(cache), deep=deep), looking))
        click.echo(f"{repaired} units written anew")
    if not found and not lost:
        click.echo("no damage found" if deep else "no damage found in the checksums; --deep reads every byte")
    damaged = [vars(damage) for damage in found]
    emit({"damaged": damaged, "lost_metadata": lost, "deep": deep, "repaired": repaired}, as_json)
    if lost:
        raise DamageFound(
            f"{len(found)} units are damaged, and the zarr.json is gone of {', '.join(lost)}",
            where=cache,
            remedy="was the file system purged? Run the `loffta extract` that made them again",
        )
    if found:
        done = " ".join(shlex.quote(str(damage.done)) for damage in found)
        raise DamageFound(
            f"{len(found)} units are damaged",
            where=cache,
            remedy="add --repair to write these units anew; or, to do it with the same `loffta extract` later,\n"
            f"    rm {done}",
        )

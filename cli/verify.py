"""`loffta verify`: lists damage, and mends it when told; exit code 4 when there is any left."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .common import emit, json_option


@click.command("verify")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte, not only the checksums.")
@click.option("--repair", is_flag=True, help="Extract the damaged units anew, and no others.")
@json_option
def command(cache: Path, deep: bool, repair: bool, as_json: bool) -> None:
    """Check every finished unit of CACHE against the checksums written with it."""
    from loffta.errors import DamageFound
    from loffta.store.cache import Cache
    from loffta.store.verify import verify

    opened = Cache.open(cache)
    found = list(verify(opened, deep=deep))
    for damage in found:
        click.echo(f"{damage.array}, unit {damage.unit}: {damage.what} ({damage.path})")
    repaired = 0
    if found and repair:
        from loffta.machine import StopFlag
        from loffta.repair import repair as repair_units

        repaired = repair_units(opened, found, StopFlag().listen())
        found = list(verify(Cache.open(cache), deep=deep))
        click.echo(f"{repaired} units written anew")
    if not found:
        click.echo("no damage found" if deep else "no damage found in the checksums; --deep reads every byte")
    emit({"damaged": [vars(damage) for damage in found], "deep": deep, "repaired": repaired}, as_json)
    if found:
        scales = dict.fromkeys(damage.scales for damage in found if damage.scales is not None)
        useless = [path for path in (*(damage.done for damage in found), *scales) if path.exists()]
        remove = shlex.join(["rm", *(["-r"] if scales else []), *map(str, useless)])
        raise DamageFound(
            f"{len(found)} units are damaged",
            where=cache,
            remedy="add --repair to write these units anew; or, to do it with the same `loffta extract` later,\n"
            f"    {remove}",
        )

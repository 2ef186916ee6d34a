"""`loffta verify`: lists damage, exit code 4 when there is any."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .common import emit, json_option


@click.command("verify")
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte, not only the checksums.")
@json_option
def command(cache: Path, deep: bool, as_json: bool) -> None:
    """Check every finished unit of CACHE against the checksums written with it."""
    from loffta.errors import DamageFound
    from loffta.store.cache import Cache
    from loffta.store.verify import verify

    found = list(verify(Cache.open(cache), deep=deep))
    for damage in found:
        click.echo(f"{damage.array}, unit {damage.unit}: {damage.what} ({damage.path})")
    if not found:
        click.echo("no damage found" if deep else "no damage found in the checksums; --deep reads every byte")
    emit({"damaged": [vars(damage) for damage in found], "deep": deep}, as_json)
    if found:
        done = " ".join(shlex.quote(str(damage.done)) for damage in found)
        raise DamageFound(
            f"{len(found)} units are damaged",
            where=cache,
            remedy=f"rm {done}\n    and run the same `loffta extract` again: only these units are written anew",
        )

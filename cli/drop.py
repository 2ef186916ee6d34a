"""`loffta drop`: removes a store or an array after asking."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .common import emit, human_bytes, json_option, show


@click.command("drop")
@click.argument("cache", type=click.Path(path_type=Path))
@click.argument("target", metavar="STORE[:ARRAY]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def command(cache: Path, target: str, yes: bool, as_json: bool) -> None:
    """Remove STORE, or one ARRAY of it, from CACHE and print the bytes freed.

    Names are those of `loffta info`. What is dropped has to be extracted anew.
    """
    from loffta.errors import UsageError
    from loffta.store.cache import Cache
    from loffta.store.drop import count_bytes, drop, find_target
    from loffta.terminal import columns, wrap

    opened = Cache.open(cache)
    store, arrays = find_target(opened, target)
    n_bytes = count_bytes(opened, store, arrays)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask on", where="loffta drop", remedy="add --yes")
        question = f"Remove {target}, {human_bytes(n_bytes)} of {store.info.label}?"
        click.confirm("\n".join(wrap(question, columns() - len(" [y/N]: "))), abort=True, err=True)
    drop(opened, store, arrays)
    show(f"{human_bytes(n_bytes)} freed")
    emit({"dropped": target, "bytes": n_bytes}, as_json)

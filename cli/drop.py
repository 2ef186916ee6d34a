"""`loffta drop`: removes a store or an array after asking."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from loffta.words import human_size

from .common import emit, json_option, show


@click.command("drop")
@click.argument("cache", type=click.Path(path_type=Path))
@click.argument("target", metavar="STORE[:ARRAY]|labels:NAME|targets[:KIND]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def command(cache: Path, target: str, yes: bool, as_json: bool) -> None:
    """Remove STORE, one ARRAY of it, a set of labels, or dense targets, from CACHE and print the bytes freed.

    Names are those of `loffta info`. Features that are dropped have to be extracted anew; targets, too, without them.
    """
    from loffta.errors import LofftaError, UsageError
    from loffta.machine.terminal import columns, wrap
    from loffta.store.cache import Cache
    from loffta.store.drop import drop, find_target

    opened = Cache.open(cache)
    found = find_target(opened, target)
    n_bytes = found.count_bytes()
    try:
        label = opened.store_info(found.store).label
    except LofftaError:  # half dropped, or damaged
        label = found.store
    for link in found.links:
        show(f"{link} is a link: what it leads to, {link.resolve()}, is removed, too")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask on", where="loffta drop", remedy="add --yes")
        question = f"Remove {target}, {human_size(n_bytes)} of {label}?"
        click.confirm("\n".join(wrap(question, columns() - len(" [y/N]: "))), abort=True, err=True)
    drop(found)
    show(f"{human_size(n_bytes)} freed")
    emit({"dropped": target, "bytes": n_bytes}, as_json)

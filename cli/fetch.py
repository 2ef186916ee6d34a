"""`loffta fetch`: downloads weights on a machine that has a network, for `extract` on one that has none."""

from __future__ import annotations

from dataclasses import asdict

import click

from loffta.words import human_size

from .common import emit, json_option, show


@click.command("fetch")
@click.argument("backbones", nargs=-1, required=True, metavar="BACKBONE...")
@json_option
def command(backbones: tuple[str, ...], as_json: bool) -> None:
    """Download the hub weights of BACKBONEs (short names or timm ids) into the Hugging Face cache.

    `extract --weights hub` finds them there without a network. What is there already is not asked for again.
    """
    from loffta.backbones.fetch import environment, fetch
    from loffta.zoo.names import resolve_name

    fetched = []
    for timm_id in [
        resolve_name(name, where="loffta fetch") for name in backbones
    ]:  # a misspelt name downloads nothing
        fetched.append(fetch(timm_id))
        state = "downloaded" if fetched[-1].downloaded else "already there"
        show(f"{timm_id}: {state}, {human_size(fetched[-1].n_bytes)}, {fetched[-1].path}")
    show(f"on the compute node: export {environment()}")
    emit({"fetched": [asdict(item) for item in fetched], "environment": environment()}, as_json)

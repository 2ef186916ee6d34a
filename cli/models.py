"""`loffta models`: the backbones, what they take and give, as text or JSON."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from loffta.machine.terminal import Table
from loffta.words import human_size

from .common import emit, json_option, show, show_lines

if TYPE_CHECKING:
    from loffta.zoo.catalogue import Listing
    from loffta.zoo.names import Facts


@click.command("models")
@click.argument("query", required=False)
@json_option
def command(query: str | None, as_json: bool) -> None:
    """List backbones with their short names; needs no weights and no network.

    QUERY: letters of a name or of the advice (dinov2, dense), a timm id, or a pattern over all of timm's
    ('vit_*dinov2*'). Every timm id is a backbone, listed here or not.

    prefix: class tokens + registers. bytes/tap: of one image, grid and prefix in float16.
    """
    from loffta.zoo.catalogue import find_models
    from loffta.zoo.names import FAMILIES

    listings = find_models(query, _measure)
    rows = [_row(listing) for listing in listings]
    table = Table(rows, HEAD)
    show_lines(table.head())
    for family, group in groupby(zip(listings, rows, strict=True), key=lambda pair: pair[0].family):
        show("")
        show(f"{family}: {FAMILIES[family].advice}" if family else "Not in the zoo")
        for listing, row in group:
            show_lines(table.lines(row, *([f"not measured: {listing.problem}"] if listing.problem else [])))
    emit({"models": [_plain(listing) for listing in listings]}, as_json)


def _measure(timm_id: str) -> Facts:
    from loffta.backbones.measure import measure  # seconds of imports, which the zoo itself does without

    return measure(timm_id)


HEAD = ("name", "px", "taps", "grid", "width", "prefix", "bytes/tap", "params", "licence", "timm id")


def _row(listing: Listing) -> tuple[str, ...]:
    facts = listing.facts
    if facts is None:
        return (listing.name, *[""] * (len(HEAD) - 2), listing.timm_id)
    sides, widths = zip(*facts.taps, strict=True)
    return (
        listing.name,
        str(facts.px),
        f"{facts.kind}.0-{len(facts.taps) - 1}",
        _span([f"{side}x{side}" for side in sides]),
        _span([str(width) for width in widths]),
        f"{facts.n_class}+{facts.n_registers}",
        _span([human_size(n_bytes) for n_bytes in facts.tap_bytes()]),
        f"{facts.n_params} M",
        facts.licence or "not stated",
        listing.timm_id,
    )


def _span(values: list[str]) -> str:
    """The first and the last of values that differ: 56x56..7x7."""
    return values[0] if values[0] == values[-1] else f"{values[0]}..{values[-1]}"


def _plain(listing: Listing) -> dict[str, Any]:
    from loffta.zoo.names import FAMILIES

    advice = FAMILIES[listing.family].advice if listing.family else None
    named = {"name": listing.name, "timm_id": listing.timm_id, "family": listing.family, "advice": advice}
    return named | ({"problem": listing.problem} if listing.facts is None else _facts(listing.facts))


def _facts(facts: Facts) -> dict[str, Any]:
    return {
        "image_px": facts.px,
        "mean": facts.mean,
        "std": facts.std,
        "interpolation": facts.interpolation,
        "licence": facts.licence or None,
        "params_m": facts.n_params,
        "class_tokens": facts.n_class,
        "registers": facts.n_registers,
        "taps": [
            {"tap": f"{facts.kind}.{i}", "height": side, "width": side, "dim": dim, "bytes": n_bytes}
            for i, ((side, dim), n_bytes) in enumerate(zip(facts.taps, facts.tap_bytes(), strict=True))
        ],
    }

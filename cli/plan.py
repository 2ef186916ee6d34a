"""`loffta plan`: the options of extract in, one call of loffta.extraction.plan.run, a table out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loffta.machine.terminal import Table, wrap
from loffta.words import human_size, plural

from .common import emit, show_lines
from .extract import command as extract
from .extract import read_options

_LABEL = 9  # columns of the word that begins a paragraph

if TYPE_CHECKING:
    from loffta.extraction.plan import ArrayPlan, BreakEven, Plan, Timing

_sample = click.Option(
    ["--sample"], type=click.IntRange(min=0), metavar="N", help="Time about N images; 0: none.  [3 batches]"
)


@click.command("plan", params=[*extract.params, _sample])
@click.pass_context
def command(ctx: click.Context, /, file: Path | None, as_json: bool, sample: int | None, **options: Any) -> None:
    """Show what `loffta extract` with the same options would take: bytes, files, hours.

    Nothing is written to the cache. Where the cache exists, only what is missing is counted.
    """
    from loffta.extraction.plan import run

    plan = run(read_options(ctx, file, options), sample=sample)
    show_lines(describe(plan))
    emit(asdict(plan) | {"bytes": plan.bytes, "files": plan.files}, as_json)


def describe(plan: Plan) -> list[str]:
    """The lines of the table and below it, as wide as the terminal."""
    state = f"{plan.images_missing:,} not yet in the cache" if plan.exists else "a new cache"
    images = f"{plan.images:,} {plural(plan.images, 'image')}"
    units = f"{plan.units} {plural(plan.units, 'unit')} of {plan.unit_images}"
    rows = [_cells(array, plan.units) for array in plan.arrays]
    rows += [("metadata", "", human_size(plan.metadata_bytes), str(plan.metadata_files), "", "", "")]
    rows += [("total", "", human_size(plan.bytes), f"{plan.files:,}", "", "", "")]
    table = Table(rows, ("store", "array", "bytes", "files", "units missing", "an image", "taps"), right={2, 3, 4})
    lines = [*wrap(f"{plan.source}: {images} in {units}, {state}"), "", *table.head()]
    lines += [line for row in rows for line in table.lines(row)]
    return [*lines, "", *(line for text in _notes(plan) for line in wrap(text, hang=_LABEL))]


def _notes(plan: Plan) -> list[str]:
    """What there is room for, what it takes and what would take less, a paragraph each."""
    free = f"{plan.room.files:,} files" if plan.room.files is not None else "files not counted"
    lines = [f"free     {human_size(plan.room.bytes)}, {free}"]
    if plan.quota is not None:
        left = human_size(plan.quota.bytes) if plan.quota.bytes is not None else "no limit on bytes"
        files = f"{plan.quota.files:,} files" if plan.quota.files is not None else "no limit on files"
        lines.append(f"quota    {left}, {files} left ({plan.quota.tool})")
    lines += [f"WARNING  it does not fit: {short}" for short in plan.shortages]
    if plan.timing is not None and plan.extract_s is not None:
        lines += _time_lines(plan, plan.timing, plan.extract_s)
    if plan.break_even is not None:
        lines.append(f"epochs   {_epochs(plan.break_even)}")
    return lines + [f"less     {advice}" for advice in plan.advice]


def _cells(array: ArrayPlan, units: int) -> tuple[str, ...]:
    span = f"{array.taps[0]} .. {array.taps[-1]}" if len(array.taps) > 1 else "".join(array.taps)
    shape = f"{'x'.join(map(str, array.shape))} {array.dtype}"
    size = human_size(array.shard_bytes + array.done_bytes)
    return (array.store, array.kind, size, f"{array.files:,}", f"{array.units_missing}/{units}", shape, span)


def _time_lines(plan: Plan, timing: Timing, extract_s: float) -> list[str]:
    warm = "after a warm-up" if timing.warmed_up else "without a warm-up: too few images"
    feature_bytes = sum(array.shard_bytes for array in plan.arrays)
    needed = feature_bytes / extract_s if extract_s else 0.0
    missing = f"{plan.images_missing:,} {plural(plan.images_missing, 'image')}"
    return [
        f"time     {_hours(extract_s)} for {missing} at {1 / timing.image_s:,.1f}/s on "
        f"{timing.device} (median of {timing.batches} {plural(timing.batches, 'batch', 'batches')} of "
        f"{timing.batch_size}, {timing.images} {plural(timing.images, 'image')}, {warm})",
        f"         writing was not measured: it must keep up with {human_size(needed)}/s",
    ]


def _epochs(even: BreakEven) -> str:
    how = "measured on this cache's shards" if even.read_measured else "assumed: no shards to measure with"
    compared = (
        f"online {_hours(even.online_epoch_s)} (networks alone, measured), cached {_hours(even.cached_epoch_s)} "
        f"(every byte once at {human_size(even.read_rate)}/s, {how})"
    )
    if even.epochs is None:
        return f"{compared}: reading takes as long as computing, a cache does not pay"
    return f"{compared}: the cache pays after at most {even.epochs:.1f} epochs"


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

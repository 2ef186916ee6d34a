"""Writes damaged units of dense targets anew: from the source those at their own sizes, from these their squares.

In: what `store.verify` found.   Out: the same units, by what is said of them in the cache. Where squares alone are
damaged, the image set is not needed. Called by `repair`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from loffta.errors import DamageFound, LofftaError
from loffta.extraction.target_alone import seen_images, write_alone
from loffta.extraction.target_writer import TargetWriter
from loffta.extraction.targets import DEFAULT_PX, Dense, Square, box_square, native_files, pixel_geometry, stated_info
from loffta.images.batches import decoding_threads
from loffta.images.sources import open_source
from loffta.machine import process
from loffta.store.cache import Cache
from loffta.store.ledger import done_units
from loffta.store.paths import TARGETS, THUMB
from loffta.store.sink import UnitSink
from loffta.store.table import ImageTable
from loffta.store.target_files import read_made
from loffta.store.targets import TargetInfo, geometry_name, geometry_of
from loffta.store.verify import Damage
from loffta.targets import TARGET_KINDS, TargetKind


def is_dense(array: str) -> bool:
    """Whether the name is one of dense targets."""
    owner, _, name = array.partition("/")
    return owner == TARGETS and name != THUMB


def repair_targets(cache: Cache, damages: Sequence[Damage], stop: process.StopFlag) -> int:
    """Writes these units anew, which were set aside, and returns how many units."""
    units = sorted({damage.unit for damage in damages if damage.unit is not None})
    if not units:
        return 0
    dense = [_dense(cache, kind) for kind in TARGET_KINDS if any(_kind(damage.array) == kind for damage in damages)]
    arrays = cache.arrays()
    asked = {unit: sorted(seen_images(arrays, unit, cache.rows_of_unit(unit))) for unit in units}
    reading = any(not one.native.has_unit(unit, rows) for one in dense for unit, rows in asked.items())
    source = open_source(cache.table.source) if reading else _NoSource()
    with (
        decoding_threads(process.available_cpus()) as pool,
        UnitSink(torch.device("cpu")) as sink,
        TargetWriter(cache, dense, source, pool, sink) as targets,
    ):
        write_alone(cache, arrays, asked, targets, stop)
    return targets.units


def _kind(array: str) -> str:
    """`mask` of targets/native/mask and of targets/mask-squash."""
    return array.rpartition("/")[2].partition("-")[0]


def _dense(cache: Cache, kind: TargetKind) -> Dense:
    """A kind with all squares that it has, as their own metadata say.

    Raises:
        LofftaError: none of them can be read any more.
    """
    names = [name for name in cache.paths.training_names() if _kind(name) == kind]
    arrays = [cache.target_array(name) for name in cache.paths.target_arrays() if name in names]
    info = stated_info(cache, kind)
    if info is None and arrays:
        info = TargetInfo(kind, tuple(arrays[0].layout.attributes["classes"]))
    if info is None:
        raise _unknown(cache, kind)
    squares = [Square(pixel_geometry(a.layout.attributes["geometry"], a.layout.shape[1]), a) for a in arrays]
    if kind == "boxes":
        squares = [_boxes(cache, info, name) for name in names]
    return Dense(info, native_files(cache, info), tuple(squares))


def _boxes(cache: Cache, info: TargetInfo, name: str) -> Square:
    """By a unit that is sound, else by the store whose squares they are of."""
    paths = cache.paths.target_files(name)
    for unit in done_units(paths):
        with suppress(DamageFound):
            made = read_made(paths.done(unit))
            return box_square(cache, info, made["geometry"], made["px"])
    for store in cache.stores():
        geometry = geometry_of(store.info.recipe)
        if name == f"boxes-{geometry_name(geometry)}":
            return box_square(cache, info, geometry, DEFAULT_PX)
    raise _unknown(cache, "boxes")


def _unknown(cache: Cache, kind: TargetKind) -> LofftaError:
    return LofftaError(
        f"nothing is left that says how the targets '{kind}' were made",
        where=cache.paths.root,
        remedy=f"run the `loffta extract` that made them, with --targets {kind}: it writes them anew",
    )


class _NoSource:
    """Where nothing is read from the image set, which may be gone."""

    def listing(self) -> ImageTable:
        raise AssertionError("nobody lists")

    def read(self, key: str) -> bytes:
        raise AssertionError(f"nobody reads {key}")

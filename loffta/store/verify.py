"""Finds damage: bytes on disk that are not the bytes that the done files vouch for.

Reads only. A replaced shard is found as well as a damaged one, because done files keep each chunk's crc32c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from crc32c import crc32c

from loffta.errors import DamageFound
from loffta.progress import Progress
from loffta.store.arrow import to_numbers
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import OK, done_units, read_done, scales_of
from loffta.store.metadata import CRC_BYTES
from loffta.store.paths import ArrayPaths
from loffta.store.scales import has_scales, read_scales
from loffta.store.shard import MISSING, read_index, read_into

_REPAIR = "run `loffta verify CACHE --repair`"


@dataclass(frozen=True)
class Damage:
    """One unit of one array that is not as it was written."""

    array: str
    unit: int
    what: str
    path: Path  # the damaged file
    done: Path  # deleting it makes `extract` write the unit anew
    scales: Path | None = None  # an int8 array's scales, where they have to go with it


def verify(cache: Cache, *, deep: bool = False) -> Iterator[Damage]:
    """Checks every finished unit of every array.

    Args:
        deep: also reads every byte of data; without it the crc32c that stands behind each chunk is compared.
    """
    arrays = cache.arrays()
    n_units = sum(len(done_units(array.paths)) for array in arrays)
    with Progress("verify --deep" if deep else "verify", n_units, "units") as progress:
        for array in arrays:
            faults = _scales_faults(array)
            for done in sorted({*(array.paths.done(unit) for unit in done_units(array.paths)), *faults}):
                unit = int(done.stem[1:])
                path = array.paths.shard(unit, array.layout.ndim)
                try:
                    if done in faults:
                        yield faults[done]
                    else:
                        _check_unit(cache, array, unit, done, path, deep=deep)
                except DamageFound as error:
                    yield Damage(array.paths.name, unit, error.what, Path(error.where), done)
                progress.advance(1)


def _scales_faults(array: CachedArray) -> dict[Path, Damage]:
    """By done file: units of an int8 array that cannot be decoded, for its scales are gone, damaged or exchanged."""
    if array.layout.dtype != np.int8:
        return {}
    paths = array.paths
    said = dict(_scales_said(paths))

    def fault(what: str, done: Path, useless: Path | None) -> Damage:
        return Damage(paths.name, int(done.stem[1:]), what, paths.scales, done, useless)

    if not said and not has_scales(paths):
        return {}  # extraction has only just begun
    try:
        digest = read_scales(paths, array.layout).digest
    except DamageFound as error:  # without a unit to blame, the first one brings new scales
        return {done: fault(error.what, done, paths.scales) for done in said or [paths.done(0)]}
    wrong = [done for done in said if said[done] != digest]
    useless = paths.scales if len(wrong) == len(said) else None  # scales that some unit vouches for stay
    return {done: fault("it was written with other scales than its array has now", done, useless) for done in wrong}


def _scales_said(paths: ArrayPaths) -> Iterator[tuple[Path, str | None]]:
    """Each readable done file with the digest of the scales that its unit was written with."""
    for done in sorted(paths.done_folder.glob("u*.parquet")):
        with suppress(DamageFound):  # _check_unit names it
            yield done, scales_of(read_done(done))


def _check_unit(cache: Cache, array: CachedArray, unit: int, done: Path, path: Path, *, deep: bool) -> None:
    """Raises DamageFound for the first fault of a unit."""
    table = read_done(done)
    layout = array.layout
    rows, statuses, crc_lists = (
        to_numbers(table["row"]).tolist(),
        table["status"].to_pylist(),
        table["crc32c"].to_pylist(),
    )
    first = unit * layout.unit_images
    if rows != sorted({*rows}.intersection(range(first, first + layout.unit_images))):
        raise DamageFound("done file lists rows of another unit", where=done, remedy=_REPAIR)
    # While a part-filled unit is written anew, its shard is in place before its done file. Until then the shard must
    # agree with itself alone: another batch size may have changed the last bits of its rows.
    vouched = len(rows) >= len(cache.rows_of_unit(unit))
    n_chunks = layout.unit_images * layout.chunks_per_image
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise DamageFound("the shard of a finished unit is gone", where=path, remedy=_REPAIR) from None
    try:
        index = read_index(fd, n_chunks, at_end=layout.index_at_end, path=path)
        for row, status, crcs in zip(rows, statuses, crc_lists, strict=True):
            entries = index[(row - first) * layout.chunks_per_image :][: layout.chunks_per_image]
            if status == OK:
                _check_image(fd, array, row, entries, crcs if vouched else None, path, deep=deep)
            elif vouched and (entries[:, 0] != MISSING).any():
                raise DamageFound(f"row {row} is quarantined and yet has data", where=path, remedy=_REPAIR)
    finally:
        os.close(fd)


def _check_image(
    fd: int, array: CachedArray, row: int, entries: np.ndarray, crcs: list[int] | None, path: Path, *, deep: bool
) -> None:
    """Compares one image's chunks with their stored crc32c, and that with `crcs` of the done file where it vouches."""
    size = array.layout.chunk_bytes
    for i, (offset, length) in enumerate(entries.tolist()):
        what = f"row {row}, {array.taps[i]}" if len(entries) > 1 else f"row {row}"
        if length != size + CRC_BYTES:
            raise DamageFound(f"{what}: a chunk is missing or has another length", where=path, remedy=_REPAIR)
        stored = bytearray(CRC_BYTES)
        read_into(fd, [memoryview(stored)], offset + size, path=path)
        crc = int.from_bytes(stored, "little")
        if crcs is not None and crcs[i : i + 1] != [crc]:
            raise DamageFound(f"{what}: another chunk than the one that was written", where=path, remedy=_REPAIR)
        if deep:
            data = bytearray(size)
            read_into(fd, [memoryview(data)], offset, path=path)
            if crc32c(data) != crc:
                raise DamageFound(f"{what}: the bytes do not match their crc32c", where=path, remedy=_REPAIR)

"""Finds damage: bytes on disk that are not the bytes that the done files vouch for.

Reads only. A replaced shard is found as well as a damaged one, because done files keep each chunk's crc32c.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from crc32c import crc32c

from loffta.errors import DamageFound
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import OK, read_done
from loffta.store.metadata import CRC_BYTES
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


def verify(cache: Cache, *, deep: bool = False) -> Iterator[Damage]:
    """Checks every finished unit of every array.

    Args:
        deep: also reads every byte of data; without it the crc32c that stands behind each chunk is compared.
    """
    for array in cache.arrays():
        for done in sorted(array.paths.done_folder.glob("u*.parquet")):
            unit = int(done.stem[1:])
            path = array.paths.shard(unit, array.layout.ndim)
            try:
                _check_unit(cache, array, unit, done, path, deep=deep)
            except DamageFound as error:
                yield Damage(array.paths.name, unit, error.what, Path(error.where), done)


def _check_unit(cache: Cache, array: CachedArray, unit: int, done: Path, path: Path, *, deep: bool) -> None:
    """Raises DamageFound for the first fault of a unit."""
    table = read_done(done)
    layout = array.layout
    rows, statuses, crc_lists = (table[name].to_pylist() for name in ("row", "status", "crc32c"))
    first = unit * layout.unit_images
    if rows != list(range(first, first + len(rows))) or len(rows) > layout.unit_images:
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

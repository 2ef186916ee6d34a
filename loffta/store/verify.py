"""Finds damage: bytes on disk that are not the bytes that the done files vouch for.

Reads only. A replaced shard is found as well as a damaged one, because done files keep each chunk's crc32c. Of packed
chunks that is the crc32c of what they unpack to: every byte of a packed array is read, deep or not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from crc32c import crc32c

from loffta.errors import DamageFound, LofftaError
from loffta.machine.progress import Progress
from loffta.store.arrow import to_numbers
from loffta.store.cache import Cache, CachedArray
from loffta.store.checks import unit_fault
from loffta.store.codecs import ChunkCodec
from loffta.store.label_sets import take_sets
from loffta.store.ledger import (
    OK,
    done_units,
    forget_set_aside,
    made_of,
    read_done,
    rows_fault,
    scales_of,
    stated_layouts,
    waiting_units,
)
from loffta.store.metadata import CRC_BYTES, ArrayLayout, read_layout
from loffta.store.paths import LABELS, THUMB, ArrayPaths, UnitPaths
from loffta.store.purge import still_missing
from loffta.store.reads import open_file
from loffta.store.scales import has_scales, read_scales
from loffta.store.shard import MISSING, read_index, read_into
from loffta.store.target_verify import check_target_unit

_REPAIR = "run `loffta verify CACHE --repair`"


@dataclass(frozen=True)
class Damage:
    """One unit of one array, the metadata of an array or a store, or a set of labels, that is not as it was written."""

    array: str  # or targets/..., or the store's name, or labels/<name>
    unit: int | None  # None: the damage is in its metadata
    what: str
    path: Path  # the damaged file
    done: Path | None = None  # of the unit; deleting it makes `extract` write the unit anew
    scales: Path | None = None  # an int8 array's scales, where they have to go with it
    layout: ArrayLayout | None = None  # what the array's zarr.json should say, where its done files agree on that
    packed: bool = False  # of a packed array: extraction cannot write it anew


def verify(cache: Cache, *, deep: bool = False) -> Iterator[Damage]:
    """Checks the metadata of every store and array, and every finished unit.

    Args:
        deep: also reads every byte of plain data; without it the crc32c that stands behind each chunk is compared.
    """
    arrays, damages = open_arrays(cache)
    yield from damages
    still_missing(cache, arrays)  # waits for shards that show late: what is found missing below is missing
    for path, what in take_sets(cache)[1]:
        yield Damage(f"{LABELS}/{path.stem}", None, what, path)
    files = cache.paths.file_targets()
    n_units = sum(len(done_units(paths)) for paths in (*(array.paths for array in arrays), *files))
    with Progress("verify --deep" if deep else "verify", n_units, "units") as progress:
        for array in arrays:
            faults = _scales_faults(array)
            yield from _waiting(array.paths)
            for done in sorted({*(array.paths.done(unit) for unit in done_units(array.paths)), *faults}):
                unit = int(done.stem[1:])
                path = array.paths.shard(unit, array.layout.ndim)
                try:
                    if done in faults:
                        yield faults[done]
                    else:
                        _check_unit(cache, array, unit, done, path, deep=deep)
                except DamageFound as error:
                    packed = array.layout.codec is not None
                    yield Damage(array.paths.name, unit, error.what, Path(error.where), done, packed=packed)
                progress.advance(1)
        for paths in files:
            yield from _waiting(paths)
            for unit in done_units(paths):
                try:
                    check_target_unit(cache, paths, unit, deep=deep)
                except DamageFound as error:
                    yield Damage(paths.name, unit, error.what, Path(error.where), paths.done(unit))
                progress.advance(1)


def _waiting(paths: UnitPaths) -> Iterator[Damage]:
    for unit in waiting_units(paths):
        yield Damage(
            paths.name, unit, "it was damaged, and is not written anew yet", paths.damaged(unit), paths.done(unit)
        )


def tidy(cache: Cache) -> None:
    """Deletes what a repair leaves that was cut off behind a unit: the old done file of one that is sound again."""
    for paths in (*(array.paths for array in open_arrays(cache)[0]), *cache.paths.file_targets()):
        if paths.damaged_folder.exists():
            forget_set_aside(paths)


def open_arrays(cache: Cache) -> tuple[list[CachedArray], list[Damage]]:
    """Every array whose layout is known, and what is wrong with the metadata of stores and arrays."""
    found: list[CachedArray] = []
    damages: list[Damage] = []

    def add(paths: ArrayPaths, opening: Callable[[], CachedArray], due: ArrayLayout | None) -> None:
        try:
            found.append(opening())
        except DamageFound as error:
            said = [due] if due is not None else stated_layouts(paths, len(cache.table))
            due = said[0] if len(said) == 1 else None
            if due is None and len(said) > 1 and _is_plain(paths):  # some units are another array's: they are named
                found.append(cache.read_array(paths))
                return
            if due is not None:
                found.append(CachedArray(paths, due, images=cache.table))
            damages.append(Damage(paths.name, None, error.what, paths.metadata, layout=due))

    thumbs = cache.paths.target(THUMB)
    if thumbs.metadata.exists():
        add(thumbs, cache.thumbs, cache.thumb_layout)
    for name in cache.paths.target_arrays():
        add(cache.paths.target(name), partial(cache.target_array, name), None)
    for name in cache.paths.store_names():
        try:
            info = cache.store_info(name)
        except DamageFound as error:
            damages.append(Damage(name, None, error.what, Path(error.where)))
            continue
        for array in cache.paths.array_names(name):
            add(cache.paths.array(name, array), partial(cache.array, name, array, info), None)
    return found, damages


def _is_plain(paths: ArrayPaths) -> bool:
    with suppress(LofftaError):
        return read_layout(paths.metadata) is not None
    return False


def _scales_faults(array: CachedArray) -> dict[Path, Damage]:
    """By done file: units of an int8 array that cannot be decoded, for its scales are gone, damaged or exchanged."""
    if array.layout.dtype != np.int8:
        return {}
    paths = array.paths
    said = dict(_scales_said(paths))

    def fault(what: str, done: Path, useless: Path | None) -> Damage:
        return Damage(paths.name, int(done.stem[1:]), what, paths.scales, done, scales=useless)

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
    for done in map(paths.done, done_units(paths)):
        with suppress(DamageFound, FileNotFoundError):  # _check_unit names it
            yield done, scales_of(made_of(read_done(done).schema.metadata))


def _check_unit(cache: Cache, array: CachedArray, unit: int, done: Path, path: Path, *, deep: bool) -> None:
    """Raises DamageFound for the first fault of a unit."""
    try:
        table = read_done(done)
    except FileNotFoundError:  # a drop, or another repair
        return
    layout = array.layout
    rows = to_numbers(table["row"])
    fault = rows_fault(rows, unit, layout.unit_images) or unit_fault(
        made_of(table.schema.metadata), rows, layout, cache.table
    )
    if fault is not None:
        raise DamageFound(fault, where=done, remedy=_REPAIR)
    first = unit * layout.unit_images
    statuses, crc_lists = (table[name].to_pylist() for name in ("status", "crc32c"))
    # While a part-filled unit is written anew, its shard is in place before its done file. Until then the shard must
    # agree with itself alone: another batch size may have changed the last bits of its rows.
    vouched = len(rows) >= len(cache.rows_of_unit(unit))
    n_chunks = layout.unit_images * layout.chunks_per_image
    try:
        fd = open_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DamageFound("the shard of a finished unit is gone", where=path, remedy=_REPAIR) from None
    try:
        index = read_index(fd, n_chunks, at_end=layout.index_at_end, path=path)
        codec = None if layout.codec is None else ChunkCodec(layout, where=array.paths.metadata)
        for row, status, crcs in zip(rows.tolist(), statuses, crc_lists, strict=True):
            entries = index[(row - first) * layout.chunks_per_image :][: layout.chunks_per_image]
            if status == OK and codec is not None:
                _check_packed(fd, array, codec, row, entries, crcs, path)
            elif status == OK:
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


def _check_packed(
    fd: int, array: CachedArray, codec: ChunkCodec, row: int, entries: np.ndarray, crcs: list[int] | None, path: Path
) -> None:
    """Unpacks one image's chunks and compares them with the done file: nobody writes packed units anew in place."""
    chunk = np.empty(array.layout.chunk, array.layout.dtype).reshape(-1)
    for i, (offset, length) in enumerate(entries.tolist()):
        what = f"row {row}, {array.taps[i]}" if len(entries) > 1 else f"row {row}"
        if offset == MISSING:
            raise DamageFound(f"{what}: a chunk is missing", where=path, remedy=_REPAIR)
        stored = bytearray(length)
        read_into(fd, [memoryview(stored)], offset, path=path)
        try:
            crc = codec.decode(stored, chunk)
        except ValueError as error:
            raise DamageFound(f"{what}: {error}", where=path, remedy=_REPAIR) from error
        if crcs is None or crcs[i : i + 1] != [crc]:
            raise DamageFound(f"{what}: another chunk than the one that was packed", where=path, remedy=_REPAIR)

"""Copies a cache in another form: packed, for tape, a quota or a colleague; or unpacked, as extraction wrote it.

In: an open cache, a folder, a codec or none.   Out: a cache there, whose done files are those of the original byte for
byte: they hold the crc32c of every plain chunk, so each copy proves itself against what was extracted.

The order is extraction's: a unit's shard, then its done file; cache.json comes last, so a copy that was stopped is no
cache yet, and the same call goes on where it ended. What a folder has already stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from loffta.errors import DamageFound, LofftaError, UsageError, unknown_name
from loffta.files.documents import from_json
from loffta.files.durable import create_file, make_folder, replace_file, sweep_tree
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.machine.quota import free_room, user_quota
from loffta.store.beside import copy_beside, copy_scales
from loffta.store.cache import Cache, CachedArray
from loffta.store.codecs import ChunkCodec, codec_name, find_codec
from loffta.store.ledger import OK, done_units, read_done
from loffta.store.metadata import ArrayLayout, read_layout
from loffta.store.packed_reader import PackedReader
from loffta.store.paths import ArrayPaths, CachePaths
from loffta.store.purge import all_missing_shards, describe_missing
from loffta.store.reader import ArrayReader
from loffta.store.reads import read_file
from loffta.store.shard import REPAIR_DEEP, ShardWriter
from loffta.store.space import shard_bytes, shortages
from loffta.store.table import MAX_BYTES

_BATCH_BYTES = 32 << 20  # of plain chunks that are read at once
_TRIED_IMAGES = 16  # that tell whether a codec makes an array smaller
_GOES_ON = "units that are finished stay: the same command goes on with the others"


@dataclass(frozen=True)
class CopiedArray:
    """What a copy has of one array."""

    array: str  # <store>/<kind>-<k>
    codec: str | None  # None: plain
    images: int  # settled by done files; of a store that is not finished they are fewer than the cache has
    bytes: int  # of its shards
    plain_bytes: int  # of its shards where it is not packed


@dataclass(frozen=True)
class CopyReport:
    """What a call did, and what the copy has now."""

    cache: str  # the folder of the copy
    images: int  # of the set
    arrays: list[CopiedArray]
    units: int  # written by this call
    seconds: float

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(array.bytes for array in self.arrays)

    @property
    def plain_bytes(self) -> int:
        """Of all shards where none is packed."""
        return sum(array.plain_bytes for array in self.arrays)


def copy_cache(
    cache: Cache, out: Path, *, codec: str | None, store: str | None = None, stop: process.StopFlag
) -> CopyReport:
    """Copies stores with the images, labels and targets that belong to them.

    Args:
        codec: of CODECS; None: plain, as extraction writes it. Arrays that a codec makes larger stay plain.
        store: one alone, by its name; None: all.
    Raises:
        UsageError: no such store or codec, or `out` lies inside the cache.
        LofftaError: the folder holds something else, there is no room, a codec is not installed.
        DamageFound: a chunk is not the one that was extracted.
        Stopped: a signal came.
    """
    start = time.perf_counter()
    names = cache.paths.store_names()
    if store is not None and store not in names:
        raise unknown_name("store", store, names, where=cache.paths.stores)
    arrays = [a for name in ([store] if store else names) for a in cache.store(name).arrays]
    if missing := all_missing_shards(arrays):
        raise DamageFound(describe_missing(missing), where=cache.paths.root, remedy=REPAIR_DEEP)
    copy = CachePaths(out)
    _check_place(cache, copy)
    n_threads = process.available_cpus()
    with ThreadPoolExecutor(n_threads, "loffta-pack") as pool:
        targets = [_Target(array, copy.named(array.paths.name), codec, pool, n_threads) for array in arrays]
        make_folder(out)
        sweep_tree(out)
        if codec is None:
            _check_room(out, targets)
        create_file(copy.images, read_file(cache.paths.images, MAX_BYTES))
        units = sum(len(target.units) for target in targets)
        try:
            with Progress("unpack" if codec is None else "pack", units, "units") as progress:
                for target in targets:
                    target.create(cache)
                    for unit in target.units:
                        stop.check(f"copying; {_GOES_ON}")
                        target.copy_unit(unit)
                        progress.advance(1)
            copy_beside(cache.paths, copy)
        except LofftaError as error:
            error.add_note(_GOES_ON)
            raise
    create_file(copy.config, read_file(cache.paths.config))
    made = Cache.open(out)
    copied = [_describe(made.array(*_names(array), cache.store_info(_names(array)[0]))) for array in arrays]
    return CopyReport(str(out), len(cache.table), copied, units, time.perf_counter() - start)


class _Target:
    """One array, and where its copy goes."""

    def __init__(
        self, array: CachedArray, paths: ArrayPaths, codec: str | None, pool: Executor, n_threads: int
    ) -> None:
        self._array, self._paths, self._pool, self._n_threads = array, paths, pool, n_threads
        packed = array.layout.codec is not None
        self._reader = PackedReader(array.paths) if packed else ArrayReader(array.paths, check="never")
        self._layout = self._plain = replace(array.layout, codec=None, crc=True, index_at_end=True)
        self._codec: ChunkCodec | None = None
        if codec is not None:
            self._layout = replace(self._plain, codec=find_codec(codec, array.layout.dtype))
            self._codec = ChunkCodec(self._layout, where=array.paths.metadata)
        self.units = [unit for unit in done_units(array.paths) if not self._has(unit)]

    @property
    def bytes(self) -> int:
        """Of the plain shards that are to be written."""
        return sum(_shard_bytes(self._array, unit) for unit in self.units)

    def create(self, cache: Cache) -> None:
        """Makes the store, the array and its scales, in the form that the copy has already or will have."""
        store, _ = _names(self._array)
        create_file(CachePaths(self._root).store_metadata(store), read_file(cache.paths.store_metadata(store)))
        there = read_layout(self._paths.metadata) if self._paths.metadata.exists() else self._smaller()
        if there not in (self._plain, self._layout):
            raise LofftaError(
                "this array is there already, and is another or packed with another codec",
                where=self._paths.metadata,
                remedy="give another --out, or drop the store there: `loffta drop DIR STORE`",
            )
        if there == self._plain:
            self._codec = None
        create_file(self._paths.metadata, there.to_json())
        copy_scales(self._array, self._paths)

    def copy_unit(self, unit: int) -> None:
        """Writes a unit and its done file."""
        done = self._array.paths.done(unit)
        said = read_file(done, MAX_BYTES)
        table = read_done(done, ("row", "status", "crc32c"))
        listed = zip(*(table[name].to_pylist() for name in ("row", "status", "crc32c")), strict=True)
        due = {row: crcs for row, status, crcs in listed if status == OK}
        per_image = self._layout.chunks_per_image
        shard = ShardWriter(self._paths.shard(unit, self._layout.ndim), self._layout.unit_images * per_image)
        try:
            for rows in _batches([*due], per_image * self._layout.chunk_bytes):
                for row, chunks in zip(rows, self._pack(rows), strict=True):
                    if [crc for crc, _ in chunks] != due[row]:
                        raise DamageFound(
                            f"row {row}: not the bytes that were extracted",
                            where=self._array.paths.shard(unit, self._layout.ndim),
                            remedy=REPAIR_DEEP,
                        )
                    first = (row - unit * self._layout.unit_images) * per_image
                    for i, (_, data) in enumerate(chunks):
                        shard.append(first + i, data)
            shard.commit()
        finally:
            shard.abort()
        replace_file(self._paths.done(unit), said)

    @property
    def _root(self) -> Path:
        return self._paths.folder.parents[2]

    def _has(self, unit: int) -> bool:
        """Whether the copy has this very unit."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return read_file(self._paths.done(unit), MAX_BYTES) == read_file(self._array.paths.done(unit), MAX_BYTES)
        return False

    def _smaller(self) -> ArrayLayout:
        """Packed where that makes a sample of the array smaller: short vectors would grow by each chunk's frame."""
        if self._codec is None:
            return self._plain
        rows = np.flatnonzero(self._array.ledger.ready)[:_TRIED_IMAGES].tolist()
        packed = sum(memoryview(data).nbytes for chunks in self._pack(rows) for _, data in chunks)
        plain = len(rows) * self._layout.chunks_per_image * self._layout.chunk_bytes
        return self._layout if packed < plain or not rows else self._plain

    def _pack(self, rows: Sequence[int]) -> list[list[tuple[int, Any]]]:
        """By image: crc32c of each plain chunk, and what is to be stored of it."""
        if not len(rows):
            return []
        per_image = self._layout.chunks_per_image
        values = self._reader.read(np.array(rows), pool=self._pool, n_parts=self._n_threads)
        packed = list(self._pool.map(self._encode, values.reshape(len(rows) * per_image, -1)))
        return [packed[i : i + per_image] for i in range(0, len(packed), per_image)]

    def _encode(self, chunk: NDArray[Any]) -> tuple[int, Any]:
        plain = chunk.view(np.uint8).data
        return crc32c(plain), plain if self._codec is None else self._codec.encode(chunk)


def _check_place(cache: Cache, copy: CachePaths) -> None:
    """Refuses a folder inside the cache, and one that is not a copy of it, finished or begun."""
    root, out = cache.paths.root.resolve(), copy.root.resolve()
    if out.is_relative_to(root):
        raise UsageError("a copy inside the cache itself", where=copy.root, remedy="give another folder as --out")
    begun = copy.images.is_file()
    if not begun and copy.is_foreign():
        raise LofftaError("this folder holds something else", where=copy.root, remedy="choose an empty or new folder")
    pairs = [(copy.images, cache.paths.images), (copy.config, cache.paths.config)]
    for theirs, ours in pairs:
        if theirs.is_file() and _said(theirs) != _said(ours):
            raise LofftaError(
                "this folder holds a cache of other images, or of another unit size",
                where=theirs,
                remedy="choose an empty or new folder; one that holds fewer images than the cache has now cannot grow",
            )


def _said(path: Path) -> Any:
    """What a document of a cache says, however it is spaced."""
    data = read_file(path, MAX_BYTES)
    return from_json(data) if path.suffix == ".json" else data


def _check_room(out: Path, targets: Iterable[_Target]) -> None:
    """Plain shards are as long as is known beforehand; of packed ones the disk tells."""
    work = [*targets]
    n_files = 2 * sum(len(target.units) for target in work)
    short = shortages(sum(target.bytes for target in work), n_files, free_room(out), user_quota(out))
    if short:
        raise LofftaError("; ".join(short), where=out, remedy="unpack to another disk, or make room on this one")


def _describe(array: CachedArray) -> CopiedArray:
    held = sum(array.paths.shard_sizes().values())
    plain = sum(_shard_bytes(array, unit) for unit in done_units(array.paths))
    return CopiedArray(array.paths.name, codec_name(array.layout), array.ledger.listed, held, plain)


def _shard_bytes(array: CachedArray, unit: int) -> int:
    """Of a unit's shard where it is plain."""
    size = array.layout.unit_images
    return shard_bytes(replace(array.layout, crc=True), int(array.ledger.ready[unit * size : (unit + 1) * size].sum()))


def _names(array: CachedArray) -> tuple[str, str]:
    store, _, name = array.paths.name.partition("/")
    return store, name


def _batches(rows: Sequence[int], image_bytes: int) -> Iterable[Sequence[int]]:
    step = max(1, _BATCH_BYTES // image_bytes)
    return (rows[i : i + step] for i in range(0, len(rows), step))

"""Copies the units of one array from one form to another: plain, or packed with a codec.

In: an array, where its copy goes, threads.   Out: shards and the original's done files there, shard first. What is read
is compared with the done file, so what is damaged is not copied. Called by `packing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from loffta.errors import DamageFound, LofftaError
from loffta.files.durable import create_file, replace_file
from loffta.store.beside import copy_scales
from loffta.store.cache import Cache, CachedArray
from loffta.store.codecs import ChunkCodec, find_codec
from loffta.store.ledger import OK, done_units, listed_rows, read_done, settles
from loffta.store.metadata import ArrayLayout, read_layout
from loffta.store.packed_reader import PackedReader
from loffta.store.paths import ArrayPaths, CachePaths
from loffta.store.reader import ArrayReader
from loffta.store.reads import read_file
from loffta.store.shard import REPAIR_DEEP, ShardWriter
from loffta.store.space import shard_bytes
from loffta.store.table import MAX_BYTES

_BATCH_BYTES = 32 << 20  # of plain chunks that are read at once
_TRIED_IMAGES = 16  # that tell whether a codec makes an array smaller


class ArrayCopy:
    """One array, where its copy goes, and which units that lacks."""

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
        return sum(plain_bytes(self._array, unit) for unit in self.units)

    def create(self, cache: Cache) -> None:
        """Makes the store, the array and its scales, in the form that the copy has already or will have."""
        store = self._array.paths.name.partition("/")[0]
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
            if not self._has(unit):  # else another process was first
                shard.commit()
                replace_file(self._paths.done(unit), said)
        finally:
            shard.abort()

    @property
    def _root(self) -> Path:
        return self._paths.folder.parents[2]

    def _has(self, unit: int) -> bool:
        """Whether the copy has all rows of a unit that the original has."""
        rows = listed_rows(self._array.paths, unit)
        return settles(self._paths, unit, rows, self._plain.unit_images)

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


def plain_bytes(array: CachedArray, unit: int) -> int:
    """Of a unit's shard where it is not packed."""
    size = array.layout.unit_images
    return shard_bytes(replace(array.layout, crc=True), int(array.ledger.ready[unit * size : (unit + 1) * size].sum()))


def _batches(rows: Sequence[int], image_bytes: int) -> Iterable[Sequence[int]]:
    step = max(1, _BATCH_BYTES // image_bytes)
    return (rows[i : i + step] for i in range(0, len(rows), step))

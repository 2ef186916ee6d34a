"""Reads chosen taps of chosen images of a packed array: the same contract as ArrayReader, at the rate of the codec.

Every chunk is compared with its crc32c, unpacked into the caller's buffer and compared with the done file, each time:
beside the unpacking both are a twentieth of the work. zarr-python reads the same files; it opens a shard and parses its
index once per image, and knows no done files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, wait
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.store.arrow import to_numbers
from loffta.store.codecs import ChunkCodec
from loffta.store.ledger import read_done
from loffta.store.metadata import read_layout
from loffta.store.near import Near, open_nearest, read_nearest
from loffta.store.paths import ArrayPaths
from loffta.store.reader import chunk_positions, read_shape
from loffta.store.shard import MISSING, REPAIR_DEEP, read_index, read_into

_UNVOUCHED = -1  # of a chunk whose row its done file does not list


class _Unit(NamedTuple):
    """What is known of a shard: valid as long as it is this file."""

    identity: tuple[int, ...]
    entries: NDArray[np.uint64]  # offsets and lengths, [U * chunks_per_image, 2]
    crcs: NDArray[np.int64] | None  # [U * chunks_per_image], of the plain chunks; None: there is no done file


class _Chunk(NamedTuple):
    """One chunk to be read."""

    unit: int
    position: int  # in the shard's index
    place: int  # in the caller's buffer


class PackedReader:
    """Random access to one packed array. Safe to call from several threads."""

    def __init__(self, paths: ArrayPaths, near: Near | None = None) -> None:
        """Opens the array's metadata; shards are opened for each read.

        Args:
            near: as ArrayReader has it.
        Raises:
            LofftaError: the codec is not installed.
        """
        layout = read_layout(paths.metadata)
        assert layout is not None and layout.codec is not None, "the array is not packed"
        self.paths, self.layout, self.near = paths, layout, near
        self._codec = ChunkCodec(layout, where=paths.metadata)
        self._units: dict[int, _Unit] = {}

    def read(
        self,
        rows: NDArray[np.int64],
        taps: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
        *,
        pool: Executor | None = None,
        n_parts: int = 1,
    ) -> NDArray[Any]:
        """Reads images by row; arguments and errors are those of ArrayReader.read."""
        layout = self.layout
        positions = chunk_positions(layout, taps, self.paths.name)
        out = self.empty(len(rows), taps) if out is None else out
        if len(rows) and (rows.min() < 0 or rows.max() >= layout.shape[0]):
            raise IndexError(f"row outside 0..{layout.shape[0] - 1} of {self.paths.name}")
        assert out.shape == read_shape(layout, len(rows), taps) and out.dtype == layout.dtype
        assert out.flags.c_contiguous, "out must be C-contiguous"
        if not len(rows):
            return out
        target = out.reshape(len(rows) * len(positions), -1)
        units, inside = np.divmod(rows, layout.unit_images)
        places = (inside[:, None] * layout.chunks_per_image + positions).reshape(-1)
        owners = np.repeat(units, len(positions))
        order = np.lexsort((places, owners))
        chunks = [_Chunk(int(owners[i]), int(places[i]), int(i)) for i in order]
        read_nearest(self.near, partial(self._share, chunks, target, pool, n_parts))
        return out

    def _share(self, chunks: list[_Chunk], target: NDArray[Any], pool: Executor | None, n_parts: int) -> None:
        """Reads the chunks, with the threads of `pool`."""
        if pool is None or n_parts == 1 or len(chunks) < n_parts:
            self._read_chunks(chunks, target)
            return
        bounds = [len(chunks) * i // n_parts for i in range(n_parts + 1)]
        futures = [pool.submit(self._read_chunks, chunks[a:b], target) for a, b in pairwise(bounds[:-1])]
        try:
            self._read_chunks(chunks[bounds[-2] :], target)  # this thread would only wait
        finally:
            wait(futures)  # whatever happened: nobody may write to `out` after the return
        for future in futures:
            future.result()

    def empty(self, n_rows: int, taps: Sequence[int] | None = None) -> NDArray[Any]:
        """A buffer for `n_rows` images."""
        return np.empty(read_shape(self.layout, n_rows, taps), self.layout.dtype)

    def shard_index(self, unit: int) -> NDArray[np.uint64]:
        """[U * chunks_per_image, 2] offsets and lengths of one unit's chunks."""
        fd = self._open(unit)
        try:
            return self._learn(unit, fd).entries
        finally:
            os.close(fd)

    def _read_chunks(self, chunks: list[_Chunk], target: NDArray[Any]) -> None:
        for unit, members in groupby(chunks, key=lambda chunk: chunk.unit):
            fd = self._open(unit)
            try:
                known = self._learn(unit, fd)
                for chunk in members:
                    self._read_chunk(fd, known, chunk, target[chunk.place])
            finally:
                os.close(fd)

    def _read_chunk(self, fd: int, known: _Unit, chunk: _Chunk, out: NDArray[Any]) -> None:
        offset, length = known.entries[chunk.position].tolist()
        if offset == MISSING:
            raise self._damage(chunk, "it is missing from its shard")
        stored = bytearray(length)
        read_into(fd, [memoryview(stored)], offset, path=self.paths.shard(chunk.unit, self.layout.ndim))
        try:
            crc = self._codec.decode(stored, out)
        except ValueError as error:
            raise self._damage(chunk, str(error)) from error
        if known.crcs is not None and crc != known.crcs[chunk.position]:
            raise self._damage(chunk, "another chunk than the one that was packed")

    def _damage(self, chunk: _Chunk, what: str) -> DamageFound:
        row, position = divmod(chunk.position, self.layout.chunks_per_image)
        tap = self.layout.taps[position] if self.layout.chunks_per_image == len(self.layout.taps) else "all taps"
        return DamageFound(
            f"row {chunk.unit * self.layout.unit_images + row}, {tap}: {what}",
            where=self.paths.shard(chunk.unit, self.layout.ndim),
            remedy=REPAIR_DEEP,
        )

    def _open(self, unit: int) -> int:
        path = self.paths.shard(unit, self.layout.ndim)
        try:
            return open_nearest(self.near, unit, path)[0]
        except FileNotFoundError:
            raise DamageFound(
                "a shard of a finished unit is gone",
                where=path,
                remedy="was the file system purged? `loffta verify CACHE` lists all that is missing",
            ) from None

    def _learn(self, unit: int, fd: int) -> _Unit:
        """The shard's index and the done file's checksums, read when the file is first met; any thread may."""
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._units.get(unit)
        if known is None or known.identity != identity:
            path = self.paths.shard(unit, self.layout.ndim)
            n_chunks = self.layout.unit_images * self.layout.chunks_per_image
            entries = read_index(fd, n_chunks, at_end=self.layout.index_at_end, path=path)
            known = self._units[unit] = _Unit(identity, entries, self._read_checksums(unit))
        return known

    def _read_checksums(self, unit: int) -> NDArray[np.int64] | None:
        """Of every chunk that the unit's done file vouches for."""
        per_image = self.layout.chunks_per_image
        try:
            table = read_done(self.paths.done(unit), ("row", "crc32c"))
        except FileNotFoundError:  # another program's array, or dropped meanwhile
            return None
        crcs = np.full((self.layout.unit_images, per_image), _UNVOUCHED, dtype=np.int64)
        lists: list[Any] = table["crc32c"].to_pylist()
        for row, listed in zip(to_numbers(table["row"]).tolist(), lists, strict=True):
            inside = row - unit * self.layout.unit_images
            if listed and len(listed) == per_image and 0 <= inside < len(crcs):
                crcs[inside] = listed
        return crcs.reshape(-1)

"""Reads chosen taps of chosen images straight into ready buffers: index parsed once, preadv, no copies.

Four times the rate of tensorstore and sixteen times or more that of zarr-python on the same files
(pipelines/benchmarks/store.py, docs/benchmarks.md). Arrays whose chunks are not plain bytes go through zarr-python:
right, but slow.
"""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, wait
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from loffta.errors import DamageFound, LofftaError
from loffta.store.checksums import read_checksums
from loffta.store.metadata import CRC_BYTES, ArrayLayout, read_layout
from loffta.store.near import Near, OpenShard, read_nearest
from loffta.store.paths import ArrayPaths
from loffta.store.reads import REPAIR
from loffta.store.shard import MAX_IOV, MISSING, REPAIR_DEEP, read_index, read_into
from loffta.store.units import rows_of

Check = Literal["first", "never"]
MAX_RUN_BYTES = 8 << 20  # longer runs of adjacent images are cut, so that threads can share them
WRONG_LENGTH = MISSING - np.uint64(1)  # stands for the offset of a chunk that cannot be read


class _Run(NamedTuple):
    """One system call: adjacent chunks of one shard, each followed by its crc32c where there is one."""

    shard: OpenShard
    offset: int
    buffers: list[memoryview]
    unseen: list[tuple[int, memoryview, memoryview, int | None]]  # not checked yet: chunk, data, its crc, done file's


class ArrayReader:
    """Random access to one array of format 1, or of any writer that keeps its inner chunks uncompressed.

    Safe to call from several threads. All readers together keep to about a quarter of the process's descriptors.
    """

    def __init__(self, paths: ArrayPaths, *, check: Check = "first", near: Near | None = None) -> None:
        """Opens the array's metadata; shards are opened when first read.

        Args:
            near: copies of shards, which are read in their place as long as there is no trouble with one.
            check: "first" compares each chunk with its crc32c, and that with the done file's, the first time this
                process reads it, then trusts the page cache; "never" does not (a quarter faster on that first pass).
        """
        layout = read_layout(paths.metadata)
        if layout is None or layout.codec is not None:
            raise LofftaError(
                "this array's chunks are compressed or shaped in a way the direct reader does not take",
                where=paths.metadata,
                remedy="open it with store.zarr_reader.open_array, which finds the reader that does",
            )
        self.paths = paths
        self.layout: ArrayLayout = layout
        self.near = near
        self._copied: set[int] = set()  # units that are known from their copy
        self._check = check == "first" and layout.crc
        n_chunks = layout.shape[0] * layout.chunks_per_image
        self._checked = np.zeros(n_chunks, dtype=bool)
        # 8 bytes a chunk: 10 MB for 100,000 images of 12 taps; a unit's part is valid once `_known` has its shard
        self._offsets = np.empty(n_chunks, dtype=np.uint64)
        self._known: dict[int, tuple[int, ...]] = {}
        self._crcs = np.empty(n_chunks if self._check else 0, dtype=np.uint32)  # valid for the units in `_vouched`
        self._vouched: set[int] = set()
        self._shards: OrderedDict[int, OpenShard] = OrderedDict()
        self._lock = threading.Lock()
        _READERS.add(self)

    def read(
        self,
        rows: NDArray[np.int64],
        taps: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
        *,
        pool: Executor | None = None,
        n_parts: int = 1,
    ) -> NDArray[Any]:
        """Reads images by row.

        Args:
            rows: [B] row numbers in any order, repeats allowed.
            taps: positions along axis 1; None reads whole images.
            out: [B, len(taps), ...], C-contiguous buffer of the array's dtype. A fresh one halves the rate: reuse it.
            pool: with n_parts > 1, threads that share the work with the calling one.
        Returns:
            `out`.
        Raises:
            DamageFound: a chunk is missing, cut short or does not match its crc32c.
            IndexError: a row or tap that the array does not have.
        """
        positions = chunk_positions(self.layout, taps, self.paths.name)
        expected = read_shape(self.layout, len(rows), taps)
        out = np.empty(expected, self.layout.dtype) if out is None else out
        if len(rows) and (rows.min() < 0 or rows.max() >= self.layout.shape[0]):
            raise IndexError(f"row outside 0..{self.layout.shape[0] - 1} of {self.paths.name}")
        assert out.shape == expected and out.dtype == self.layout.dtype, f"out must be {expected} {self.layout.dtype}"
        assert out.flags.c_contiguous, "out must be C-contiguous"
        read_nearest(self.near, partial(self._read, rows, positions, out, pool, n_parts))
        return out

    def empty(self, n_rows: int, taps: Sequence[int] | None = None) -> NDArray[Any]:
        """A buffer for `n_rows` images."""
        return np.empty(read_shape(self.layout, n_rows, taps), self.layout.dtype)

    def shard_index(self, unit: int) -> NDArray[np.uint64]:
        """[U * chunks_per_image, 2] offsets and lengths of one unit's chunks, read anew."""
        return self._read_index(self._open(unit))

    def _read(
        self,
        rows: NDArray[np.int64],
        positions: NDArray[np.int64],
        out: NDArray[Any],
        pool: Executor | None,
        n_parts: int,
    ) -> None:
        if self._copied and self.near is not None and not self.near.in_use:
            self._forget_copies()
        for runs in self._plans(rows, positions, out):
            self._execute(runs, pool, n_parts)

    def _forget_copies(self) -> None:
        with self._lock:
            for unit in self._copied:
                self._known.pop(unit, None)
                self._shards.pop(unit, None)
            self._copied.clear()

    def _plans(self, rows: NDArray[np.int64], positions: NDArray[np.int64], out: NDArray[Any]) -> Iterator[list[_Run]]:
        """All system calls of a read, in file order; in several lists where it spans more shards than may be open.

        Planned whole before the first call: with Python work between the calls, two threads wait for each other's
        interpreter lock (docs/decisions.md has the figures).
        """
        if not len(rows):
            return
        units = rows // self.layout.unit_images
        present = sorted(set(units.tolist()))
        known = {unit: self._known.get(unit) or self._open(unit).identity for unit in present}
        chunks = (rows[:, None] * self.layout.chunks_per_image + positions).reshape(-1)
        offsets = self._offsets[chunks]
        if offsets.max() >= WRONG_LENGTH:
            worst = int(offsets.argmax())
            self._refuse_hole(int(chunks[worst]), missing=bool(offsets[worst] == MISSING))
        owners = np.repeat(units, len(positions))
        places = np.lexsort((offsets, owners))  # by shard, then in file order
        bounds = [0, *(np.flatnonzero(np.diff(owners[places])) + 1).tolist(), len(chunks)]
        target = out.reshape(-1).view(np.uint8).data
        n_open = self._max_open()
        for first in range(0, len(present), n_open):
            runs: list[_Run] = []
            for i in range(first, min(first + n_open, len(present))):
                shard, here = self._open(present[i]), places[bounds[i] : bounds[i + 1]]
                if shard.identity != known[present[i]]:  # replaced since its offsets were looked up
                    yield from self._plans(rows, positions, out)
                    return
                crcs = self._crcs[chunks[here]].tolist() if present[i] in self._vouched else [None] * len(here)
                runs += self._runs(shard, offsets[here].tolist(), here.tolist(), chunks[here], crcs, target)
            yield runs

    def _runs(
        self,
        shard: OpenShard,
        offsets: list[int],
        places: list[int],
        chunks: NDArray[np.int64],
        due: list[int | None],
        target: memoryview,
    ) -> list[_Run]:
        """The calls for chunks of one shard, adjacent ones in one; the crc between them goes to a scratch buffer."""
        size, stored = self.layout.chunk_bytes, self.layout.stored_chunk_bytes
        fresh = (~self._checked[chunks]).tolist() if self._check else [False] * len(chunks)
        crcs = memoryview(bytearray(len(places) * CRC_BYTES))
        limit = max(1, min(MAX_IOV // 2, MAX_RUN_BYTES // stored))
        runs: list[_Run] = []
        end, run = -1, _Run(shard, 0, [], [])
        for i, (offset, place) in enumerate(zip(offsets, places, strict=True)):
            if offset != end or len(run.buffers) >= 2 * limit:
                runs.append(run := _Run(shard, offset, [], []))
            data = target[place * size : (place + 1) * size]
            run.buffers.append(data)
            if stored > size:
                run.buffers.append(crc := crcs[i * CRC_BYTES : (i + 1) * CRC_BYTES])
                if fresh[i]:
                    run.unseen.append((int(chunks[i]), data, crc, due[i]))
            end = offset + stored
        return runs

    def _execute(self, runs: list[_Run], pool: Executor | None, n_parts: int) -> None:
        """Makes the calls, shared with `pool`."""
        if pool is None or n_parts == 1 or len(runs) < n_parts:
            self._read_runs(runs)
            return
        bounds = [len(runs) * i // n_parts for i in range(n_parts + 1)]
        futures = [pool.submit(self._read_runs, runs[a:b]) for a, b in pairwise(bounds[:-1])]
        try:
            self._read_runs(runs[bounds[-2] :])  # this thread would only wait
        finally:
            wait(futures)  # whatever happened: nobody may write to `out` after the return
        for future in futures:
            future.result()

    def _read_runs(self, runs: list[_Run]) -> None:
        """What is not yet checked is checked while it is in the processor's cache."""
        for run in runs:
            read_into(run.shard.fd, run.buffers, run.offset, path=run.shard.path)
            for chunk, data, stored, due in run.unseen:
                crc = crc32c(data)
                if crc != int.from_bytes(stored, "little"):
                    self._refuse_damage(chunk, "the bytes do not match their crc32c")
                if due is not None and crc != due:
                    self._refuse_damage(chunk, "another chunk than the one that was written")
                self._checked[chunk] = True

    def _refuse_hole(self, chunk: int, *, missing: bool) -> None:
        row = chunk // self.layout.chunks_per_image
        raise DamageFound(
            f"row {row} is missing from its shard"
            if missing
            else f"row {row} has a chunk of another length than its array says",
            where=self._path(row // self.layout.unit_images),
            remedy=REPAIR,
        )

    def _refuse_damage(self, chunk: int, what: str) -> None:
        row, position = divmod(chunk, self.layout.chunks_per_image)
        tap = self.layout.taps[position] if self.layout.chunks_per_image == len(self.layout.taps) else "all taps"
        raise DamageFound(
            f"row {row}, {tap}: {what}",
            where=self._path(row // self.layout.unit_images),
            remedy=REPAIR_DEEP,
        )

    def _path(self, unit: int) -> Path:
        return self.paths.shard(unit, self.layout.ndim)

    def _open(self, unit: int) -> OpenShard:
        with self._lock:
            shard = self._shards.get(unit)
            if shard is None:
                try:
                    shard = OpenShard(self.near, unit, self._path(unit))
                except FileNotFoundError:
                    raise DamageFound(
                        "a shard of a finished unit is gone",
                        where=self._path(unit),
                        remedy="was the file system purged? `loffta verify CACHE` lists all that is missing",
                    ) from None
                if self._known.get(unit) != shard.identity:
                    self._learn(unit, shard)
                self._shards[unit] = shard
                while len(self._shards) > self._max_open():
                    self._shards.popitem(last=False)
            self._shards.move_to_end(unit)
            return shard

    def _max_open(self) -> int:
        return max(2, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4 // len(_READERS))

    def _learn(self, unit: int, shard: OpenShard) -> None:
        """Keeps where each chunk of the unit is; nothing of it has been checked yet."""
        index = self._read_index(shard)
        offsets = np.where(index[:, 1] == self.layout.stored_chunk_bytes, index[:, 0], WRONG_LENGTH)
        offsets[index[:, 0] == MISSING] = MISSING
        rows = rows_of(unit, self.layout.shape[0], self.layout.unit_images)
        per_image = self.layout.chunks_per_image
        here = slice(rows.start * per_image, rows.stop * per_image)
        self._offsets[here] = offsets[: len(rows) * per_image]
        self._checked[here] = False
        if self._check:
            crcs = read_checksums(self.paths, unit, self.layout, len(rows))
            self._vouched.discard(unit)
            if crcs is not None:
                self._crcs[here] = crcs
                self._vouched.add(unit)
        self._known[unit] = shard.identity
        if shard.is_copy:
            self._copied.add(unit)

    def _read_index(self, shard: OpenShard) -> NDArray[np.uint64]:
        n_chunks = self.layout.unit_images * self.layout.chunks_per_image
        return read_index(shard.fd, n_chunks, at_end=self.layout.index_at_end, path=shard.path)


def read_shape(layout: ArrayLayout, n_rows: int, taps: Sequence[int] | None) -> tuple[int, ...]:
    """Of what a read of `n_rows` images gives; `taps` None: of whole images."""
    item = layout.item_shape
    return (n_rows, *item) if taps is None else (n_rows, len(taps), *item[1:])


def chunk_positions(layout: ArrayLayout, taps: Sequence[int] | None, name: str) -> NDArray[np.int64]:
    """Which chunks of an image hold `taps`; IndexError where the array called `name` has no such taps."""
    per_image = layout.chunks_per_image
    if taps is None:
        return np.arange(per_image)
    if per_image != layout.shape[1]:
        raise IndexError(f"{name} keeps all taps of an image in one chunk; read it whole")
    chosen = np.asarray(taps, dtype=np.int64)
    if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= per_image:
        raise IndexError(f"taps {list(taps)} outside 0..{per_image - 1} of {name}")
    return chosen


_READERS: WeakSet[ArrayReader] = WeakSet()  # they share the process's descriptors

"""The bytes of one zarr v3 shard: inner chunks one after the other, then an index of (offset, length) pairs.

Writing streams: chunks get their places in order, several threads write them there, and the index goes last, so no unit
is ever held in memory.
Reading takes offsets from the index, never from arithmetic: other writers put chunks in other orders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.files.durable import begin_sync, delete_part, part_name, put_in_place, replace_part
from loffta.files.os_words import guard
from loffta.store.metadata import CRC_BYTES
from loffta.store.reads import read_guard

MISSING = np.uint64(2**64 - 1)  # both halves of an index entry whose chunk was never written
_WORTH_SYNC = 1 << 20  # bytes; less is left to the fsync
MAX_IOV = 1000  # buffers per preadv or pwritev; Linux allows 1,024
REPAIR_DEEP = "run `loffta verify CACHE --deep` to list all damage, with --repair to mend it"

Buffer = memoryview | bytes


class ShardWriter:
    """Writes one shard under a temporary name; `commit` puts it in place, `abort` leaves nothing."""

    def __init__(self, final: Path, n_chunks: int) -> None:
        """Opens the temporary file; `n_chunks` is what the shard could hold, written or not."""
        self._final = final
        self._index = np.full((n_chunks, 2), MISSING, dtype="<u8")
        self._end = 0  # of what has its place
        self._part = part_name(final)
        with guard(final):
            self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

    def reserve(self, positions: Sequence[int], chunk_bytes: int) -> list[int]:
        """Gives chunks their places behind those that have one; called by one thread, which gives the file its order.

        Args:
            positions: each chunk's place in the shard's index, every one used once.
        Returns:
            Where each chunk begins in the file.
        """
        assert (self._index[list(positions), 0] == MISSING).all(), "a chunk was written twice"
        stored = chunk_bytes + CRC_BYTES
        places = range(self._end, self._end + stored * len(positions), stored)
        self._index[list(positions), 0] = places
        self._index[list(positions), 1] = stored
        self._end += stored * len(positions)
        return list(places)

    def write(self, place: int, chunks: NDArray[Any]) -> list[int]:
        """Writes chunks that have their places, one behind the other from `place` on; any thread may, several at once.

        Args:
            chunks: [n, ...] C-contiguous; chunks[i] holds the bytes of one of them.
        Returns:
            crc32c of each chunk.
        Raises:
            LofftaError: the disk or quota is full.
        """
        views = [chunk.data for chunk in chunks.reshape(len(chunks), -1).view(np.uint8)]
        crcs = [crc32c(view) for view in views]
        self._write([part for view, crc in zip(views, crcs, strict=True) for part in (view, _crc_bytes(crc))], place)
        if chunks.nbytes >= _WORTH_SYNC:
            begin_sync(self._fd, place, chunks.nbytes)
        return crcs

    def append(self, position: int, chunk: Buffer) -> None:
        """Writes one chunk of any length behind those that have a place: packed ones differ; called by one thread."""
        n_bytes = memoryview(chunk).nbytes
        (place,) = self.reserve([position], n_bytes)
        self._write([chunk, _crc_bytes(crc32c(chunk))], place)

    def append_stored(self, positions: NDArray[np.int64], lengths: NDArray[np.uint64], stored: Buffer) -> None:
        """Writes chunks of another shard as they lie there, each with its crc32c; called by one thread.

        Args:
            lengths: of each chunk with its crc32c; `stored` holds one behind the other.
        """
        assert (self._index[positions, 0] == MISSING).all(), "a chunk was written twice"
        n_bytes = memoryview(stored).nbytes
        self._index[positions, 0] = self._end + np.cumsum(lengths) - lengths
        self._index[positions, 1] = lengths
        self._write([stored], self._end)
        if n_bytes >= _WORTH_SYNC:
            begin_sync(self._fd, self._end, n_bytes)
        self._end += n_bytes

    def commit(self) -> None:
        """Adds the index, makes the file durable and puts it in place."""
        self.place()
        self.close()

    def place(self, move: Callable[[Path, Path], bool] = replace_part) -> bool:
        """`commit`, but the file stays open, for `is_in_place` and `place_again`; `move` as in `put_in_place`."""
        index = self._index.tobytes()
        self._write([index, _crc_bytes(crc32c(index))], self._end)
        return put_in_place(self._fd, self._part, self._final, move)

    def is_in_place(self) -> bool:
        """Whether the file that is there is this one, not that of another process which wrote the same unit."""
        with guard(self._final):
            try:
                return os.path.samestat(os.fstat(self._fd), self._final.stat())
            except FileNotFoundError:  # dropped or purged
                return True

    def place_again(self) -> None:
        """Puts a copy of this file in place."""
        put_in_place(self._fd, self._part, self._final)

    def close(self) -> None:
        """After `place`."""
        os.close(self._fd)
        self._fd = -1

    def abort(self) -> None:
        """Deletes what was written; harmless after commit."""
        if self._fd >= 0:
            delete_part(self._part)
            fd, self._fd = self._fd, -1
            with suppress(OSError):  # what was written is given up
                os.close(fd)

    def _write(self, buffers: list[Buffer], place: int) -> None:
        with guard(self._final):
            for first in range(0, len(buffers), MAX_IOV):
                place = _pwritev_all(self._fd, buffers[first : first + MAX_IOV], place)


def read_index(fd: int, n_chunks: int, *, at_end: bool, path: Path) -> NDArray[np.uint64]:
    """Reads and checks a shard's index.

    Returns:
        [n_chunks, 2] offsets and lengths in bytes; MISSING where there is no chunk.
    Raises:
        DamageFound: the file is too short or the index's crc32c does not match.
    """
    size = n_chunks * 16 + CRC_BYTES
    with read_guard(path):
        length = os.fstat(fd).st_size
    if length < size:
        raise DamageFound(f"shard is truncated: {length} bytes cannot hold its index", where=path, remedy=REPAIR_DEEP)
    data = bytearray(size)
    read_into(fd, [memoryview(data)], length - size if at_end else 0, path=path)
    if crc32c(memoryview(data)[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise DamageFound("shard index does not match its crc32c", where=path, remedy=REPAIR_DEEP)
    index = np.frombuffer(data, dtype="<u8", count=n_chunks * 2).reshape(n_chunks, 2)
    held = index[:, 0] != MISSING
    ends = index[held, 0] + index[held, 1]
    if held.any() and (int(ends.max()) > length or (ends < index[held, 0]).any()):  # or over the end of 64 bits
        raise DamageFound("shard is truncated: its index points behind its end", where=path, remedy=REPAIR_DEEP)
    return index


def read_into(fd: int, buffers: list[memoryview], offset: int, *, path: Path) -> None:
    """Fills `buffers`, at most MAX_IOV, from consecutive bytes; network file systems may give fewer bytes a call.

    Raises:
        DamageFound: the file ends before the buffers are full, or the storage cannot give it back.
    """
    while buffers:
        with read_guard(path):
            done = os.preadv(fd, buffers, offset)
        if done == 0:
            raise DamageFound(f"shard ends at byte {offset}, before its data does", where=path, remedy=REPAIR_DEEP)
        offset += done
        buffers = _after(buffers, done)


def _crc_bytes(crc: int) -> bytes:
    return crc.to_bytes(CRC_BYTES, "little")


def _pwritev_all(fd: int, buffers: Sequence[Buffer], place: int) -> int:
    """Writes all of `buffers` from byte `place` on, and gives the byte behind them."""
    pending = [memoryview(b) for b in buffers]
    while pending:
        done = os.pwritev(fd, pending, place)
        pending, place = _after(pending, done), place + done
    return place


def _after(buffers: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `buffers` when their first `done` bytes are dealt with."""
    for i, buffer in enumerate(buffers):
        if done < buffer.nbytes:
            return [buffer[done:], *buffers[i + 1 :]]
        done -= buffer.nbytes
    return []

"""Copies shards, or the taps of them that a job reads, to a folder of the node: finished files that several jobs share.

In: arrays, units, taps.   Out: files by unit, for `near`. Called by `feed.staged`.

    FOLDER/loffta-stage-<uid>/<hash16>/u<uuuuuu>-<hash16>

The first hash is of the cache's place, the array's metadata and the taps; the second of the unit's done file, which
holds a checksum of every chunk: an altered unit is another file. A copy is a zarr shard like its original, with the
chunks of other taps missing: of one tap of twelve a twelfth is read and written. It gets its name when it is whole, so
that processes may copy the same unit at once: the last one's file is as good as the first one's. What a killed process
leaves is a temporary file, which the next one sweeps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from loffta.errors import DamageFound, LofftaError
from loffta.files.durable import delete_part, make_folder, sweep_tree
from loffta.files.os_words import guard
from loffta.store.arrow import to_numbers
from loffta.store.cache import CachedArray
from loffta.store.ledger import OK, done_table, done_units
from loffta.store.metadata import CRC_BYTES
from loffta.store.paths import names_in
from loffta.store.reads import open_file, read_file
from loffta.store.shard import MISSING, REPAIR_DEEP, ShardWriter, read_index, read_into
from loffta.store.space import INDEX_ENTRY_BYTES
from loffta.store.table import MAX_BYTES

_RUN_BYTES = 8 << 20  # read and written by one call, as the readers do it


def open_folder(word: str) -> Path:
    """The folder in which copies are kept, made if need be, and swept.

    Args:
        word: a folder, perhaps with variables of the environment: $SLURM_TMPDIR.
    Raises:
        LofftaError: it is not there, is not this user's or may not be written.
    """
    if not word.strip():
        raise _refused("its name is empty: is the variable set here?", word)
    folder = Path(os.path.expandvars(word))
    if "$" in str(folder):
        raise _refused("no such variable is set here", word)
    if not folder.is_dir():
        raise _refused("there is no such folder", word)
    root = folder.absolute() / f"loffta-stage-{os.getuid()}"
    with guard(root):
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()
    if root.is_symlink() or status.st_uid != os.getuid():  # in a folder that all may write to
        raise _refused(f"{root} is another user's, or a link", word)
    if not os.access(root, os.W_OK | os.X_OK):
        raise _refused(f"{root} may not be written to", word)
    sweep_tree(root)
    return root


def _refused(why: str, word: str) -> LofftaError:
    return LofftaError(why, where=word or "--stage-dir", remedy="name a folder of this node that you may write to")


@dataclass(frozen=True, eq=False)
class Copy:
    """A unit of an array that is to be near, and what of it."""

    array: CachedArray
    unit: int
    positions: NDArray[np.int64]  # chunks of each image
    said: bytes  # its done file
    path: Path  # of the copy

    @property
    def bytes(self) -> int:
        """Of the copy's chunks and index; of packed arrays the most that they may be."""
        layout = self.array.layout
        n_rows = int(self.array.ledger.ready[self.unit * layout.unit_images :][: layout.unit_images].sum())
        index = layout.unit_images * layout.chunks_per_image * INDEX_ENTRY_BYTES + CRC_BYTES
        if layout.codec is None:
            return n_rows * len(self.positions) * layout.stored_chunk_bytes + index
        with suppress(OSError):
            return self.array.paths.shard(self.unit, layout.ndim).stat().st_size
        return 0

    def size(self) -> int | None:
        """Bytes of the copy, None where there is none yet."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return None

    def make(self, halt: Event) -> int:
        """Copies the unit and gives the bytes written: 0 where another process has just done it.

        Args:
            halt: set where nobody wants it any more.
        Raises:
            DamageFound: the original is not as its done file says: no copy is made.
            LofftaError: the copy cannot be written.
        """
        if self.size() is not None:
            return 0
        layout, paths = self.array.layout, self.array.paths
        original = paths.shard(self.unit, layout.ndim)
        try:
            fd = open_file(original)
        except FileNotFoundError:
            raise DamageFound("the shard of a finished unit is gone", where=original, remedy=REPAIR_DEEP) from None
        writer: ShardWriter | None = None
        try:
            index = read_index(fd, layout.unit_images * layout.chunks_per_image, at_end=True, path=original)
            places, due = self._listed()
            if (index[places, 0] == MISSING).any() or (index[places, 1] < CRC_BYTES).any():
                raise DamageFound("a chunk is missing from its shard", where=original, remedy=REPAIR_DEEP)
            order = np.argsort(index[places, 0], kind="stable")
            places, due = places[order], None if due is None else due[order]
            entries = index[places]
            make_folder(self.path.parent)
            writer = ShardWriter(self.path, len(index))
            runs = _runs(entries)
            buffer = memoryview(bytearray(max((int(entries[run, 1].sum()) for run in runs), default=0)))
            for run in runs:
                if halt.is_set():
                    return 0
                stored = _read_run(fd, entries[run], None if due is None else due[run], original, buffer)
                writer.append_stored(places[run], entries[run, 1], stored)
            writer.commit()
            return self.path.stat().st_size
        finally:
            os.close(fd)
            if writer is not None:
                writer.abort()

    def _listed(self) -> tuple[NDArray[np.int64], NDArray[np.uint32] | None]:
        """Places in the shard's index of all chunks to be copied, and the crc32c that the done file has of each.

        Of packed arrays it has that of what is unpacked: a reader compares it.
        """
        layout, done = self.array.layout, self.array.paths.done(self.unit)
        table = done_table(self.said, ("row", "status", "crc32c"), done)
        good = [i for i, status in enumerate(table["status"].to_pylist()) if status == OK]
        inside = to_numbers(table["row"])[good] - self.unit * layout.unit_images
        places = (inside[:, None] * layout.chunks_per_image + self.positions).reshape(-1)
        if layout.codec is not None:
            return places, None
        lists: list[Any] = table["crc32c"].to_pylist()
        if any(len(lists[i]) != layout.chunks_per_image for i in good):
            raise DamageFound("done file has other checksums than its array has chunks", where=done, remedy=REPAIR_DEEP)
        due = np.array([lists[i] for i in good], np.uint32).reshape(len(good), layout.chunks_per_image)
        return places, due[:, self.positions].reshape(-1)


def plan_copies(
    root: Path, array: CachedArray, positions: NDArray[np.int64], units: Sequence[int], pool: Executor
) -> list[Copy]:
    """What of an array is to be near; nothing of one that another program wrote in another form.

    Args:
        root: of `open_folder`.
        positions: chunks of each image, rising.
        pool: threads that read done files.
    """
    layout, paths = array.layout, array.paths
    if not (layout.crc and layout.index_at_end):
        return []
    what = [os.fspath(paths.folder.resolve()), layout.facts, layout.codec, positions.tolist()]
    folder = root / _hash(json.dumps(what, sort_keys=True).encode(errors="surrogatepass"))
    there = [unit for unit in done_units(paths) if unit in {*units}]
    said = pool.map(lambda unit: read_file(paths.done(unit), MAX_BYTES), there)
    return [
        Copy(array, unit, positions, data, folder / f"{_unit_name(unit)}{_hash(data)}")
        for unit, data in zip(there, said, strict=True)
    ]


def drop_older(copies: Sequence[Copy]) -> None:
    """Deletes copies of the same units as they were before; jobs that read one go on with what they have open."""
    kept = {copy.path for copy in copies}
    units = {copy.path.parent / _unit_name(copy.unit) for copy in copies}
    for folder in {copy.path.parent for copy in copies}:
        for name in names_in(folder):
            path = folder / name
            if path not in kept and path.with_name(name.partition("-")[0] + "-") in units:
                delete_part(path)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _unit_name(unit: int) -> str:
    return f"u{unit:06d}-"


def _runs(entries: NDArray[np.uint64]) -> list[slice]:
    """[n, 2] offsets and lengths in file order, parted where chunks are not neighbours or _RUN_BYTES are reached."""
    runs: list[slice] = []
    first = n_bytes = end = 0
    for i, (offset, length) in enumerate(entries.tolist()):
        if i > first and (offset != end or n_bytes + length > _RUN_BYTES):
            runs.append(slice(first, i))
            first, n_bytes = i, 0
        end, n_bytes = offset + length, n_bytes + length
    return [*runs, slice(first, len(entries))] if len(entries) else []


def _read_run(
    fd: int, entries: NDArray[np.uint64], due: NDArray[np.uint32] | None, path: Path, buffer: memoryview
) -> memoryview:
    """The bytes of chunks that lie side by side, each compared with its crc32c and with that of the done file."""
    stored = buffer[: int(entries[:, 1].sum())]
    read_into(fd, [stored], int(entries[0, 0]), path=path)
    end = 0
    for i, length in enumerate(entries[:, 1].tolist()):
        chunk, end = stored[end : end + length - CRC_BYTES], end + length
        crc = crc32c(chunk)
        if crc != int.from_bytes(stored[end - CRC_BYTES : end], "little"):
            raise DamageFound("the bytes of a chunk do not match their crc32c", where=path, remedy=REPAIR_DEEP)
        if due is not None and crc != due[i]:
            raise DamageFound("another chunk than the one that was written", where=path, remedy=REPAIR_DEEP)
    return stored

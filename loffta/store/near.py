"""Shards that lie nearer than the cache, on the node's own disk: opened first, and given up at the first trouble.

In: files by unit, from `staging`.   Out: an open shard, the copy or the original. Called by the readers. A reader
compares a copy with its crc32c and the done file as it does the original, so a copy that is not the unit's is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from loffta.errors import DamageFound
from loffta.store.reads import open_file, read_guard


class Near:
    """The copies of one array's shards; all readers of the array share it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell` is given the reason when the copies are given up."""
        self._tell = tell
        self._files: dict[int, Path] = {}
        self.in_use = True

    def add(self, files: Mapping[int, Path]) -> None:
        """More copies, by unit."""
        if self.in_use:
            self._files |= files

    def find(self, unit: int) -> Path | None:
        """The copy of a unit, if it has one."""
        return self._files.get(unit)

    def give_up(self, why: str) -> None:
        """From now on the originals are read; what is there of the copies stays for others."""
        if self.in_use:
            self.in_use = False
            self._files.clear()
            self._tell(why)


class OpenShard:
    """An open shard. Its descriptor closes with its last reference, so eviction cannot close it under a reader."""

    def __init__(self, near: Near | None, unit: int, path: Path) -> None:
        self.fd, self.path = open_nearest(near, unit, path)
        self.is_copy = self.path != path
        with read_guard(self.path):
            status = os.fstat(self.fd)
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def open_nearest(near: Near | None, unit: int, path: Path) -> tuple[int, Path]:
    """A descriptor to read a unit from, and the file that it is of.

    Args:
        path: of the original; errors as `open_file` where that is to be opened.
    """
    copy = None if near is None else near.find(unit)
    if near is not None and copy is not None:
        try:
            return os.open(copy, os.O_RDONLY), copy
        except OSError as error:
            near.give_up(error.strerror or type(error).__name__)
    return open_file(path), path


def read_nearest(near: Near | None, read: Callable[[], None]) -> None:
    """Reads; once more, from the originals, where a copy is not as its array says."""
    from_copies = near is not None and near.in_use
    try:
        read()
    except DamageFound as error:
        if near is None or not from_copies:
            raise
        near.give_up(error.what)
        read()

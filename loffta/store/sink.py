"""Writes units behind the computation: several threads, a bounded number of bytes, and all undone that is not whole.

In: batches from `extract`, unit by unit.   Out: committed units, in the order in which they were given.
The images of a batch get their places when they are handed over, so a shard's bytes have one order whoever writes them.
One more thread makes units durable, one by one, while the next are written. Who has too much waiting, waits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import torch

from loffta.machine import process
from loffta.store.cache import CachedArray
from loffta.store.handover import Batch, HostBuffer
from loffta.store.ledger import ImageStatus
from loffta.store.writer import UnitWriter

MAX_WAITING = 256 << 20  # bytes, as stored, of batches that are not written yet; one batch alone may be larger
MAX_COMMITS = 2  # units that are written and not durable yet
PART_BYTES = 4 << 20  # written in one go: an image of 12 taps of a ViT-B, a thousand vectors
MOST_WRITERS = 8


def count_writers() -> int:
    """Threads that write: one for every two that decode; two at least, so that one works while the other waits."""
    return max(2, min(process.available_cpus() // 2, MOST_WRITERS))


class UnitSink:
    """Open units of several arrays; leaving the context waits for what was given and deletes what was not committed.

    An error of a thread is raised by the next call, or on leaving the context.
    """

    def __init__(self, device: torch.device) -> None:
        """Starts nothing yet; `device` makes the tokens."""
        self._device = device
        self._mine = threading.local()  # each thread's HostBuffer
        self._writers = ThreadPoolExecutor(count_writers(), "loffta-write", initializer=self._begin)
        self._committer = ThreadPoolExecutor(1, "loffta-commit")
        self._commits = threading.Semaphore(MAX_COMMITS)
        self._waiting = 0  # bytes
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._open: dict[UnitWriter, list[Future[None]]] = {}
        self._torn: set[UnitWriter] = set()  # that lack a part
        self.n_bytes = 0  # of tokens written
        self.late: set[int] = set()  # units that were committed when another process had committed them

    def open(self, array: CachedArray, unit: int) -> UnitWriter:
        """Starts a unit of one array."""
        self._refuse()
        writer = UnitWriter(array.paths, array.layout, unit)
        self._open[writer] = []
        return writer

    def append(self, batches: Sequence[tuple[UnitWriter, Batch]], rows: Sequence[int], keys: Sequence[str]) -> None:
        """Hands images over, for some arrays at once; waits while too many bytes of others wait.

        Args:
            rows: row numbers inside the unit, each once.
            keys: the images' names, for messages.
        """
        n_bytes = sum(len(rows) * writer.image_bytes for writer, _ in batches)
        with self._changed:
            self._changed.wait_for(lambda: self._waiting == 0 or self._waiting + n_bytes <= MAX_WAITING)
            self._waiting += n_bytes
        self._refuse()
        for writer, batch in batches:
            places = writer.reserve(rows)
            step = max(1, PART_BYTES // writer.image_bytes)
            for first in range(0, len(rows), step):
                part = slice(first, first + step)
                self._open[writer].append(
                    self._writers.submit(self._write, writer, batch, part, rows[part], places[part], keys[part])
                )

    def commit(self, parts: Sequence[tuple[UnitWriter, dict[str, Any]]], images: Sequence[ImageStatus]) -> None:
        """Puts a unit of several arrays in place when all that was handed over is written, as `UnitWriter.commit`."""
        self._commits.acquire()
        self._refuse()
        self._committer.submit(self._commit, parts, images)

    def give_up(self, unit: int) -> None:
        """Deletes what was written of a unit that is not handed to `commit`."""
        for writer in [writer for writer in self._open if writer.unit == unit]:
            wait(self._open.pop(writer))
            writer.abort()

    def __enter__(self) -> UnitSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writers.shutdown()
        self._committer.shutdown()
        torch.set_num_threads(torch.get_num_threads())  # `_begin` also sets what threads that are made later begin with
        for writer in self._open:
            writer.abort()
        if error is None:
            self._refuse()

    def _begin(self) -> None:
        """A writing thread casts alone: threads of its own would wait for each other and for those that decode."""
        torch.set_num_threads(1)
        self._mine.buffer = HostBuffer(self._device)

    def _write(
        self,
        writer: UnitWriter,
        batch: Batch,
        part: slice,
        rows: Sequence[int],
        places: Sequence[int],
        keys: Sequence[str],
    ) -> None:
        n_bytes = len(rows) * writer.image_bytes
        try:
            self._refuse()  # what is left is passed over after an error, so that nobody waits for ever
            writer.write(rows, places, batch.fetch(part, self._mine.buffer), keys)
        except BaseException as error:
            self._fail(writer, error)
        with self._changed:
            self._waiting -= n_bytes
            self.n_bytes += n_bytes
            self._changed.notify_all()

    def _commit(self, parts: Sequence[tuple[UnitWriter, dict[str, Any]]], images: Sequence[ImageStatus]) -> None:
        """Of a unit that is whole, whatever became of others."""
        for writer, run in parts:
            wait(self._open[writer])
            if writer not in self._torn:
                try:
                    mine = writer.commit(images, run)
                    (self.late.discard if mine else self.late.add)(writer.unit)  # its last array tells who finished it
                    del self._open[writer]
                except BaseException as error:
                    self._fail(writer, error)
        self._commits.release()

    def _fail(self, writer: UnitWriter, error: BaseException) -> None:
        self._torn.add(writer)
        self._error = self._error or error

    def _refuse(self) -> None:
        if self._error is not None:
            raise self._error

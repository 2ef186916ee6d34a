"""Writes units behind the computation: one thread and a short queue. A unit that is not whole at the end is dropped.

In: storage-ready tokens from `extract`, unit by unit.   Out: committed units, in the order in which they were given.
The crc32c, the writes and the fsyncs run while the next batch is computed; a full queue makes the caller wait.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from loffta.store.cache import CachedArray
from loffta.store.ledger import ImageStatus
from loffta.store.writer import Stored, UnitWriter

MAX_WAITING = 2  # calls; a batch is one for its thumbnails and one for its tokens

Fetch = Callable[[], Stored]  # may wait for a device; the thread does, not the caller


class UnitSink:
    """Open units of several arrays; leaving the context waits for what was given and deletes what was not committed.

    An error of the thread is raised by the next call, or on leaving the context.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="loffta-sink")
        self._error: BaseException | None = None
        self._open: set[UnitWriter] = set()
        self.n_bytes = 0  # of tokens written

    def open(self, array: CachedArray, unit: int) -> UnitWriter:
        """Starts a unit of one array."""
        self._refuse()
        writer = UnitWriter(array.paths, array.layout, unit)
        self._open.add(writer)
        return writer

    def append(self, parts: Sequence[tuple[UnitWriter, Fetch]], rows: Sequence[int], keys: Sequence[str]) -> None:
        """Hands one batch of images over, for all its arrays at once, as `UnitWriter.append`.

        One call for each array would make the caller wait for all but the last of them.
        """

        def write() -> None:
            for writer, fetch in parts:
                stored = fetch()
                writer.append(rows, stored, keys)
                self.n_bytes += stored.values.nbytes

        self._put(write)

    def commit(self, parts: Sequence[tuple[UnitWriter, dict[str, Any]]], images: Sequence[ImageStatus]) -> None:
        """Puts a unit of several arrays in place behind all that was appended to it, as `UnitWriter.commit`."""

        def finish() -> None:
            for writer, run in parts:
                writer.commit(images, run)
                self._open.discard(writer)

        self._put(finish)

    def __enter__(self) -> UnitSink:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        for writer in self._open:
            writer.abort()
        if error is None:
            self._refuse()

    def _put(self, call: Callable[[], object]) -> None:
        self._refuse()
        self._queue.put(call)  # the thread empties the queue even after an error, so this cannot wait for ever

    def _refuse(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (call := self._queue.get()) is not None:
            if self._error is None:
                try:
                    call()
                except BaseException as error:
                    self._error = error

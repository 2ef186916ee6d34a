"""Who fills a feed's buffers: threads ahead of the head, or the head's own thread where that is sooner done.

In: how many threads, how much a batch is.   Out: Futures of what is being read. Called by `batches`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

_MAX_READS = 4  # batches that are read at a time; more threads share them
# A batch in memory below this is copied by whoever asks for it: 0.05 ms for 256 kB, as long as a thread takes to wake,
# and a thread wants the interpreter's lock, too. On two busy cores steps of 41 kB are 1.15 times as fast without one,
# of 164 kB 1.04 times; of 3.6 MB as fast.
IN_PLACE_BYTES = 1 << 18


class Readers:
    """Threads that read batches, and threads that help each of them; none where reads are done in place."""

    def __init__(self, n_threads: int, *, one_by_one: bool, in_place: bool) -> None:
        self.waited_s = 0.0  # by the head's own thread, all epochs together
        self.n_reads = 1 if one_by_one else min(n_threads, _MAX_READS)
        self.n_parts = -(-n_threads // self.n_reads)
        self._reads = None if in_place else ThreadPoolExecutor(self.n_reads, thread_name_prefix="loffta-feed")
        self.helpers: Executor = ThreadPoolExecutor(n_threads, thread_name_prefix="loffta-feed-part")

    def read(self, action: Callable[..., None], *args: Any) -> Future[None]:
        """Begins `action`; in place it is done when this returns."""
        if self._reads is not None:
            return self._reads.submit(action, *args)
        done: Future[None] = Future()
        start = time.perf_counter()
        try:
            action(*args)
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)
        self.waited_s += time.perf_counter() - start
        return done

    def wait(self, read: Future[None]) -> None:
        """Until it is done; raises what it raised."""
        if not read.done():
            start = time.perf_counter()
            try:
                read.exception()
            finally:
                self.waited_s += time.perf_counter() - start
        read.result()

    def close(self) -> None:
        """Ends the threads."""
        for pool in (self._reads, self.helpers):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

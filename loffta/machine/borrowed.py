"""A process that is somebody else's: what a call of the library changes in it comes back when the call ends.

In: a call of the front door.   Out: torch's threads and switches, warning filters and the module path as they were,
after an error, too, and where several threads call at a time. The command line owns its process and does without.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch

from loffta.machine.progress import silenced

_threads: ContextVar[int | None] = ContextVar("threads of the caller", default=None)


class Shared:
    """A change of the whole process that several threads may ask for at a time: made by the first, undone by the last.

    Each undoing its own would leave behind what another one had found changed.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._n_inside = 0
        self._change: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._change = self._make()
                self._change.__enter__()
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0 and self._change is not None:
                self._change.__exit__(None, None, None)


def lent_threads() -> int | None:
    """The threads that torch had when a call of the library began; None in a process of our own."""
    return _threads.get()


@contextmanager
def borrowed(*, progress: bool = True) -> Iterator[None]:
    """For the time of one call.

    Args:
        progress: whether progress and notes go to stderr.
    """
    threads = torch.get_num_threads()  # OpenMP keeps a number for each thread
    lent = _threads.set(threads)
    try:
        with _switches, silenced(not progress):
            yield
    finally:
        _threads.reset(lent)
        torch.set_num_threads(threads)


@contextmanager
def _keep_switches() -> Iterator[None]:
    precision, tf32, path = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, list(sys.path)
    with warnings.catch_warnings():
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = tf32
            sys.path[:] = [place for place in sys.path if place in path]


_switches = Shared(_keep_switches)

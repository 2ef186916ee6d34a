"""How much memory decoding may take at once, whatever the number of threads.

In: bytes, before they are taken.   Out: leave to take them. One image alone may take more than there is: it waits until
nobody else holds anything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from loffta.machine import process

MOST = 2 << 30  # bytes: 40 photographs of 12 megapixels at once; more threads than that wait for the network anyway
_SHARE = 4  # of the memory that is free: a quarter
_LEAST = 64 << 20


class Room:
    """Bytes that several threads share."""

    def __init__(self, n_bytes: int | None = None) -> None:
        """`n_bytes`: None for 2 GiB, or a quarter of the memory that is free where that is less."""
        if n_bytes is None:
            n_bytes = max(_LEAST, min(MOST, process.free_memory_bytes() // _SHARE))
        self._n_bytes = n_bytes
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, n_bytes: int) -> Iterator[Held]:
        """Waits until there is room; whoever holds something must not wait for more."""
        with self._changed:
            self._changed.wait_for(lambda: self._held + n_bytes <= self._n_bytes or self._held == 0)
            self._held += n_bytes
        held = Held(self, n_bytes)
        try:
            yield held
        finally:
            self._add(held, -held.n_bytes)

    def _add(self, held: Held, n_bytes: int) -> None:
        with self._changed:
            self._held += n_bytes
            held.n_bytes += n_bytes
            self._changed.notify_all()

    def grow(self, held: Held, n_bytes: int) -> bool:
        """Takes more for one holder without waiting; False where it does not fit beside the others."""
        with self._changed:
            alone = self._held == held.n_bytes
            if not alone and self._held - held.n_bytes + n_bytes > self._n_bytes:
                return False
            self._add(held, n_bytes - held.n_bytes)
            return True


class Held:
    """What one thread holds of a Room."""

    def __init__(self, room: Room, n_bytes: int) -> None:
        self._room, self.n_bytes = room, n_bytes

    def grow_to(self, n_bytes: int) -> bool:
        """Whether it may take `n_bytes` in all; it never waits."""
        return self._room.grow(self, n_bytes)

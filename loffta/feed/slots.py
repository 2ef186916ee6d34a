"""What of a feed's batches is being read, and into which buffers: the books that `batches` keeps.

In: nothing.   Out: Slots, the Parts that are read into them, and the Epoch that they are of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loffta.feed.copies import Copy
from loffta.shares import Share


@dataclass
class Slot:
    buffers: list[Tensor]  # one per source, for a batch or a whole window
    copied: Any = None  # CUDA event after the last copy out of this slot


@dataclass
class Part:
    """One batch of a slot that is being read."""

    slot: Slot
    read: Future[None]
    first: int  # where in the slot it begins
    places: NDArray[np.int64]
    last: bool  # of its slot
    share: Share | None
    copy: Copy | None = None


@dataclass
class Epoch:
    """What one epoch has still to hand out."""

    waiting: Iterator[NDArray[np.int64]]  # not begun, a slot's each
    parts: deque[Part] = field(default_factory=deque)  # begun
    number: int | None = None  # of the epoch

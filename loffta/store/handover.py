"""How a batch of tokens gets from the device that made it into the hands of the thread that writes it, part by part.

In: what a network gave for one batch and array.   Out: Stored, in a HostBuffer, which its thread uses for every part.
`extract` hands over, the threads of `sink` fetch. Fresh memory for each part would cost as much as cast and checksum
together: the kernel gives it page by page, zeroed, and threads queue for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loffta.store.scales import Scales
from loffta.store.writer import Cast, Stored, cast


class HostBuffer:
    """One thread's memory for the part in hand; pinned where a CUDA device copies to it, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a tensor, with whatever it holds; what was taken before is given up."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if len(self._bytes) < n_bytes:
            self._bytes = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=self.stream is not None)
        return self._bytes[:n_bytes].view(dtype).view(tuple(shape))


@runtime_checkable
class Batch(Protocol):
    """One batch of one array."""

    def fetch(self, part: slice, buffer: HostBuffer, /) -> Stored:
        """Some of its images, good until the buffer is used again; waits for the device."""


@dataclass(frozen=True)
class Pixels:
    """Images that are stored as they are: there are no taps to audit."""

    values: NDArray[Any]  # [B, S, S, 3], or [B, S, S] of dense targets

    def fetch(self, part: slice, _: HostBuffer) -> Stored:
        """See Batch."""
        values = self.values[part]
        return Stored(values, np.ones((len(values), 0), bool), np.zeros((len(values), 0), np.float32))


@dataclass(frozen=True)
class OnHost:
    """Tokens of a CPU, which the thread that writes them casts: the part is in its cache when it is checked."""

    taps: Sequence[Float[Tensor, "B ..."]]  # L of them
    dtype: str
    scales: Scales | None

    def fetch(self, part: slice, buffer: HostBuffer) -> Stored:
        """See Batch."""
        return cast([tap[part] for tap in self.taps], self.dtype, self.scales, take=buffer.take).fetch()


class OnDevice:
    """Tokens that another device has cast, or will have."""

    def __init__(self, made: Cast) -> None:
        self._made = made
        self._done: Any = None  # the CUDA event after the cast
        if made.values.is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(made.values.device))

    def fetch(self, part: slice, buffer: HostBuffer) -> Stored:
        """See Batch. On the default stream the copy would wait for the forward pass that is behind it in the queue."""
        made = self._made.part(part)
        if buffer.stream is None:
            return made.fetch(buffer.take)
        with torch.cuda.stream(buffer.stream):
            buffer.stream.wait_event(self._done)
            return made.fetch(buffer.take)  # its last copy waits for those before it


def hand_over(taps: Sequence[Float[Tensor, "B ..."]], dtype: str, scales: Scales | None) -> Batch:
    """What a network gave for one array, to be cast where that is cheapest."""
    return OnHost(taps, dtype, scales) if taps[0].device.type == "cpu" else OnDevice(cast(taps, dtype, scales))

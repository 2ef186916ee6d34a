"""Brings a feed's buffers to the device; on CUDA beside the computing, on a stream of its own.

In: tensors in pinned host memory.   Out: the same on the device, safe to use and, once used, safe to free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Copy:
    """Copies that were begun."""

    tensors: list[Tensor]
    done: Any = None  # the CUDA event after them


class DeviceCopies:
    """Copies to one device. On the CPU nothing is copied: what comes out are views of the buffers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def overlap(self) -> bool:
        """Whether a copy that is begun early runs while the device computes."""
        return self._stream is not None

    def buffer(self, array: NDArray[Any]) -> Tensor:
        """A host buffer as a tensor; pinned where copies overlap, for from other memory they would not."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.overlap else tensor

    def begin(self, tensors: Sequence[Tensor]) -> Copy:
        """Begins to copy; the buffers must stay as they are until the copy is done."""
        if self._stream is None:
            return Copy([tensor.to(self._device) for tensor in tensors])
        with torch.cuda.stream(self._stream):
            moved = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return Copy(moved, done)

    def take(self, copy: Copy) -> list[Tensor]:
        """The tensors, for use on the current stream, which waits for the copies; the caller does not."""
        if copy.done is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copy.done)
            for tensor in copy.tensors:
                tensor.record_stream(current)  # else their memory could be used for the next copy too early
        return copy.tensors

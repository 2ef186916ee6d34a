"""What a head takes for an image: measured while an evaluation runs, for the plot of quality against time.

In: the calls of heads on batches.   Out: milliseconds an image of one head, reading and metrics not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Sums up over batches: what all heads share (`shared`), and each head for itself (`own`)."""

    def __init__(self) -> None:
        self._shared = self._own = 0.0  # seconds an image, summed over images
        self._n_shared = self._n_own = 0
        self.device = torch.device("cpu")

    @contextmanager
    def shared(self, device: torch.device, n_images: int) -> Iterator[None]:
        """Around what is done once for all heads."""
        start = _now(device)
        yield
        self._shared += _now(device) - start
        self._n_shared += n_images
        self.device = device

    @contextmanager
    def own(self, device: torch.device, n_images: int, n_heads: int = 1) -> Iterator[None]:
        """Around the calls of `n_heads` heads."""
        start = _now(device)
        yield
        self._own += _now(device) - start
        self._n_own += n_images * n_heads
        self.device = device

    @property
    def is_used(self) -> bool:
        """Whether heads were called within it."""
        return self._n_own > 0

    @property
    def milliseconds(self) -> float:
        """Of an image, for one head."""
        return 1e3 * (self._shared / max(1, self._n_shared) + self._own / self._n_own)


def timing(clocks: Sequence[Clock]) -> dict[str, Any]:
    """What results.json says: of several folds' heads the mean; nothing where nothing was timed."""
    if not all(clock.is_used for clock in clocks):
        return {}
    device = clocks[0].device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    mean = sum(clock.milliseconds for clock in clocks) / len(clocks)
    return {"timing": {"device": name, "threads": torch.get_num_threads(), "head_ms": mean}}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # calls return before the work is done
    return time.perf_counter()

"""Feeds heads from a cache: shuffled batches of features, read ahead of the head by a few threads.

In: Features and rows.   Out: tensors on the device, in reused buffers. Threads, not worker processes: a DataLoader
carries every batch across a process boundary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta import machine
from loffta.features import Feature
from loffta.store.zarr_reader import open_array

Mode = Literal["host", "stream"]
HOST_SHARE = 0.5  # of the free memory that host mode may take
_LOAD_ROWS = 256  # images read at once when a host feed fills


@dataclass(frozen=True)
class Batch:
    """Images of one step. The tensors are views of reused buffers: valid until the next batch is asked for."""

    rows: Tensor  # [B] int64, rows of the image table
    features: tuple[Tensor, ...]  # one [B, L, *shape] per Feature, in the storage dtype; int8 as float32


@dataclass
class _Slot:
    buffers: list[Tensor]  # one per feature, [batch_size, ...]; pinned where the device is CUDA
    copied: Any = None  # CUDA event after the copies out of this slot


class Feed:
    """Batches of some rows, in an order that depends on `seed` and epoch alone, not on threads.

    host mode keeps all features in memory, stream mode reads them for each batch; both give the same tensors.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        rows: NDArray[np.int64],
        *,
        batch_size: int,
        device: torch.device | None = None,
        mode: Mode | Literal["auto"] = "auto",
        seed: int = 0,
        n_threads: int = 2,
    ) -> None:
        """Opens the arrays; in host mode reads them.

        Args:
            rows: rows to feed, each once an epoch.
            n_threads: batches that are read at the same time; 2 saturate a page cache, a cold disk likes 16.
        """
        self.features = tuple(features)
        self.rows = rows
        self.batch_size = batch_size
        self.mode: Mode = choose_mode(features, len(rows)) if mode == "auto" else mode
        self._device = device or torch.device("cpu")
        self._seed = seed
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="loffta-feed")
        self._readers = [open_array(feature.array.paths) for feature in self.features]
        self._held = self._load() if self.mode == "host" else None
        self._slots = [self._make_slot() for _ in range(n_threads + 2)]
        self._running: Generator[Batch, None, None] | None = None

    def __len__(self) -> int:
        """Batches per epoch; the last may be smaller."""
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All rows once, in the seeded order of this epoch; an epoch that still runs ends."""
        rng = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        return self._start(rng.permutation(len(self.rows)))

    def in_order(self) -> Iterator[Batch]:
        """All rows once, as given; an epoch that still runs ends."""
        return self._start(np.arange(len(self.rows)))

    def close(self) -> None:
        """Ends the epoch that still runs, and the threads."""
        if self._running is not None:
            self._running.close()
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, order: NDArray[np.int64]) -> Iterator[Batch]:
        if self._running is not None:
            self._running.close()  # two epochs would write into the same buffers
        self._running = self._batches(order)
        return self._running

    def _batches(self, order: NDArray[np.int64]) -> Generator[Batch, None, None]:
        waiting = iter([order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)])
        free = deque(self._slots)
        reading: deque[tuple[_Slot, NDArray[np.int64], Future[None]]] = deque()
        try:
            while True:
                while free and (places := next(waiting, None)) is not None:
                    slot = free.popleft()
                    reading.append((slot, places, self._pool.submit(self._fill, slot, places)))
                if not reading:
                    return
                slot, places, future = reading.popleft()
                future.result()
                yield self._hand_out(slot, places)
                free.append(slot)
        finally:  # a consumer that stops early must not leave threads writing into buffers of the next epoch
            for _, _, future in reading:
                if not future.cancel():
                    future.exception()

    def _fill(self, slot: _Slot, places: NDArray[np.int64]) -> None:
        if slot.copied is not None:
            slot.copied.synchronize()
        for i, (feature, reader) in enumerate(zip(self.features, self._readers, strict=True)):
            out = slot.buffers[i].numpy()[: len(places)]
            if self._held is not None:
                # one row is one memcpy; "clip" spares numpy a second, buffered pass
                np.take(self._held[i], places, axis=0, out=out, mode="clip")
            else:
                reader.read(self.rows[places], feature.raw_taps, out)

    def _hand_out(self, slot: _Slot, places: NDArray[np.int64]) -> Batch:
        rows = torch.from_numpy(self.rows[places])
        raw = [buffer[: len(places)].to(self._device, non_blocking=True) for buffer in slot.buffers]
        if self._device.type == "cuda":
            slot.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.copied.record()
        done = [(f.finish if self._held is None else f.decode)(t) for f, t in zip(self.features, raw, strict=True)]
        return Batch(rows.to(self._device, non_blocking=True), tuple(done))

    def _make_slot(self) -> _Slot:
        """Buffers are reused for the whole run: fresh ones halve the rate by their page faults."""
        pinned = self._device.type == "cuda"
        if self._held is not None:
            like = [np.empty((self.batch_size, *array.shape[1:]), array.dtype) for array in self._held]
        else:
            like = [r.empty(self.batch_size, f.raw_taps) for f, r in zip(self.features, self._readers, strict=True)]
        buffers = [torch.from_numpy(array) for array in like]
        return _Slot([buffer.pin_memory() for buffer in buffers] if pinned else buffers)

    def _load(self) -> list[NDArray[Any]]:
        """Every feature of every row, reduced (chosen taps, pooled), [n, L, *shape]; int8 stays int8."""
        held = []
        for feature, reader in zip(self.features, self._readers, strict=True):
            spec = feature.spec
            target = np.empty((len(self.rows), len(spec.taps), *spec.shape), feature.held_dtype)
            for first in range(0, len(self.rows), _LOAD_ROWS):
                rows = self.rows[first : first + _LOAD_ROWS]
                raw = reader.read(rows, feature.raw_taps, pool=self._pool, n_parts=2)
                target[first : first + len(rows)] = feature.reduce(torch.from_numpy(raw)).numpy()
            held.append(target)
        return held


def choose_mode(features: Sequence[Feature], n_rows: int) -> Mode:
    """host where the features of all rows fit half of the free memory, else stream."""
    room = HOST_SHARE * machine.free_memory_bytes()
    return "host" if bytes_per_image(features) * n_rows <= room else "stream"


def bytes_per_image(features: Sequence[Feature]) -> int:
    """Bytes of one image's features as host mode keeps them."""
    return sum(len(f.spec.taps) * math.prod(f.spec.shape) * f.held_dtype.itemsize for f in features)

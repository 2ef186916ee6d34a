"""Feeds heads from a cache: shuffled batches of features, read ahead of the head by a few threads.

In: Features and rows.   Out: tensors on the device, in reused buffers. Threads, not worker processes: a DataLoader
carries every batch across a process boundary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta.dataset.features import Feature
from loffta.feed.copies import Copy, DeviceCopies
from loffta.feed.modes import (
    Mode,
    ModeChoice,
    Placement,
    bytes_per_image,
    choose_placements,
    describe_placements,
    is_cold,
)
from loffta.feed.order import (
    Order,
    OrderChoice,
    Window,
    choose_order,
    choose_window,
    describe_ordering,
    neighbour_share,
    uniform_order,
    windowed_order,
)
from loffta.feed.readers import IN_PLACE_BYTES, Readers
from loffta.feed.slots import Epoch, Part, Slot
from loffta.feed.sources import PartOf, Source, make_sources, read_bytes
from loffta.feed.views import draw_views, stacked_rows
from loffta.shapes import TargetBatch
from loffta.shares import Share, share_of

WARM_THREADS = 2  # saturate the page cache
COLD_THREADS = 16  # a disk wants many requests at a time


@dataclass(frozen=True)
class Batch:
    """Images of one step. The features are views of reused buffers: valid until the next batch is asked for."""

    rows: Tensor  # [B] int64, rows of the image table
    features: tuple[Tensor, ...]  # one [B, L, *shape] per Feature, in the storage dtype; int8 as float32
    targets: TargetBatch | None = None  # of dense tasks: views, too
    views: NDArray[np.int64] | None = None  # [B] which one each image is shown in, where there are several
    share: Share | None = None  # what these images are of the step's, where several processes train


class Feed:
    """Batches of some rows, in an order that depends on `seed` and epoch alone, not on threads.

    Where the features come from - device, host memory, disk - is decided for each array; all give the same tensors.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        rows: NDArray[np.int64],
        *,
        batch_size: int,
        device: torch.device | None = None,
        mode: ModeChoice = "auto",
        order: OrderChoice = "auto",
        window: Window | None = None,
        seed: int = 0,
        n_alike: int = 1,
        n_threads: int | None = None,
        of: Feed | None = None,
        maps: Feature | None = None,
        views: bool = False,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        """Opens the arrays; those to be kept in memory are read.

        Args:
            rows: rows to feed, each once an epoch.
            mode: see `modes.choose_placements`.
            order: auto is windowed where more is streamed than the page cache can keep and an image is less than 1 MiB
                of its array, else uniform. It depends on the memory of the machine: keep `Feed.ordering` for a resume.
            window: of the windowed order; None: see `order.choose_window`.
            n_alike: epochs one after the other that have the same order.
            n_threads: that read at the same time; None: 16 where the page cache cannot keep what is streamed, else 2.
            of: a feed of the same features and more rows, in rising order, that stays open: what it keeps in memory
                serves this one, too.
            views: images come in any of the views that the features have; else in the first, the features' own.
            maps: dense targets of the same images, for `Batch.targets`: read, kept and copied as features are.
            process: (i, n): n processes feed from the same batches, this one with its share of each.
        Raises:
            UsageError: a mode that this machine has no room for.
            DamageFound: a chunk that is kept in memory is missing or damaged.
        """
        features = features if maps is None else (*features, maps)
        self._features, self.rows, self.batch_size = tuple(features), rows, batch_size
        self._has_maps = maps is not None
        self._n_views = 1 + len(features[0].views) if views else 1
        shown = stacked_rows(rows, self._n_views)
        self._device = device or torch.device("cpu")
        self._seed, self._n_alike, self._process = seed, n_alike, process
        self._placements: list[Placement] = (
            of._placements if of else choose_placements(features, len(shown), self._device, mode)
        )
        from_disk = [f for f, m in zip(features, self.modes, strict=True) if m == "stream"]
        streamed = read_bytes(from_disk)
        cold = is_cold(streamed * len(shown))
        self._window = window or choose_window(max(1, streamed), len(rows), batch_size)
        self.order: Order = choose_order(from_disk, cold) if order == "auto" else order
        # a window is read as one, by all threads, while the one before it is handed out
        self._slot_batches = self._window.n_images // batch_size if self.order == "windowed" and streamed else 1
        self._readers = Readers(
            n_threads or (COLD_THREADS if cold else WARM_THREADS),
            one_by_one=self._slot_batches > 1,
            in_place=not streamed and bytes_per_image(features) * batch_size < IN_PLACE_BYTES,
        )
        self._copies = DeviceCopies(self._device)
        self._running: Generator[Batch, None, None] | None = None
        self._current: Epoch | None = None  # of the epoch that runs
        self._ahead: Epoch | None = None  # of the one behind it
        self._sources: list[Source]
        if of:
            places = np.searchsorted(of.rows, rows) + np.arange(self._n_views)[:, None] * len(of.rows)
            self._sources = [PartOf(source, places.reshape(-1)) for source in of._sources]
        else:
            with ThreadPoolExecutor(COLD_THREADS) as pool:  # what is loaded may come from a cold disk
                self._sources = make_sources(features, self._placements, shown, self._device, pool, COLD_THREADS)
        n_slots = self._readers.n_reads + (2 if self._slot_batches == 1 else 1)
        self._slots = [self._make_slot() for _ in range(n_slots)]
        self._free = deque(self._slots)

    def __len__(self) -> int:
        """Batches per epoch; the last may be smaller."""
        return -(-len(self.rows) // self.batch_size)

    @property
    def waited_s(self) -> float:
        """That the consumer waited for data, all epochs together."""
        return self._readers.waited_s

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Where each feature comes from."""
        return tuple(placement.mode for placement in self._placements)

    def epoch(self, epoch: int, start: int = 0, *, more: bool = False) -> Iterator[Batch]:
        """All rows once, in the seeded order of this epoch; an epoch that still runs ends.

        Args:
            start: batches to leave out, unread; those that follow are the same as without.
            more: the next epoch will be asked for behind this one: its first batches are read while this one ends.
        """
        self._end_epoch()
        if self._ahead is not None and (self._ahead.number, start) == (epoch, 0):
            self._current, self._ahead = self._ahead, None
        else:
            self._drop_reads()
            self._current = self._plan_epoch(self._places_of(epoch), start, epoch)
        return self._begin(epoch + 1 if more else None)

    @property
    def ordering(self) -> dict[str, Any]:
        """All that decides the order beside seed and rows: a training may only go on in the same one."""
        return describe_ordering(self.order, self._window)

    def in_order(self) -> Iterator[Batch]:
        """All rows once, as given; an epoch that still runs ends."""
        self._end_epoch()
        self._drop_reads()
        self._current = self._plan_epoch(np.arange(len(self.rows)), 0)
        return self._begin()

    def describe(self) -> str:
        """One line for the user: where each array comes from and why, and what the order is worth."""
        placed = describe_placements(self._features, self._placements, len(self.rows) * self._n_views)
        if self.order == "uniform":
            return f"{placed}; uniform order"
        together = neighbour_share(self.rows, self._order_of(0), self.batch_size)
        chance = neighbour_share(self.rows, uniform_order(len(self.rows), self._seed, 0), self.batch_size)
        share = min(1.0, self._window.n_images / max(1, len(self.rows)))
        return (
            f"{placed}; windowed order: {self._window.n_images} images ({share:.1%} of all) are mixed at a time, "
            f"{together:.1%} of a batch's images have a neighbour on disk in it (uniform: {chance:.1%})"
        )

    def close(self) -> None:
        """Ends the epoch that still runs, and the threads."""
        self._end_epoch()
        self._drop_reads()
        self._readers.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        epoch //= self._n_alike
        if self.order == "windowed":
            return windowed_order(self.rows, self._window, self._seed, epoch)
        return uniform_order(len(self.rows), self._seed, epoch)

    def _places_of(self, epoch: int) -> NDArray[np.int64]:
        return draw_views(self._order_of(epoch), self._n_views, self._seed, epoch)

    def _plan_epoch(self, order: NDArray[np.int64], start: int, number: int | None = None) -> Epoch:
        assert 0 <= start <= len(self), f"an epoch has {len(self)} batches, none with number {start}"
        per_slot = self._slot_batches * self.batch_size
        bounds = [start * self.batch_size, *range((start // self._slot_batches + 1) * per_slot, len(order), per_slot)]
        return Epoch((order[a:b] for a, b in pairwise([*bounds, len(order)]) if a < b), number=number)

    def _begin(self, following: int | None = None) -> Iterator[Batch]:
        assert self._current is not None, "the caller planned it"
        self._running = self._batches(self._current, following)
        return self._running

    def _end_epoch(self) -> None:
        """Two epochs would write into the same buffers."""
        if self._running is not None:
            self._running.close()

    def _batches(self, current: Epoch, following: int | None) -> Generator[Batch, None, None]:
        try:
            while self._fill_slots(current):
                if self._free and following is not None:
                    if self._ahead is None:
                        self._ahead = self._plan_epoch(self._places_of(following), 0, following)
                    self._fill_slots(self._ahead)
                self._readers.wait(current.parts[0].read)
                part = current.parts.popleft()
                copy = self._start_copy(part)
                if self._copies.overlap:
                    self._copy_ahead(current.parts or (self._ahead.parts if self._ahead else deque()))
                yield self._hand_out(part, copy)
                if part.last:
                    self._free.append(part.slot)
        except BaseException:  # also where a consumer stops early
            self._drop_reads()
            raise

    def _fill_slots(self, epoch: Epoch) -> bool:
        """Begins as many reads as there are free slots; whether anything of the epoch is under way."""
        while self._free and (places := next(epoch.waiting, None)) is not None:
            epoch.parts.extend(self._start_read(self._free.popleft(), places))
        return bool(epoch.parts)

    def _copy_ahead(self, parts: deque[Part]) -> None:
        """Starts the copy of the next batch, if it is read: it runs while the device computes on this one."""
        if parts and parts[0].read.done() and parts[0].read.exception() is None:
            self._start_copy(parts[0])

    def _drop_reads(self) -> None:
        """Gives up what was begun: no thread may go on writing into the buffers of another epoch."""
        begun = [part for epoch in (self._current, self._ahead) if epoch is not None for part in epoch.parts]
        for part in begun:
            if not part.read.cancel():
                part.read.exception()
        self._current = self._ahead = None
        self._free = deque(self._slots)

    def _start_read(self, slot: Slot, places: NDArray[np.int64]) -> list[Part]:
        wholes = np.split(places, range(self.batch_size, len(places), self.batch_size))
        shares = [share_of(len(whole), *self._process) for whole in wholes]
        own = [whole[share.first :][: share.n_images] for whole, share in zip(wholes, shares, strict=True)]
        read = self._readers.read(self._fill, slot, np.concatenate(own))
        begun, first = [], 0
        for found, share in zip(own, shares, strict=True):
            begun.append(Part(slot, read, first, found, found is own[-1], None if self._process[1] == 1 else share))
            first += len(found)
        return begun

    def _fill(self, slot: Slot, places: NDArray[np.int64]) -> None:
        if slot.copied is not None:
            slot.copied.synchronize()
        for source, buffer in zip(self._sources, slot.buffers, strict=True):
            source.fill(places, buffer.numpy()[: len(places)], self._readers.helpers, self._readers.n_parts)

    def _start_copy(self, part: Part) -> Copy:
        if part.copy is None:
            here = slice(part.first, part.first + len(part.places))
            part.copy = self._copies.begin([buffer[here] for buffer in part.slot.buffers])
            part.slot.copied = part.copy.done
        return part.copy

    def _hand_out(self, part: Part, copy: Copy) -> Batch:
        places, found = part.places, dict[int, Tensor]()
        for source, raw in zip(self._sources, self._copies.take(copy), strict=True):
            found |= zip(source.members, source.finish(raw), strict=True)
        n_rows = len(self.rows)
        rows = torch.from_numpy(self.rows[places % n_rows]).to(self._device, non_blocking=self._copies.overlap)
        tensors = [found[i] for i in range(len(found))]
        targets = TargetBatch(tensors.pop()[:, 0]) if self._has_maps else None
        return Batch(rows, tuple(tensors), targets, places // n_rows if self._n_views > 1 else None, part.share)

    def _make_slot(self) -> Slot:
        """Buffers are reused for the whole run: fresh ones halve the rate by their page faults."""
        most = max(-(-self.batch_size // self._process[1]), self._process[1] - 1)  # of a batch: see `share_of`
        n_images = min(self._slot_batches * most, len(self.rows))
        return Slot([self._copies.buffer(source.empty(n_images)) for source in self._sources])

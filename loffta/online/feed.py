"""The feed of a training without a cache: images are decoded, augmented and run through the network on their way.

In: OnlineImages and rows.   Out: Batches, as `feed.batches.Feed` gives them to `training.fit`. Of a frozen network they
hold features, computed once for all members; of one that is trained along, pixels, for each member has its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.config import OnlineConfig
from loffta.errors import LofftaError
from loffta.feed.batches import Batch
from loffta.feed.order import uniform_order
from loffta.images.batches import PixelBatch, judge_bad
from loffta.images.geometry import PixelGeometry, View
from loffta.images.sources import ImageSource
from loffta.online.dense_learning import FreshTargets, target_batch
from loffta.online.network import Network
from loffta.online.stream import read_pixels
from loffta.store.ledger import BAD, ImageStatus
from loffta.store.table import ImageTable


@dataclass(frozen=True)
class OnlineImages:
    """An image set, and the network that sees it."""

    source: ImageSource
    table: ImageTable
    network: Network
    online: OnlineConfig
    device: torch.device
    targets: FreshTargets | None = None  # what a dense head learns
    bad: dict[int, str] = field(default_factory=dict)  # quarantined rows so far, and why

    def batches(self, rows: Sequence[int], batch_size: int, view: View | None = None) -> Generator[Batch, None, None]:
        """The good images of each stretch of `rows`, with the targets that they have; empty where there is none.

        Args:
            view: a random crop and flip of each; None: whole images.
        """
        geometry = replace(self.network.geometry, view=view)
        with closing(read_pixels(self.source, self.table, [geometry], rows, batch_size)) as stretches:
            for statuses, batch in stretches:
                self.bad.update({status.row: status.reason for status in statuses if status.status == BAD})
                squares = [] if batch is None else self._squares(batch, statuses, geometry)
                good = [i for i, square in enumerate(squares) if square is not None]
                if batch is None or not good:
                    yield Batch(torch.empty(0, dtype=torch.int64), ())
                else:
                    yield self._see(batch, good, [squares[i] for i in good])

    def refuse_bad(self, rows: NDArray[np.int64], *, done: str) -> None:
        """Raises TooManyBadImages where too many of `rows` were quarantined; and where none is left, LofftaError."""
        here = set(rows.tolist())
        bad = {row: self.bad[row] for row in sorted(here.intersection(self.bad))}
        judge_bad(bad, self.table.keys, len(rows), self.online.max_bad_frac, done=done)
        if len(bad) == len(rows):
            raise LofftaError(
                f"none of {len(rows)} images can be used", where=self.table.source, remedy="mend them, or use others"
            )

    def _squares(self, batch: PixelBatch, statuses: Sequence[ImageStatus], geometry: PixelGeometry) -> list[Any]:
        """Of each image its target, None where that is bad, and so the image; of whole images there is none."""
        if self.targets is None:
            return [()] * len(batch.rows)
        good = [status for status in statuses if status.row in set(batch.rows)]
        found = self.targets.squares(good, geometry, self.table.keys)
        bad = self.targets.source.bad
        self.bad.update({row: f"its target: {bad[row]}" for row in batch.rows if row in bad})
        return found

    def _see(self, batch: PixelBatch, good: Sequence[int], squares: Sequence[Any]) -> Batch:
        ((_, images),) = batch.pixels.items()
        images = images if len(good) == len(images) else images[good]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device)
        rows = torch.tensor([batch.rows[i] for i in good], device=self.device)
        targets = None if self.targets is None else target_batch(squares, self.device)
        seen = (pixels,) if self.online.unfrozen else tuple(self.network.features(pixels, gradients=False))
        return Batch(rows, seen, targets)


class OnlineFeed:
    """Batches of some rows: a `TrainingFeed`. Order and views depend on seed and epoch alone, as those of a cache."""

    def __init__(
        self, images: OnlineImages, rows: NDArray[np.int64], *, batch_size: int, seed: int, n_alike: int
    ) -> None:
        """Reads nothing yet.

        Args:
            n_alike: epochs one after the other that have the same order; their views differ.
        """
        self.rows = rows
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._n_alike = n_alike
        self._running: Generator[Batch, None, None] | None = None
        # a network computes as in an extraction: what `fit` sets for its heads is not for it
        self._threads, self._matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()

    def __len__(self) -> int:
        """Batches per epoch; the last may be smaller."""
        return -(-len(self.rows) // self._batch_size)

    @property
    def ordering(self) -> dict[str, Any]:
        """A permutation: nothing is gained by another order."""
        return {"order": "uniform"}

    def epoch(self, epoch: int, start: int = 0, *, more: bool = False) -> Iterator[Batch]:  # noqa: ARG002
        """All rows once; an epoch that still runs ends.

        Args:
            start: batches to leave out, unread.
            more: nothing is decoded ahead of its epoch.
        Raises:
            TooManyBadImages: at the end of an epoch.
        """
        self.close()
        self._running = self._batches(epoch, start)
        return self._running

    def describe(self) -> str:
        """What computes the features, and of what."""
        online = self._images.online
        state = "trained, too" if online.unfrozen else "frozen"
        views = "whole images" if online.augment == "none" else "random crops and flips"
        return f"{self._images.network.info.label} {state}, {views}"

    def close(self) -> None:
        """Ends the epoch that still runs, and the threads that decode."""
        if self._running is not None:
            self._running.close()

    def __enter__(self) -> OnlineFeed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        order = uniform_order(len(self.rows), self._seed, epoch // self._n_alike)
        view = View(self._seed, epoch) if self._images.online.augment == "crop-flip" else None
        rows = self.rows[order][start * self._batch_size :].tolist()
        with closing(self._images.batches(rows, self._batch_size, view)) as batches:
            while (batch := self._compute(batches)) is not None:
                yield batch
        self._images.refuse_bad(self.rows, done="the training is kept up to its last checkpoint")

    def _compute(self, batches: Iterator[Batch]) -> Batch | None:
        with _surroundings(self._threads, self._matmul):
            return next(batches, None)


@contextmanager
def _surroundings(n_threads: int, matmul: str) -> Iterator[None]:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(n_threads)
    torch.set_float32_matmul_precision(matmul)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])

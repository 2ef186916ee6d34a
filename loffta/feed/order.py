"""Orders in which a feed hands out images: decided by seed and epoch alone, each image once an epoch.

In: the rows to feed, a seed, an epoch.   Out: places [n] int64 into these rows.

uniform: a permutation; any image may follow any other. windowed: for stores that come from a cold disk in every epoch.
Runs of images that are neighbours on disk are drawn, as many as fill a window; a window is read at once, run by run,
and mixed. Neighbours therefore meet in a batch more often than chance has it: `neighbour_share` says how often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from loffta.dataset.features import Feature

Order = Literal["uniform", "windowed"]
OrderChoice = Literal["auto", "uniform", "windowed"]
WINDOW_BYTES = 1 << 30  # of features in a window; two of them are in memory
RUN_BYTES = 4 << 20  # a disk that seeks in 10 ms and reads 200 MB/s is at two thirds of its rate with runs of 4 MB
RUNS_HELP_BELOW = 1 << 20  # bytes of an image in its array: reads of larger ones are runs by themselves
_MIN_BATCHES = 4  # of a window, however large its images are
_MIN_RUNS = 32  # of a window: with fewer, neighbours would fill its batches


@dataclass(frozen=True)
class Window:
    """What is mixed at a time."""

    n_images: int  # a multiple of the batch size
    run_images: int  # neighbours on disk that are read together


def choose_order(streamed: Sequence[Feature], cold: bool) -> Order:
    """windowed where the disk is read in every epoch, and gains by reading runs (docs/decisions.md)."""
    layouts = [feature.array.layout for feature in streamed]
    in_runs = any(layout.chunk_bytes * layout.chunks_per_image < RUNS_HELP_BELOW for layout in layouts)
    return "windowed" if cold and in_runs else "uniform"


def choose_window(bytes_per_image: int, n_images: int, batch_size: int) -> Window:
    """A window of about WINDOW_BYTES, at least 4 batches; runs of about RUN_BYTES, at least 32 in a window.

    It depends on nothing but its arguments: another machine draws the same order.

    Args:
        bytes_per_image: what is read of one image.
        n_images: images of an epoch.
    """
    n_batches = max(_MIN_BATCHES, WINDOW_BYTES // (bytes_per_image * batch_size))
    window = min(n_batches, -(-n_images // batch_size)) * batch_size
    run = min(-(-RUN_BYTES // bytes_per_image), window // _MIN_RUNS)
    return Window(window, max(1, run))


def describe_ordering(order: Order, window: Window) -> dict[str, Any]:
    """An order as JSON, for a checkpoint: two with the same words are the same."""
    return {"order": order} | (asdict(window) if order == "windowed" else {})


def ordering_of(described: Mapping[str, Any]) -> tuple[Order, Window | None]:
    """What `describe_ordering` described; None where the order needs no window."""
    order: Order = described["order"]
    return order, Window(described["n_images"], described["run_images"]) if order == "windowed" else None


def uniform_order(n_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """[n] a permutation of 0..n-1."""
    return _generator(seed, epoch).permutation(n_images)


def windowed_order(rows: NDArray[np.int64], window: Window, seed: int, epoch: int) -> NDArray[np.int64]:
    """[n] places into `rows`; each consecutive `window.n_images` of them are a window, the last may be smaller.

    Runs follow the order on disk, whatever the order of `rows`, and are cut at other places in each epoch.
    """
    rng = _generator(seed, epoch)
    first = int(rng.integers(1, window.run_images + 1))
    runs = np.split(np.argsort(rows, kind="stable"), np.arange(first, len(rows), window.run_images))
    order = np.concatenate([runs[i] for i in rng.permutation(len(runs))]) if len(rows) else np.arange(0)
    for begin in range(0, len(order), window.n_images):
        rng.shuffle(order[begin : begin + window.n_images])
    return order


def neighbour_share(rows: NDArray[np.int64], order: NDArray[np.int64], batch_size: int) -> float:
    """The share of images that are in one batch with the image before or after them on disk; 0 for no rows.

    Sets are often stored class by class: the share says how far a batch is from a random draw.
    """
    if not len(rows):
        return 0.0
    batch = np.empty(len(order), dtype=np.int64)
    batch[order] = np.arange(len(order)) // batch_size
    on_disk = batch[np.argsort(rows, kind="stable")]
    together = on_disk[1:] == on_disk[:-1]
    return float((np.append(together, False) | np.append(False, together)).mean())


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, epoch]))

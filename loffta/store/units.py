"""Units: fixed ranges of rows, the grain of resume, of parallel work and of loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RUNS = 16  # stretches of rows that a limited split is taken from: its classes are sorted, and a stretch is a batch


@dataclass(frozen=True)
class Share:
    """Which units one of several processes owns: those with unit % count == index; no locks are needed."""

    index: int = 0
    count: int = 1

    def owns(self, unit: int) -> bool:
        """Whether this process writes `unit`."""
        return unit % self.count == self.index


def count_units(n_rows: int, unit_images: int) -> int:
    """Units that cover `n_rows`; the last may be part-filled."""
    return -(-n_rows // unit_images)


def rows_of(unit: int, n_rows: int, unit_images: int) -> range:
    """The rows of `unit` in a set of `n_rows` images."""
    return range(unit * unit_images, min((unit + 1) * unit_images, n_rows))


def limited_rows(splits: Sequence[str], limit: int) -> NDArray[np.int64]:
    """Rows of the `limit` images that stand for a set, rising: a share of every split, spread over it.

    Shares are proportional, by largest remainders, and one image at least while the limit lasts. Each is taken from up
    to _RUNS stretches of neighbours: the first rows would be one split, and in it one class.

    Args:
        splits: of every image.
    """
    names = dict.fromkeys(splits)
    rows_of_split = [np.flatnonzero([split == name for split in splits]) for name in names]
    sizes = np.array([len(rows) for rows in rows_of_split])
    exact = limit * sizes / sizes.sum()
    shares = np.minimum(np.maximum(np.floor(exact).astype(np.int64), 1), sizes)
    while shares.sum() > limit:
        shares[np.argmax(shares - exact)] -= 1
    while shares.sum() < min(limit, sizes.sum()):
        shares[np.argmax(np.where(shares < sizes, exact - shares, -np.inf))] += 1
    found = [_spread(rows, int(share)) for rows, share in zip(rows_of_split, shares, strict=True)]
    return np.sort(np.concatenate(found))


def _spread(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The first rows of each of up to _RUNS equal parts, `n` in all."""
    n_runs = max(1, min(n, _RUNS))
    parts = np.array_split(rows, n_runs)
    return np.concatenate([part[: n // n_runs + (i < n % n_runs)] for i, part in enumerate(parts)])

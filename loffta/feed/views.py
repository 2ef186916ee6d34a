"""Several views of every image, of which an epoch shows one: crops and flips that were extracted into stores of theirs.

In: readers of the same array of every view.   Out: one reader of all of them, and which view each image is shown in. In
a feed of n images, view v of image i is at place v * n + i; row r of it is row v * VIEW + r of a StackedReader.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.store.zarr_reader import AnyReader

VIEW = 1 << 40  # more rows than any table has
_STREAM = 1  # beside the order's, which has none


class StackedReader:
    """Same contract as ArrayReader, over all views; what it reads is copied once more, for views take turns in it."""

    def __init__(self, readers: Sequence[AnyReader]) -> None:
        self._readers = list(readers)

    def read(
        self,
        rows: NDArray[np.int64],
        taps: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
        *,
        pool: Executor | None = None,
        n_parts: int = 1,
    ) -> NDArray[Any]:
        """Reads images by view and row into `out`; see ArrayReader.read."""
        out = self.empty(len(rows), taps) if out is None else out
        views = rows // VIEW
        for view in np.unique(views).tolist():
            here = np.flatnonzero(views == view)
            out[here] = self._readers[view].read(rows[here] % VIEW, taps, pool=pool, n_parts=n_parts)
        return out

    def empty(self, n_rows: int, taps: Sequence[int] | None = None) -> NDArray[Any]:
        """A buffer for `n_rows` images: all views have one shape."""
        return self._readers[0].empty(n_rows, taps)


def stacked_rows(rows: NDArray[np.int64], n_views: int) -> NDArray[np.int64]:
    """The rows of all views, view after view."""
    return (np.arange(n_views)[:, None] * VIEW + rows).reshape(-1)


def draw_views(order: NDArray[np.int64], n_views: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Places of the images of an epoch, in their order, each in a view that seed and epoch draw for it."""
    if n_views == 1:
        return order
    rng = np.random.Generator(np.random.PCG64([seed, epoch, _STREAM]))
    return rng.integers(n_views, size=len(order))[order] * len(order) + order

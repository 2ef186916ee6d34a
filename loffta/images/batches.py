"""Reads, decodes and resizes the images of one unit in threads, one batch ahead of the model.

Out: batches of good images, in row order, at every size that is asked for; each image is decoded once.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loffta.images.decode import BadImage, PixelGeometry, decode, resize
from loffta.images.sources import ImageSource
from loffta.store.ledger import BAD, OK, ImageStatus


@dataclass(frozen=True)
class PixelBatch:
    """Good images of one unit."""

    rows: list[int]
    pixels: dict[PixelGeometry, NDArray[np.uint8]]  # [B, S, S, 3]


@dataclass(frozen=True)
class _Decoded:
    status: ImageStatus
    pixels: dict[PixelGeometry, NDArray[np.uint8]]  # empty for a quarantined image


@contextmanager
def decoding_threads(n_threads: int) -> Iterator[Executor]:
    """Threads for `UnitImages`, with PIL's warnings off: odd metadata is common, and what matters is raised.

    The filters are set here, in one thread: they belong to the process, and threads that set and restore them for each
    image leave one another's behind.
    """
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="decode")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # a stop waits for the images in hand, not for two batches


class UnitImages:
    """The images of one unit; after iterating, `statuses` tells what became of each row."""

    def __init__(
        self,
        source: ImageSource,
        keys: Sequence[str],
        rows: Sequence[int],
        sizes: Sequence[PixelGeometry],
        pool: Executor,
    ) -> None:
        self.statuses: list[ImageStatus] = []
        self._source, self._keys, self._rows = source, keys, rows
        self._sizes, self._pool = list(dict.fromkeys(sizes)), pool

    def batches(self, batch_size: int) -> Iterator[PixelBatch]:
        """Batches start at the unit's first row and skip bad images, so that they are the same after a resume."""
        pending: list[Future[_Decoded]] = []
        good: list[_Decoded] = []
        rows = iter(self._rows)
        while True:
            while len(pending) < 2 * batch_size and (row := next(rows, None)) is not None:
                pending.append(self._pool.submit(self._decode, row))
            if not pending:
                break
            image = pending.pop(0).result()
            self.statuses.append(image.status)
            if image.status.status == OK:
                good.append(image)
            if len(good) == batch_size:
                yield self._stack(good)
                good = []
        if good:
            yield self._stack(good)

    def _decode(self, row: int) -> _Decoded:
        try:
            data = self._source.read(self._keys[row])
            pixels = decode(data)
        except (BadImage, OSError) as error:
            reason = str(error) if isinstance(error, BadImage) else f"cannot be read: {error}"
            return _Decoded(ImageStatus(row, BAD, reason), {})
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        status = ImageStatus(row, OK, "", pixels.shape[1], pixels.shape[0], digest)
        return _Decoded(status, {size: resize(pixels, size) for size in self._sizes})

    def _stack(self, images: list[_Decoded]) -> PixelBatch:
        pixels = {size: np.stack([image.pixels[size] for image in images]) for size in self._sizes}
        return PixelBatch([image.status.row for image in images], pixels)

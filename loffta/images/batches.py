"""Reads, decodes and resizes images ahead of their use, unit after unit, each image once for all sizes asked for.

In: an ImageSource and the units that are due.   Out: batches of pixels and the status of every image. `extract` calls
it; threads do the work, and they start on the next unit before this one is used up.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loffta.errors import TooManyBadImages
from loffta.files.os_words import PASSING, explain
from loffta.images.decode import BadImage, Opened, one_line, open_image
from loffta.images.geometry import PixelGeometry, to_square, to_windows
from loffta.images.rgb import is_flat, to_rgb
from loffta.images.room import Held, Room
from loffta.images.sources import ImageSource
from loffta.machine import process
from loffta.machine.borrowed import Shared
from loffta.store.ledger import BAD, OK, ImageStatus
from loffta.store.table import ImageTable

_BLOCKS = 4  # of 16 MB that Pillow keeps for each thread: one photograph of 12 megapixels, at 4 bytes a pixel
_MOST_BLOCKS = 64  # for all threads: 1 GiB
_LARGE = 256 << 20  # bytes of one image, after which memory is given back: a thread's heap would keep them


@dataclass(frozen=True)
class PixelBatch:
    """Good images of one unit."""

    rows: list[int]
    pixels: dict[PixelGeometry, NDArray[np.uint8]]  # [B, S, S, 3]; of windows [B, N, S, S, 3]


@dataclass(frozen=True)
class _Decoded:
    status: ImageStatus
    pixels: dict[PixelGeometry, NDArray[np.uint8]]  # empty for a quarantined image


@contextmanager
def decoding_threads(n_threads: int) -> Iterator[Executor]:
    """Threads for an `ImageStream`, with PIL's warnings off: odd metadata is common, and what matters is raised.

    The filters are set here, in one thread: they belong to the process, and threads that set and restore them for each
    image leave one another's behind. So does Pillow's pool of memory, off by default: without it each large photograph
    comes in fresh pages, for which the threads of a process queue (a third of the time with 12 megapixels).

    The threads give way to who uses the images: what is decoded too early waits, what is written too late ends last.
    """
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="decode", initializer=process.give_way)
    with _decoding:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)  # a stop waits for the images in hand, not for two batches


@contextmanager
def _set_pillow() -> Iterator[None]:
    memory: Any = vars(Image)["core"]
    before = memory.get_blocks_max()
    memory.set_blocks_max(max(before, min(_BLOCKS * process.available_cpus(), _MOST_BLOCKS)))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\b")
            yield
    finally:
        memory.set_blocks_max(before)
        memory.clear_cache()


_decoding = Shared(_set_pillow)  # streams of several threads decode at a time


def give_memory_back() -> None:
    """What a large image has left in Pillow's pool and in the C library's heaps, of which each thread has its own."""
    memory: Any = vars(Image)["core"]
    memory.clear_cache()
    process.trim_memory()


def judge_bad(
    bad: dict[int, str],
    keys: Sequence[str],
    n_images: int,
    max_bad_frac: float,
    *,
    done: str | Path,
    remedy: str = "mend or remove the images and run the command again",
) -> None:
    """Raises TooManyBadImages where more images than allowed were quarantined.

    Args:
        n_images: that were looked at.
        done: what there is nevertheless, for the message.
    """
    if len(bad) > max_bad_frac * n_images:
        row, reason = next(iter(bad.items()))
        raise TooManyBadImages(
            f"{len(bad)} of {n_images} images cannot be used; the first: {keys[row]}: {reason}",
            where=done,
            remedy=f"{remedy}, or accept them with --max-bad-frac",
        )


class UnitImages:
    """The images of one unit; after iterating, `statuses` tells what became of each row."""

    def __init__(self, unit: int, rows: Sequence[int], stream: ImageStream) -> None:
        self.unit = unit
        self.rows = rows
        self.statuses: list[ImageStatus] = []
        self.pending: deque[Future[_Decoded]] = deque()
        self.dropped = False
        self._stream = stream

    def drop(self) -> None:
        """Gives up what is left of the unit, read or not; the stream goes on with the next."""
        self._stream.forget(self)

    def batches(self, batch_size: int) -> Iterator[PixelBatch]:
        """Batches start at the unit's first row and skip bad images, so that they are the same after a resume."""
        good: list[_Decoded] = []
        for _ in self.rows:
            image = self._stream.take(self)
            self.statuses.append(image.status)
            if image.status.status == OK:
                good.append(image)
            if len(good) == batch_size:
                yield self._stream.stack(good)
                good = []
        if good:
            yield self._stream.stack(good)


class ImageStream:
    """Iterates over units; each must be used up before the next is taken."""

    def __init__(
        self,
        source: ImageSource,
        table: ImageTable,
        sizes: Sequence[PixelGeometry],
        pool: Executor,
        units: Iterable[tuple[int, Sequence[int]]],
        *,
        n_ahead: int,
        room: Room | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            table: the image set.
            sizes: what every image is resized to; the same twice is done once.
            units: unit numbers and their rows. Taken one by one, when their images are due to be read.
            n_ahead: images that are read and decoded before they are asked for, across units.
            room: for the bytes that the threads hold; None: one of its own.
        """
        self._source, self._table, self._pool, self._n_ahead = source, table, pool, n_ahead
        self._sizes = list(dict.fromkeys(sizes))
        self._room = room or Room()
        self._units: deque[UnitImages] = deque()
        self._schedule = self._submit_all(iter(units))
        self._n_pending = 0
        self.waited_s = 0.0  # for images that were not decoded when they were asked for

    def __iter__(self) -> Iterator[UnitImages]:
        self._look_ahead()
        while self._units:
            yield self._units.popleft()
            self._look_ahead()

    def take(self, unit: UnitImages) -> _Decoded:
        """The next image of a unit."""
        self._look_ahead()
        future = unit.pending.popleft()
        start = time.perf_counter()
        image = future.result()
        self.waited_s += time.perf_counter() - start
        self._n_pending -= 1
        return image

    def forget(self, unit: UnitImages) -> None:
        """Images of a unit that nobody wants any more."""
        unit.dropped = True
        for future in unit.pending:
            future.cancel()
        self._n_pending -= len(unit.pending)
        unit.pending.clear()

    def stack(self, images: list[_Decoded]) -> PixelBatch:
        """One batch of decoded images."""
        pixels = {size: np.stack([image.pixels[size] for image in images]) for size in self._sizes}
        return PixelBatch([image.status.row for image in images], pixels)

    def _look_ahead(self) -> None:
        while self._n_pending < self._n_ahead and next(self._schedule, None) is not None:
            self._n_pending += 1

    def _submit_all(self, units: Iterator[tuple[int, Sequence[int]]]) -> Iterator[int]:
        """Submits one image whenever it is asked for the next."""
        for unit, rows in units:
            images = UnitImages(unit, rows, self)
            self._units.append(images)
            for row in rows:
                if images.dropped:
                    break
                images.pending.append(self._pool.submit(self._decode, row))
                yield row

    def _decode(self, row: int) -> _Decoded:
        """Reads and decodes as far as there is room; who has to wait for more holds nothing, and reads once more."""
        n_bytes = int(self._table.sizes[row])
        while True:
            with self._room.hold(n_bytes) as held:
                found = self._attempt(row, held)
                if held.n_bytes >= _LARGE:
                    give_memory_back()
            if not isinstance(found, int):
                return found
            n_bytes = found

    def _attempt(self, row: int, held: Held) -> _Decoded | int:
        """The image, or the bytes that it takes where there is no room for them now."""
        try:
            data = self._source.read(self._table.key_now(row))
            opened = open_image(data)
            return self._finish(row, data, opened) if held.grow_to(opened.n_bytes) else opened.n_bytes
        except (BadImage, OSError) as error:
            if isinstance(error, OSError) and error.errno in PASSING:
                raise explain(error) from error
            reason = str(error) if isinstance(error, BadImage) else one_line(f"cannot be read: {error}")
            return _Decoded(ImageStatus(row, BAD, reason), {})

    def _finish(self, row: int, data: bytes, opened: Opened) -> _Decoded:
        """The squares of one image: it is decoded once, and is RGB once for every look."""
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        picture = opened.decode()
        squares: dict[PixelGeometry, NDArray[np.uint8]] = {}
        flat = False
        for look in dict.fromkeys(size.look for size in self._sizes):
            image = to_rgb(picture, look)
            found = {s: _cut(image, s, self._table.keys[row]) for s in self._sizes if s.look == look}
            flat = flat or is_flat(image, next(iter(found.values())))
            squares |= found
        width, height = picture.image.size
        return _Decoded(ImageStatus(row, OK, "", width, height, digest, flat, picture.pages), squares)


def _cut(image: Image.Image, size: PixelGeometry, key: str) -> NDArray[np.uint8]:
    return to_square(image, size, key) if size.windows is None else to_windows(image, size, size.windows)

"""Some test images with what a run made of them, as data for `page`.

In: a run's predictions and the thumbnails of its cache.   Out: PNG pictures as data URIs, labels and confidences.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from loffta.errors import LofftaError
from loffta.reporting.predictions import read_predicted
from loffta.reporting.tables import LoadedRun
from loffta.runs.origins import trained_classes
from loffta.store.cache import Cache
from loffta.store.reader import ArrayReader


@dataclass(frozen=True)
class Picture:
    """One test image and its prediction."""

    key: str
    truth: str
    predicted: str
    confidence: float  # 0-1, the softmax output
    uri: str  # data:image/png;base64,...

    @property
    def right(self) -> bool:
        """Whether the prediction is the truth."""
        return self.truth == self.predicted


@dataclass(frozen=True)
class Gallery:
    """The pictures chosen, and out of how many."""

    pictures: tuple[Picture, ...]
    n_wrong: int
    n_images: int


def read_gallery(run: LoadedRun, n_pictures: int = 16) -> Gallery:
    """Pictures by the run's first seed: up to half of them the most confident mistakes, the rest evenly spaced hits.

    Images are found by their keys, so that any split will do, one that only the run knows, too.

    Raises:
        LofftaError: the cache, its thumbnails or the predictions of the reported split are gone.
    """
    found = read_predicted(run)
    cache, rows = cached_rows(run, found.keys)
    thumbs = cache.thumbs()
    shown = np.flatnonzero(thumbs.ledger.ready[rows])
    shown = shown[np.argsort(rows[shown], kind="stable")]  # as the cache has them
    labels, predicted, confidence = found.labels[shown], found.predicted[0][shown], found.confidence[0][shown]
    right = np.array([np.array_equal(*pair) for pair in zip(labels, predicted, strict=True)], bool)
    chosen = choose(right, confidence, n_pictures)
    pixels = ArrayReader(thumbs.paths).read(rows[shown][chosen])
    classes = trained_classes(run.paths.stores, cache.table.classes)
    pictures = tuple(
        Picture(
            str(found.keys[shown[i]]),
            _names(labels[i], classes),
            _names(predicted[i], classes),
            float(confidence[i]),
            png_uri(image),
        )
        for i, image in zip(chosen.tolist(), pixels, strict=True)
    )
    return Gallery(pictures, int((~right).sum()), len(right))


def cached_rows(run: LoadedRun, keys: NDArray[Any]) -> tuple[Cache, NDArray[np.int64]]:
    """The cache of a run, and the row in it of each image that was predicted.

    Raises:
        LofftaError: it is gone, or some of the images are not in it.
    """
    if run.cache is None:
        if "online" in run.results:
            raise LofftaError("it was tested without a cache", where=_source(run), remedy="extract the images")
        raise LofftaError("the cache is gone", where=run.config.cache, remedy="bring it back to where it was")
    places = {key: row for row, key in enumerate(run.cache.table.keys)}
    rows = np.array([places.get(str(key), -1) for key in keys], dtype=np.int64)
    if (rows < 0).any():
        missing = keys[np.flatnonzero(rows < 0)[0]]
        raise LofftaError("some of its images are not in the cache", where=str(missing), remedy="evaluate it again")
    return run.cache, rows


def choose(right: NDArray[np.bool_], confidence: NDArray[np.float32], n_pictures: int) -> NDArray[np.int64]:
    """Places of the images to show: confident mistakes first, then hits; where one kind is short, more of the other."""
    wrong, hits = np.flatnonzero(~right), np.flatnonzero(right)
    n_wrong = min(len(wrong), max(n_pictures // 2, n_pictures - len(hits)))
    n_hits = min(len(hits), n_pictures - n_wrong)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:n_wrong]
    spaced = hits[np.linspace(0, len(hits) - 1, n_hits).round().astype(np.int64)]
    return np.concatenate([worst, spaced])


def png_uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """An image as a PNG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def jpeg_uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """A photo as a JPEG in a data URI: a fifth of a PNG's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _names(found: Any, classes: Sequence[str]) -> str:
    """One class, or several in a row."""
    return ", ".join(classes[i] for i in np.atleast_1d(found)) or "none"


def _source(run: LoadedRun) -> str:
    return str(run.results["online"]["source"])

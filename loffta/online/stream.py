"""What `Feed.in_order()` gives, made anew: images -> backbones -> the tensors of each Feature. Nothing is cached.

In: Features of a run (`origins`), a source of images, rows of its listing.   Out: FreshBatches. Every image is decoded
once for all backbones, ahead of the networks, in threads; memory does not grow with their number.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta.backbones import Backbone
from loffta.crop import Windows
from loffta.dataset.features import Feature
from loffta.errors import LofftaError
from loffta.extraction.forward import Job
from loffta.extraction.jobs import Load, backbone_asked, recipe_of
from loffta.images.batches import ImageStream, PixelBatch, decoding_threads
from loffta.images.geometry import PixelGeometry, thumb_geometry
from loffta.images.sources import ImageSource
from loffta.machine import process
from loffta.runs.origins import FreshThumbs
from loffta.store.cache import Store
from loffta.store.ledger import BAD, ImageStatus
from loffta.store.recipe import differing_fields
from loffta.store.table import ImageTable
from loffta.store.writer import Cast, refuse_non_finite

BATCH_SIZE = 32  # images, where the user says nothing: what `extract` takes for small sets


@dataclass(frozen=True)
class FreshBatch:
    """Some images of the set in order, and what the networks made of the good ones."""

    statuses: list[ImageStatus]  # of every image of this stretch, quarantined ones too
    rows: list[int]  # the good ones; may be empty
    features: tuple[Tensor, ...]  # one [B, L, *shape] per Feature, as a feed's Batch has them; empty without rows.
    # Of windows [1, N, L, *shape]: an image at a time
    mirrored: tuple[Tensor, ...] = ()  # the same of the images' mirror images, where they were asked for


class _Part(NamedTuple):
    """A backbone, and which of the features it makes."""

    job: Job
    places: list[int]


class FreshStream:
    """Features made from images as they come.

    They are rounded as the store would have rounded them (float16; int8 by the run's scales): heads were trained on
    such features, and with the batch size of the extraction the same machine gives the same bits.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        source: ImageSource,
        listing: ImageTable,
        rows: Sequence[int],
        *,
        load: Load,
        device: torch.device,
        batch_size: int = BATCH_SIZE,
        mirrored: bool = False,
        windows: Windows | None = None,
    ) -> None:
        """Loads every backbone once, and compares it with the recipe.

        Args:
            features: what the heads take (`inputs`); of several runs, if need be: what they share is computed once.
            listing: of the source; `rows` count in it.
            batch_size: images per forward pass and batch; with `windows`, windows per pass.
            mirrored: whether the images' mirror images are wanted, too.
            windows: slide them over the images; None: see each as the features were made.
        Raises:
            LofftaError: a backbone cannot be had, or is not the one that made the features.
        """
        self.bad: dict[int, str] = {}  # reasons of the quarantined images, so far
        self._features, self._source, self._listing, self._rows = tuple(features), source, listing, rows
        self._batch_size, self._mirrored, self._windows = batch_size, mirrored, windows
        self._thumbs = {
            place: thumb_geometry(feature.spec.image_px, feature.array.look)
            for place, feature in enumerate(features)
            if isinstance(feature.array, FreshThumbs)
        }
        assert not (self._thumbs and windows), "there are no thumbnails of windows"
        self._parts = _make_parts(features, functools.cache(load), device, batch_size)

    def __iter__(self) -> Iterator[FreshBatch]:
        """All rows once, as given.

        Raises:
            LofftaError: a feature is not finite in its storage type; the image is named.
        """
        sizes = [self._geometry(part.job, of_mirror) for part in self._parts for of_mirror in self._looks()]
        sizes += self._thumbs.values()
        n_images = self._batch_size if self._windows is None else 1
        n_ahead = 2 * self._batch_size
        for statuses, batch in read_pixels(self._source, self._listing, sizes, self._rows, n_images, n_ahead):
            self.bad |= {status.row: status.reason for status in statuses if status.status == BAD}
            rows = [] if batch is None else batch.rows
            features = () if batch is None else self._compute(batch)
            mirrored = () if batch is None or not self._mirrored else self._compute(batch, mirrored=True)
            yield FreshBatch(statuses, rows, features, mirrored)

    def _looks(self) -> tuple[bool, ...]:
        """For which of image and mirror image pixels of their own are cut."""
        return (False, True) if self._mirrored and self._windows is not None else (False,)

    def _geometry(self, job: Job, mirrored: bool) -> PixelGeometry:
        if self._windows is None:
            return job.geometry
        return replace(job.geometry, view=None, windows=replace(self._windows, mirrored=mirrored))

    def _pixels(self, batch: PixelBatch, job: Job, mirrored: bool) -> NDArray[np.uint8]:
        """[B, S, S, 3], or all windows of the one image."""
        found = batch.pixels[self._geometry(job, mirrored)]
        if self._windows is not None:
            of_image: NDArray[np.uint8] = found[0]
            return of_image
        return _turned(found) if mirrored else found

    def _compute(self, batch: PixelBatch, mirrored: bool = False) -> tuple[Tensor, ...]:
        found: dict[int, Tensor] = {}
        for job, places in self._parts:
            pixels = self._pixels(batch, job, mirrored)
            rows = batch.rows if self._windows is None else batch.rows * len(pixels)
            names = [self._listing.keys[row] for row in rows]
            parts = list(job.run(pixels, job.arrays, names))
            for i, place in enumerate(places):
                for part, casts in parts:
                    _check(casts[i], self._features[place], names[part])
                values = [casts[i].values for _, casts in parts]
                found[place] = self._features[place].finish(values[0] if len(values) == 1 else torch.cat(values))
        for place, geometry in self._thumbs.items():
            images = batch.pixels[geometry]
            found[place] = self._features[place].finish(torch.from_numpy(_turned(images) if mirrored else images))
        of_all = (found[place] for place in range(len(self._features)))
        return tuple(of_all) if self._windows is None else tuple(feature[None] for feature in of_all)


def read_pixels(
    source: ImageSource,
    listing: ImageTable,
    sizes: Sequence[PixelGeometry],
    rows: Sequence[int],
    batch_size: int,
    n_ahead: int | None = None,
) -> Generator[tuple[list[ImageStatus], PixelBatch | None], None, None]:
    """Decodes images ahead, in stretches of `batch_size` rows.

    Args:
        n_ahead: so many; None: two stretches.
    Yields:
        The statuses of a stretch, and the good images of it; None where there is none.
    """
    stretches = ((i, rows[i : i + batch_size]) for i in range(0, len(rows), batch_size))
    with decoding_threads(process.available_cpus()) as pool:
        for images in ImageStream(source, listing, sizes, pool, stretches, n_ahead=n_ahead or 2 * batch_size):
            batch = next(images.batches(len(images.rows)), None)
            yield images.statuses, batch


def _make_parts(features: Sequence[Feature], load: Load, device: torch.device, batch_size: int) -> list[_Part]:
    """One per store: what it makes for several features, or for several runs, takes one forward pass."""
    parts = []
    computed = {i: feature.store.name for i, feature in enumerate(features) if feature.spec.kind != "thumb"}
    for name in dict.fromkeys(computed.values()):
        places = [i for i, of in computed.items() if of == name]
        store = features[places[0]].store
        taps = {tap for i in places for tap in features[i].array.taps}
        backbone = _reload(store, [spec.tap for spec in store.info.taps if spec.tap in taps], load)
        parts.append(_Part(Job(store, [features[i].array for i in places], backbone, device, batch_size), places))
    return parts


def _reload(store: Store, taps: Sequence[str], load: Load) -> Backbone:
    """The backbone of a store, by the store's own request.

    Raises:
        LofftaError: it is not the one that made the store.
    """
    request = store.info.request
    backbone = load(backbone_asked(request, taps))
    lines = differing_fields(store.info.recipe, recipe_of(backbone, request))
    if lines:
        path = store.info.weights.get("path")
        raise LofftaError(
            "this is not the backbone that made the run's features:\n    " + "\n    ".join(lines),
            where=f"store {store.name}",
            remedy=f"bring the old weights back ({path})" if path else "bring back what made the features",
        )
    return backbone


def _turned(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[B, S, S, 3] of the mirror images."""
    return pixels[:, :, ::-1].copy()


def _check(cast: Cast, feature: Feature, keys: Sequence[str]) -> None:
    if not bool(cast.finite.all()):
        refuse_non_finite(cast.fetch(), feature.array.layout, keys, where=feature.array.paths.name)

"""What `Feed.in_order()` gives, made anew: images -> backbones -> the tensors of each Feature. Nothing is cached.

In: Features of a run (`origins`), a source of images, rows of its listing.   Out: FreshBatches. Every image is decoded
once for all backbones, ahead of the networks, in threads; memory does not grow with their number.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from loffta.backbones import Backbone
from loffta.dataset.features import Feature
from loffta.errors import LofftaError
from loffta.extraction.forward import Job
from loffta.extraction.jobs import Load, backbone_asked, recipe_of
from loffta.images.batches import ImageStream, PixelBatch, decoding_threads
from loffta.images.geometry import PixelGeometry
from loffta.images.sources import ImageSource
from loffta.machine import process
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
    features: tuple[Tensor, ...]  # one [B, L, *shape] per Feature, as a feed's Batch has them; empty without rows
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
    ) -> None:
        """Loads every backbone once, and compares it with the recipe.

        Args:
            features: of `origins`; of several runs, if need be: what they share is computed once.
            listing: of the source; `rows` count in it.
            batch_size: images per forward pass and batch.
            mirrored: whether the images' mirror images are wanted, too.
        Raises:
            LofftaError: a backbone cannot be had, or is not the one that made the features.
        """
        self.bad: dict[int, str] = {}  # reasons of the quarantined images, so far
        self._features, self._source, self._listing, self._rows = tuple(features), source, listing, rows
        self._batch_size, self._mirrored = batch_size, mirrored
        self._parts = _make_parts(features, functools.cache(load), device, batch_size)

    def __iter__(self) -> Iterator[FreshBatch]:
        """All rows once, as given.

        Raises:
            LofftaError: a feature is not finite in its storage type; the image is named.
        """
        sizes = [part.job.geometry for part in self._parts]
        for statuses, batch in read_pixels(self._source, self._listing, sizes, self._rows, self._batch_size):
            self.bad |= {status.row: status.reason for status in statuses if status.status == BAD}
            rows = [] if batch is None else batch.rows
            features = () if batch is None else self._compute(batch)
            mirrored = () if batch is None or not self._mirrored else self._compute(_mirror(batch))
            yield FreshBatch(statuses, rows, features, mirrored)

    def _compute(self, batch: PixelBatch) -> tuple[Tensor, ...]:
        names = [self._listing.keys[row] for row in batch.rows]
        found: dict[int, Tensor] = {}
        for job, places in self._parts:
            parts = list(job.run(batch.pixels[job.geometry], job.arrays, names))
            for i, place in enumerate(places):
                for part, casts in parts:
                    _check(casts[i], self._features[place], names[part])
                values = [casts[i].values for _, casts in parts]
                found[place] = self._features[place].finish(values[0] if len(values) == 1 else torch.cat(values))
        return tuple(found[place] for place in range(len(self._features)))


def _mirror(batch: PixelBatch) -> PixelBatch:
    return PixelBatch(batch.rows, {size: pixels[:, :, ::-1].copy() for size, pixels in batch.pixels.items()})


def read_pixels(
    source: ImageSource,
    listing: ImageTable,
    sizes: Sequence[PixelGeometry],
    rows: Sequence[int],
    batch_size: int,
) -> Generator[tuple[list[ImageStatus], PixelBatch | None], None, None]:
    """Decodes images ahead, in stretches of `batch_size` rows.

    Yields:
        The statuses of a stretch, and the good images of it; None where there is none.
    """
    stretches = ((i, rows[i : i + batch_size]) for i in range(0, len(rows), batch_size))
    with decoding_threads(process.available_cpus()) as pool:
        for images in ImageStream(source, listing, sizes, pool, stretches, n_ahead=2 * batch_size):
            batch = next(images.batches(len(images.rows)), None)
            yield images.statuses, batch


def _make_parts(features: Sequence[Feature], load: Load, device: torch.device, batch_size: int) -> list[_Part]:
    """One per store: what it makes for several features, or for several runs, takes one forward pass."""
    parts = []
    for name in dict.fromkeys(feature.store.name for feature in features):
        places = [i for i, feature in enumerate(features) if feature.store.name == name]
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


def _check(cast: Cast, feature: Feature, keys: Sequence[str]) -> None:
    if not bool(cast.finite.all()):
        refuse_non_finite(cast.fetch(), feature.array.layout, keys, where=feature.array.paths.name)

"""COCO's average precision, of records of single images and of any resample of them.

In:  boxes that are found and true boxes of an image, in pixels.   Out: `Matches`, which of the found are right at each
overlap and range of sizes; from those of all images precision at 101 recalls. Called by `detection`.

Rules and numbers are those of pycocotools (`cocoeval.py`), boxes alone, 100 of an image and class: the surest box takes
the free true box that it overlaps most; a true box that is a crowd or of another size counts neither for nor against,
nor does what is found there, nor what is found of another size and matches nothing. A box's size is its own area,
where COCO's tables take that of the object's outline.

Of images drawn anew a match stays what it is: only sums over images change. So AP is a function of the images' weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from loffta.targets import BoxList
from loffta.tasks.bootstrap import Weights
from loffta.tasks.centernet import Found, box_areas, box_overlaps, shared_area

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # px of area
_SHAPE = (len(SIZES), len(OVERLAPS))
_N_FLAGS = len(SIZES) * len(OVERLAPS)
_CELLS = 4_000_000  # numbers of a curve's resamples at once: 32 MB

PerSize: TypeAlias = Bool[np.ndarray, "D sizes overlaps"]


class Matches(NamedTuple):
    """One image: the boxes that are found, the surest first, and the true ones."""

    scores: Float[np.ndarray, " D"]
    classes: Int64[np.ndarray, " D"]
    right: UInt8[np.ndarray, "D bits"]  # of every size and overlap, 8 to a byte
    ignored: UInt8[np.ndarray, "D bits"]
    true_classes: Int64[np.ndarray, " M"]
    true_counted: Bool[np.ndarray, "M sizes"]


def match(found: Found, true: BoxList, *, by_class: bool) -> Matches:
    """All boxes of one image; `by_class`: those of one class alone can match."""
    true_classes = true.classes if by_class else np.zeros_like(true.classes)
    right, ignored = np.zeros((2, len(found.scores), *_SHAPE), bool)
    counted = np.zeros((len(true_classes), len(SIZES)), bool)
    for c in np.union1d(found.classes, true_classes):
        mine, theirs = np.flatnonzero(found.classes == c), np.flatnonzero(true_classes == c)
        of_class = _match(found.corners[mine], true.corners[theirs].astype(np.float64), true.crowd[theirs])
        right[mine], ignored[mine], counted[theirs] = of_class
    return Matches(found.scores, found.classes, _pack(right), _pack(ignored), true_classes, counted)


def _match(
    found: Float[np.ndarray, "D 4"], true: Float[np.ndarray, "M 4"], crowd: Bool[np.ndarray, " M"]
) -> tuple[PerSize, PerSize, Bool[np.ndarray, "M sizes"]]:
    """Which of the found are right, which are ignored, and which true ones count, of every size."""
    counted = ~crowd[:, None] & _of_size(box_areas(true))
    right = np.zeros((len(found), *_SHAPE), bool)
    ignored = np.broadcast_to(~_of_size(box_areas(found))[:, :, None], right.shape).copy()
    overlaps = np.where(crowd, shared_area(found, true) / box_areas(found)[:, None], box_overlaps(found, true))
    free = np.ones((*_SHAPE, len(true)), bool)
    enough = np.minimum(OVERLAPS, 1 - 1e-10)[:, None]
    sizes, levels = np.indices(_SHAPE)
    for d in np.flatnonzero(overlaps.max(axis=1, initial=0.0) >= OVERLAPS[0]):
        takes = (free | crowd) & (overlaps[d] >= enough)
        prefers = takes & counted.T[:, None]
        prefers = np.where(prefers.any(axis=2, keepdims=True), prefers, takes)
        value = np.where(prefers, overlaps[d], -1.0)
        best = len(true) - 1 - value[:, :, ::-1].argmax(axis=2)  # of equals the last, as pycocotools
        matched = takes.any(axis=2)
        right[d] = matched & counted[best, sizes]
        ignored[d] = np.where(matched, ~counted[best, sizes], ignored[d])
        free[sizes[matched], levels[matched], best[matched]] = False
    return right, ignored, counted


class Pooled(NamedTuple):
    """The same of all images, one after the other."""

    n_images: int
    images: Int64[np.ndarray, " D"]
    scores: Float[np.ndarray, " D"]
    classes: Int64[np.ndarray, " D"]
    right: PerSize
    ignored: PerSize
    true_images: Int64[np.ndarray, " M"]
    true_classes: Int64[np.ndarray, " M"]
    true_counted: Bool[np.ndarray, "M sizes"]


def pool(records: Sequence[Matches]) -> Pooled:
    """Puts records together."""
    scores, classes, right, ignored, true_classes, true_counted = (
        np.concatenate(part) for part in zip(*records, strict=True)
    )
    return Pooled(
        len(records),
        np.repeat(np.arange(len(records)), [len(record.scores) for record in records]),
        scores,
        classes,
        _unpack(right),
        _unpack(ignored),
        np.repeat(np.arange(len(records)), [len(record.true_classes) for record in records]),
        true_classes,
        true_counted,
    )


class Curve:
    """Precision at `RECALLS` of one class, size and overlap, in any resample of the images."""

    def __init__(self, pooled: Pooled, class_number: int, size: int, overlap: int) -> None:
        from scipy.sparse import csr_array  # 0.2 s that detection alone needs

        true = pooled.true_counted[:, size] & (pooled.true_classes == class_number)
        self._n_true = np.bincount(pooled.true_images[true], minlength=pooled.n_images).astype(np.float64)
        counted = np.flatnonzero(~pooled.ignored[:, size, overlap] & (pooled.classes == class_number))
        order = counted[np.argsort(-pooled.scores[counted], kind="stable")]
        images = pooled.images[order]
        hits = np.flatnonzero(pooled.right[order, size, overlap])
        self._hits = images[hits]  # the images of the right ones, the surest first
        segment = np.searchsorted(hits, np.arange(len(images)))  # each belongs to the next right one
        before = segment < len(hits)
        cells = np.ones(int(before.sum())), (segment[before], images[before])
        self._seen = csr_array(cells, shape=(len(hits), pooled.n_images))

    def __call__(self, weights: Weights) -> Float[np.ndarray, "R recalls"]:
        """NaN where a resample has nothing to find."""
        n_block = max(1, _CELLS // max(1, len(self._hits)))
        blocks = range(0, len(weights), n_block)
        return np.concatenate([self._precision(weights[first : first + n_block]) for first in blocks])

    def _precision(self, weights: Weights) -> Float[np.ndarray, "R recalls"]:
        by_image = weights.astype(np.float64).T
        n_right = by_image[self._hits].cumsum(axis=0)
        n_seen = (self._seen @ by_image).cumsum(axis=0)
        precision = np.divide(n_right, n_seen, out=np.zeros_like(n_right), where=n_seen > 0)
        highest = np.maximum.accumulate(precision[::-1], axis=0)[::-1]  # at this recall or more
        highest = np.concatenate([highest, np.zeros((1, len(weights)))])
        n_true = self._n_true @ by_image
        found = np.full((len(weights), len(RECALLS)), np.nan)
        for r in np.flatnonzero(n_true):
            found[r] = highest[np.searchsorted(n_right[:, r] / n_true[r], RECALLS), r]
        return found


def _of_size(areas: Float[np.ndarray, " N"]) -> Bool[np.ndarray, "N sizes"]:
    """Both ends belong to a range, as pycocotools has it."""
    low, high = np.array(list(SIZES.values())).T
    return np.asarray((areas[:, None] >= low) & (areas[:, None] <= high))


def _pack(flags: PerSize) -> UInt8[np.ndarray, "D bits"]:
    return np.packbits(flags.reshape(len(flags), _N_FLAGS), axis=1)


def _unpack(packed: UInt8[np.ndarray, "D bits"]) -> PerSize:
    return np.unpackbits(packed, axis=1, count=_N_FLAGS).reshape(-1, *_SHAPE) > 0

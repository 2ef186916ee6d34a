"""Detection: boxes around objects; centres and sizes are learnt, average precision is measured as COCO does.

In:  outputs [B, C + 2, Ho, Wo], see `centernet`; boxes, crowds among them only where they are measured (who reads boxes
to train leaves crowds out).   Out: the loss for `train`; of each image which of its boxes are right, and metrics
(fractions 0-1). See `dense` for who calls.

    ap               mean over recalls and over overlaps of 0.5, 0.55, ... 0.95 of the precision (COCO)
    ap50, ap75       at an overlap of 0.5, of 0.75
    ap_small         of objects up to 32 x 32 pixels of the label; only where there is one
    ap_medium        up to 96 x 96
    ap_large         of those that are larger

Objects are found whatever their class (DeAP); with `boxes_by_class` each class has a heat map of its own, and metrics
are means over the classes that some image has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from loffta.shapes import TargetBatch
from loffta.targets import DenseSettings, NativeTarget, Readout
from loffta.tasks import centernet
from loffta.tasks.bootstrap import Weights, mean_of_defined
from loffta.tasks.centernet import Found
from loffta.tasks.matching import OVERLAPS, RECALLS, SIZES, Curve, Matches, Pooled, match, pool
from loffta.tasks.pixels import Losses, Outputs, Recount

_ALL = {"ap": slice(None), "ap50": slice(0, 1), "ap75": slice(5, 6)}  # metrics of all sizes, by overlap


def readout(n_classes: int, settings: DenseSettings) -> Readout:
    """Networks of their own for centres and for sizes."""
    return Readout((_n_maps(n_classes, settings), 2))


def loss(
    outputs: Outputs, targets: TargetBatch, settings: DenseSettings, _proxies: object = None, _rng: object = None
) -> Losses:
    """Focal loss of the centres and absolute error of the sizes, in one mean per cell of the heat map."""
    boxes = targets.boxes
    assert boxes is not None
    if settings.boxes_by_class:
        assert targets.box_classes is not None
        return centernet.losses(outputs, boxes, targets.box_classes[boxes.number])
    return centernet.losses(outputs, boxes, torch.zeros_like(boxes.image))


def records(
    outputs: Outputs, natives: Sequence[NativeTarget], settings: DenseSettings, _n_classes: int
) -> list[Matches]:
    """Which boxes of each image are right, in pixels of its label."""
    found = []
    for of_image, native in zip(centernet.find_boxes(outputs), natives, strict=True):
        assert native.boxes is not None
        in_pixels = _scaled(of_image, (native.height, native.width))
        found.append(match(in_pixels, native.boxes, by_class=settings.boxes_by_class))
    return found


def recount(records: Sequence[Matches], _classes: Sequence[str], _settings: DenseSettings) -> Recount:
    """The metrics of one seed in any resample; NaN where it has no object of the size."""
    pooled = pool(records)
    curves = {size: _curves(pooled, size) for size in SIZES}

    def count(weights: Weights) -> dict[str, Float[np.ndarray, " R"]]:
        found: dict[str, Float[np.ndarray, " R"]] = {}
        for size, of_size in curves.items():
            areas = [[curve(weights).mean(axis=1) for curve in of_class] for of_class in of_size.values()]
            of_class = np.moveaxis(np.array(areas).reshape(-1, len(OVERLAPS), len(weights)), 0, -1)
            if size == "all":
                found |= {name: mean_of_defined(of_class[levels]).mean(axis=0) for name, levels in _ALL.items()}
            else:
                found[f"ap_{size}"] = mean_of_defined(of_class).mean(axis=0)
        return found

    return count


def notes(records: Sequence[Matches], _classes: Sequence[str], _settings: DenseSettings) -> dict[str, str]:
    """By metric: why it is left out."""
    found: dict[str, str] = {}
    for size, n in _n_true(records).items():
        if n == 0:
            words = "object" if size == "all" else f"{size} object"
            found |= dict.fromkeys(_ALL if size == "all" else (f"ap_{size}",), f"left out: there is no {words}")
    return found


def details(records: Sequence[Sequence[Matches]], classes: Sequence[str], settings: DenseSettings) -> dict[str, Any]:
    """Objects by size, boxes found per image, precision at the recalls by overlap, mean over seeds and classes.

    With `boxes_by_class` the AP of each class, None where it has no object.
    """
    unit, n_maps = np.ones((1, len(records[0])), np.float32), _n_maps(len(classes), settings)
    precision = np.full((len(records), n_maps, len(OVERLAPS), len(RECALLS)), np.nan)
    for of_seed, of_classes in zip(records, precision, strict=True):
        for c, curves in _curves(pool(of_seed), "all").items():
            of_classes[c] = [curve(unit)[0] for curve in curves]
    of_overlap = mean_of_defined(np.moveaxis(precision, 1, -1)).mean(axis=0)
    shown = {f"{OVERLAPS[level]:.2f}": of_overlap[level].tolist() for level in (0, 5)}
    found: dict[str, Any] = {
        "objects": _n_true(records[0]),
        "boxes_per_image": float(np.mean([[len(record.scores) for record in of_seed] for of_seed in records])),
    }
    if found["objects"]["all"]:
        found["precision"] = {"recall": RECALLS.tolist(), "by_overlap": shown}
    if settings.boxes_by_class:
        means = precision.mean(axis=(0, 2, 3))
        found["per_class"] = [
            {"class": name, "ap": None if np.isnan(ap) else float(ap)} for name, ap in zip(classes, means, strict=True)
        ]
    return found


def decode(outputs: Outputs, _settings: DenseSettings, size: Sequence[int]) -> list[Found]:
    """The boxes of each image in pixels of an image of that size, the surest first."""
    return [_scaled(found, size) for found in centernet.find_boxes(outputs)]


def _n_maps(n_classes: int, settings: DenseSettings) -> int:
    return n_classes if settings.boxes_by_class else 1


def _scaled(found: Found, size: Sequence[int]) -> Found:
    height, width = size
    return found._replace(corners=found.corners * np.array([width, height, width, height], np.float64))


def _curves(pooled: Pooled, size: str) -> dict[int, list[Curve]]:
    """By class, of those that are there; one of every overlap."""
    place = list(SIZES).index(size)
    there = np.unique(pooled.true_classes[pooled.true_counted[:, place]])
    return {int(c): [Curve(pooled, int(c), place, level) for level in range(len(OVERLAPS))] for c in there}


def _n_true(records: Sequence[Matches]) -> dict[str, int]:
    """Objects that count, by size."""
    counts = np.sum([record.true_counted.sum(axis=0) for record in records], axis=0)
    return dict(zip(SIZES, counts.tolist(), strict=True))

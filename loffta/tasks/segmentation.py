"""Semantic segmentation: a class for every pixel; cross-entropy, and overlaps from one confusion over the split.

In:  outputs [B, C, Ho, Wo], masks whose pixels are classes; what is no class counts nowhere.   Out: the loss for
`train`; of each image how many pixels of each class are labelled, predicted and both, and metrics (fractions 0-1) of
the sums over all images. See `dense` for who calls.

    miou            intersection over union, mean over the classes that some pixel has or is given
    mean_accuracy   recall of a class's pixels, mean over the classes that some pixel has
    pixel_accuracy  share of pixels whose class has the highest logit

So does mmsegmentation (`mmseg/evaluation/metrics/iou_metric.py`), which DINOv2, DINOv3 and RADIO measure with. A class
that no pixel has and none is given is absent: NaN, and no part of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped

from loffta.shapes import TargetBatch
from loffta.targets import DenseSettings, NativeTarget, Readout
from loffta.tasks.bootstrap import Weights, mean_of_defined, ratio
from loffta.tasks.pixels import Losses, Outputs, Recount, at_size, label_map, maps_of

_NO_CLASS = -100  # cross_entropy's own


class Pixels(NamedTuple):
    """One image's pixels by class, of those classes alone that it has or is given."""

    classes: Int64[np.ndarray, " c"]
    labelled: Int64[np.ndarray, " c"]
    predicted: Int64[np.ndarray, " c"]
    right: Int64[np.ndarray, " c"]


def readout(n_classes: int, _settings: DenseSettings) -> Readout:
    """A logit per class."""
    return Readout((n_classes,))


def loss(
    outputs: Outputs, targets: TargetBatch, _settings: DenseSettings, _proxies: object = None, _rng: object = None
) -> Losses:
    """Cross-entropy of the pixels that have a class; the mean is over those of the batch (torch's own)."""
    labels = maps_of(targets).to(torch.int64)
    logits = at_size(outputs, labels.shape[1:])
    valid = labels < logits.shape[1]
    losses = F.cross_entropy(logits, labels.where(valid, _NO_CLASS), reduction="none", ignore_index=_NO_CLASS)
    return Losses(losses.sum(dim=(1, 2)), valid.sum(dim=(1, 2)).float())


def records(outputs: Outputs, natives: Sequence[NativeTarget], settings: DenseSettings, n_classes: int) -> list[Pixels]:
    """The counts of each image, at its label's own size."""
    found = []
    for of_image, native in zip(outputs, natives, strict=True):
        labels = label_map(native, settings.eval_px).astype(np.int64)
        predicted = decode(of_image[None], settings, labels.shape)[0].astype(np.int64)
        found.append(_count(labels, predicted, n_classes))
    return found


def recount(records: Sequence[Pixels], classes: Sequence[str], _settings: DenseSettings) -> Recount:
    """The metrics of one seed in any resample; NaN where no pixel of it has a class."""
    labelled, predicted, right = _by_class(records, len(classes))

    def count(weights: Weights) -> dict[str, Float[np.ndarray, " R"]]:
        has, given, both = (weights.astype(np.float64) @ part for part in (labelled, predicted, right))
        return {
            "miou": mean_of_defined(ratio(both, has + given - both)),
            "mean_accuracy": mean_of_defined(ratio(both, has)),
            "pixel_accuracy": ratio(both.sum(axis=1), has.sum(axis=1)),
        }

    return count


def notes(records: Sequence[Pixels], classes: Sequence[str], _settings: DenseSettings) -> dict[str, str]:
    """By metric: how many classes it leaves out."""
    labelled, predicted, _ = (part.sum(axis=0) for part in _by_class(records, len(classes)))
    found = {}
    for name, absent in (("miou", labelled + predicted == 0), ("mean_accuracy", labelled == 0)):
        names = [classes[int(c)] for c in np.flatnonzero(absent)]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            found[name] = f"{len(names)} of {len(classes)} classes have no pixel ({shown}) and are left out"
    return found


def details(records: Sequence[Sequence[Pixels]], classes: Sequence[str], _settings: DenseSettings) -> dict[str, Any]:
    """Of each class its IoU and recall, mean over seeds, None where it is absent from all; and its labelled pixels."""
    sums = [[part.sum(axis=0) for part in _by_class(of_seed, len(classes))] for of_seed in records]
    overlaps = mean_of_defined(np.stack([ratio(both, has + given - both) for has, given, both in sums], axis=-1))
    recalls = mean_of_defined(np.stack([ratio(both, has) for has, _, both in sums], axis=-1))
    return {
        "per_class": [
            {"class": name, "pixels": int(n), "iou": _or_none(overlap), "accuracy": _or_none(recall)}
            for name, n, overlap, recall in zip(classes, sums[0][0], overlaps, recalls, strict=True)
        ],
        "absent_classes": int(np.isnan(overlaps).sum()),
    }


def decode(outputs: Outputs, _settings: DenseSettings, size: Sequence[int]) -> Shaped[np.ndarray, "B h w"]:
    """The class of the highest logit, of equals the first: uint8, of more than 255 classes uint16."""
    dtype = np.uint8 if outputs.shape[1] <= 255 else np.uint16
    return at_size(outputs, size).argmax(dim=1).cpu().numpy().astype(dtype)


def _count(labels: Int64[np.ndarray, "h w"], predicted: Int64[np.ndarray, "h w"], n_classes: int) -> Pixels:
    valid = labels < n_classes
    has, given = labels[valid], predicted[valid]
    labelled, told, right = (np.bincount(of, minlength=n_classes) for of in (has, given, has[has == given]))
    classes = np.flatnonzero(labelled + told)
    return Pixels(classes, labelled[classes], told[classes], right[classes])


def _by_class(records: Sequence[Pixels], n_classes: int) -> Float[np.ndarray, "3 B C"]:
    """Labelled, predicted and right pixels of every image; float64 counts them exactly."""
    found = np.zeros((3, len(records), n_classes))
    for i, record in enumerate(records):
        found[:, i, record.classes] = record.labelled, record.predicted, record.right
    return found


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

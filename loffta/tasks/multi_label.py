"""Multi-label classification: any number of classes per image; a binary decision for each class.

In:  logits of a head, probabilities [S, B, C] of S seeds, which classes each image has.   Out: the loss for `train`,
metrics (fractions 0-1) and what becomes of them in resamples for `measure`.

    map      average precision, mean over the classes that some image has
    roc_auc  area under the ROC curve, mean over the classes that some image has and some has not
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loffta.tasks.bootstrap import Weights, mean_of_defined
from loffta.tasks.ranking import RocAreas, average_precisions
from loffta.tokens import Logits

HasClass: TypeAlias = Int[np.ndarray, "B C"]  # 1 where the image has the class, else 0


def loss(logits: Logits, has_class: Int[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Binary cross-entropy of each image, mean over the classes."""
    targets = has_class.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def activation(logits: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Probabilities of the classes, each for itself: sigmoid, in float32."""
    return logits.float().sigmoid()


def decide(scores: Float[np.ndarray, "*batch C"]) -> Bool[np.ndarray, "*batch C"]:
    """The classes of probability 0.5 and more."""
    return scores >= 0.5


def metrics(scores: Float[np.ndarray, "B C"], has_class: HasClass) -> dict[str, float]:
    """The metrics of one seed; those that these labels do not define are left out, see `notes`."""
    from sklearn.metrics import roc_auc_score

    found = {}
    positive, mixed = _kinds(has_class)
    if positive.any():
        found["map"] = float(np.nanmean(precisions(scores, has_class)))
    if mixed.any():
        areas = [roc_auc_score(has_class[:, c], scores[:, c]) for c in np.flatnonzero(mixed)]
        found["roc_auc"] = float(np.mean(areas))
    return found


def precisions(scores: Float[np.ndarray, "B C"], has_class: HasClass) -> Float[np.ndarray, " C"]:
    """Average precision per class, NaN where no image has it."""
    from sklearn.metrics import average_precision_score

    found = np.full(scores.shape[1], np.nan)
    for c in np.flatnonzero(has_class.any(axis=0)):
        found[c] = average_precision_score(has_class[:, c], scores[:, c])
    return found


def notes(has_class: HasClass, classes: Sequence[str]) -> dict[str, str]:
    """By metric: which classes it leaves out, or why it is left out itself."""
    found = {}
    positive, mixed = _kinds(has_class)
    for name, defined, fault in (("map", positive, "on no image"), ("roc_auc", mixed, "on no image or on all")):
        absent = [classes[int(c)] for c in np.flatnonzero(~defined)]
        if absent:
            names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            what = f"{len(absent)} of {len(classes)} classes are {fault} ({names})"
            found[name] = f"{what} and are left out" if defined.any() else f"left out: {what}"
    return found


def resampled(
    scores: Float[np.ndarray, "S B C"], has_class: HasClass, blocks: Iterable[Weights]
) -> dict[str, Float[np.ndarray, " R"]]:
    """Every metric, mean over seeds, in every resample; classes that a resample lacks are left out of its means."""
    positive, mixed = _kinds(has_class)
    areas = RocAreas(scores, has_class > 0) if mixed.any() else None
    found: dict[str, list[Float[np.ndarray, " R"]]] = {}
    for weights in blocks:
        values = {}
        if positive.any():
            by_image = np.ascontiguousarray(weights.T)
            of_class = [
                [average_precisions(of_seed[:, c], has_class[:, c] > 0, by_image) for of_seed in scores]
                for c in np.flatnonzero(positive)
            ]
            values["map"] = mean_of_defined(np.mean(of_class, axis=1).T)
        if areas is not None:
            values["roc_auc"] = mean_of_defined(areas(weights))
        for name, of_block in values.items():
            found.setdefault(name, []).append(of_block)
    return {name: np.concatenate(of_blocks) for name, of_blocks in found.items()}


def details(scores: Float[np.ndarray, "S B C"], has_class: HasClass, classes: Sequence[str]) -> dict[str, Any]:
    """Average precision of each class, mean over seeds, None where no image has it; and how many images have it."""
    of_class = np.mean([precisions(of_seed, has_class) for of_seed in scores], axis=0)
    return {
        "per_class": [
            {"class": name, "images": int(n), "ap": None if np.isnan(ap) else float(ap)}
            for name, n, ap in zip(classes, has_class.sum(axis=0), of_class, strict=True)
        ]
    }


def _kinds(has_class: HasClass) -> tuple[Bool[np.ndarray, " C"], Bool[np.ndarray, " C"]]:
    """Which classes some image has, and which some has and some has not."""
    positive = has_class.any(axis=0)
    mixed = positive & ~has_class.all(axis=0)
    return np.asarray(positive), np.asarray(mixed)

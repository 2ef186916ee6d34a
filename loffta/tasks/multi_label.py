"""Multi-label classification: any number of classes per image; a binary decision for each class.

In:  logits [S, B, C] of the heads of S seeds, which classes each image has.   Out: the loss for `train`, metrics
(fractions 0-1, log-loss in nats) and what becomes of them in resamples for `measure`. A class is ranked by its logits:
probabilities in float32 are 1.0 from a logit of 17 on, and images that differ would be equal.

    map       average precision, mean over the classes that some image has
    f1        of decisions at probability 0.5, mean over the classes that some image has or is given
    log_loss  mean binary cross-entropy of images and classes: the loss
    roc_auc   area under the ROC curve, mean over the classes that some image has and some has not
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from loffta.shapes import Logits
from loffta.tasks.bootstrap import Weights, mean_of_defined, ratio
from loffta.tasks.curves import average_precision, roc_area
from loffta.tasks.ranking import RocAreas, average_precisions

HasClass: TypeAlias = Int[np.ndarray, "B C"]  # 1 where the image has the class, else 0


def loss(logits: Logits, has_class: Int[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """Binary cross-entropy of each image, mean over the classes."""
    targets = has_class.to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


def activation(logits: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Probabilities of the classes, each for itself: sigmoid, in float32."""
    return logits.float().sigmoid()


def decide(logits: Float[np.ndarray, "*batch C"]) -> Bool[np.ndarray, "*batch C"]:
    """The classes of probability 0.5 and more."""
    return logits >= 0


def metrics(logits: Float[np.ndarray, "B C"], has_class: HasClass, _classes: Sequence[str]) -> dict[str, float]:
    """The metrics of one seed; those that these labels do not define are left out, see `notes`."""
    found = {}
    positive, mixed = _kinds(has_class)
    if positive.any():
        found["map"] = float(np.nanmean(precisions(logits, has_class)))
        decided, told = decide(logits), has_class > 0
        of_class = ratio(2 * (decided & told).sum(axis=0), decided.sum(axis=0) + told.sum(axis=0))
        found["f1"] = float(of_class[~np.isnan(of_class)].mean())
    found["log_loss"] = float(_losses(logits, has_class).mean())
    if mixed.any():
        areas = [roc_area(logits[:, c], has_class[:, c] > 0) for c in np.flatnonzero(mixed)]
        found["roc_auc"] = float(np.mean(areas))
    return found


def precisions(logits: Float[np.ndarray, "B C"], has_class: HasClass) -> Float[np.ndarray, " C"]:
    """Average precision per class, NaN where no image has it."""
    found = np.full(logits.shape[1], np.nan)
    for c in np.flatnonzero(has_class.any(axis=0)):
        found[c] = average_precision(logits[:, c], has_class[:, c] > 0)
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
    logits: Float[np.ndarray, "S B C"], has_class: HasClass, _classes: Sequence[str], blocks: Iterable[Weights]
) -> dict[str, Float[np.ndarray, " R"]]:
    """Every metric, mean over seeds, in every resample; classes that a resample lacks are left out of its means."""
    positive, mixed = _kinds(has_class)
    areas = RocAreas(logits, has_class > 0) if mixed.any() else None
    losses = np.mean([_losses(of_seed, has_class) for of_seed in logits], axis=0)
    found: dict[str, list[Float[np.ndarray, " R"]]] = {}
    for weights in blocks:
        values = {}
        if positive.any():
            values["map"] = mean_precision(logits, has_class, weights).mean(axis=1)
            values["f1"] = mean_of_defined(_f1(logits, has_class, weights)).mean(axis=1)
        values["log_loss"] = weights @ losses / len(losses)
        if areas is not None:
            values["roc_auc"] = mean_of_defined(areas(weights))
        for name, of_block in values.items():
            found.setdefault(name, []).append(of_block)
    return {name: np.concatenate(of_blocks) for name, of_blocks in found.items()}


def mean_precision(
    logits: Float[np.ndarray, "S B C"], has_class: HasClass, weights: Weights
) -> Float[np.ndarray, "R S"]:
    """`map` of each seed in every resample; NaN where a resample has no image with any class."""
    by_image = np.ascontiguousarray(weights.T)
    classes = np.flatnonzero(has_class.any(axis=0))
    of_seeds = [
        [average_precisions(of_seed[:, c], has_class[:, c] > 0, by_image) for c in classes] for of_seed in logits
    ]
    return mean_of_defined(np.array(of_seeds).transpose(2, 0, 1))


def recount(
    labels: Shaped[np.ndarray, " B"], _predicted: object, scores: Float[np.ndarray, "S B C"] | None
) -> Callable[[Weights], Any] | None:
    """`map` of each seed in any resample [R, S], from predictions that were kept; None where they hold no scores.

    Args:
        labels: of each image the numbers of its classes.
        scores: logits, or what has their order.
    """
    if scores is None:
        return None
    has_class = np.zeros(scores.shape[1:], np.int8)
    for of_image, found in zip(has_class, labels, strict=True):
        of_image[found.astype(np.int64)] = 1
    return lambda weights: mean_precision(scores, has_class, weights)


def details(logits: Float[np.ndarray, "S B C"], has_class: HasClass, classes: Sequence[str]) -> dict[str, Any]:
    """Average precision of each class, mean over seeds, None where no image has it; and how many images have it."""
    of_class = np.mean([precisions(of_seed, has_class) for of_seed in logits], axis=0)
    return {
        "per_class": [
            {"class": name, "images": int(n), "ap": None if np.isnan(ap) else float(ap)}
            for name, n, ap in zip(classes, has_class.sum(axis=0), of_class, strict=True)
        ]
    }


def _f1(logits: Float[np.ndarray, "S B C"], has_class: HasClass, weights: Weights) -> Float[np.ndarray, "R S C"]:
    found = []
    for predicted in decide(logits):
        right = weights @ (predicted & (has_class > 0)).astype(np.float32)
        found.append(ratio(2 * right, weights @ (predicted + has_class).astype(np.float32)))
    return np.stack(found, axis=1)


def _losses(logits: Float[np.ndarray, "B C"], has_class: HasClass) -> Float[np.ndarray, " B"]:
    return loss(torch.tensor(logits), torch.tensor(has_class)).double().numpy()


def _kinds(has_class: HasClass) -> tuple[Bool[np.ndarray, " C"], Bool[np.ndarray, " C"]]:
    """Which classes some image has, and which some has and some has not."""
    positive = has_class.any(axis=0)
    mixed = positive & ~has_class.all(axis=0)
    return np.asarray(positive), np.asarray(mixed)

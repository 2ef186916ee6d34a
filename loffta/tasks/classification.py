"""Classification: one class per image; cross-entropy, top-1 and balanced accuracy with bootstrap intervals.

In:  logits of a head, labels of the image set.   Out: the loss for `train`, metrics (fractions 0-1) for `evaluate`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loffta.tokens import Logits

Classes: TypeAlias = Int[np.ndarray, " B"]
METRICS = ("top1", "balanced_accuracy")


def loss(logits: Logits, labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each image, no label smoothing."""
    return F.cross_entropy(logits, labels, reduction="none")


def predict(logits: Logits) -> Int[Tensor, " B"]:
    """The class with the highest logit."""
    return logits.argmax(dim=1)


def metrics(predicted: Classes, labels: Classes) -> dict[str, float]:
    """Top-1, and balanced accuracy: the mean recall of the classes that occur in `labels`."""
    correct = predicted == labels
    recalls = [correct[labels == label].mean() for label in np.unique(labels)]
    return {"top1": float(correct.mean()), "balanced_accuracy": float(np.mean(recalls))}


def bootstrap_ci95(
    predicted: Int[np.ndarray, "S B"], labels: Classes, *, seed: int = 0, n_resamples: int = 1000
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals over images.

    Each image counts with the share of the S seeds that got it right, so the interval is about the images and not
    about the seeds. Images that share class and count of right seeds are exchangeable: instead of indices, the sizes
    of those cells are drawn, multinomially. The distribution is the same, and 1,000 resamples of 73,728 images cost
    a thousand draws per cell.

    Returns:
        lower and upper bound per name in METRICS. A class that is missing from a resample is left out of its mean.
    """
    n_right = (predicted == labels).sum(axis=0)
    (cell_labels, cell_right), sizes = np.unique(np.stack([labels, n_right]), axis=1, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(labels), sizes / len(labels), size=n_resamples)
    starts = np.flatnonzero(np.diff(cell_labels, prepend=cell_labels[0] - 1))  # cells are sorted by label
    n_images = np.add.reduceat(draws, starts, axis=1)  # [resamples, classes]
    right = np.add.reduceat(draws * (cell_right / len(predicted)), starts, axis=1)
    recalls = np.divide(right, n_images, out=np.zeros(right.shape), where=n_images > 0)
    resampled = {
        "top1": right.sum(axis=1) / len(labels),
        "balanced_accuracy": recalls.sum(axis=1) / (n_images > 0).sum(axis=1),
    }
    bounds = {name: np.quantile(values, [0.025, 0.975]) for name, values in resampled.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}

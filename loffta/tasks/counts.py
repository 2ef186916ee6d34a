"""Counts per class in any resample: images with the label, images predicted so, and both; recall and F1 from them.

In: predictions of S seeds, labels, weights of `bootstrap`.   Out: counts per seed and class, recall and F1. Called by
the tasks.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int, Shaped

from loffta.tasks.bootstrap import Weights, ratio

Classes: TypeAlias = Int[np.ndarray, " B"]
PerClass: TypeAlias = Float[np.ndarray, "R S C"]


class Counted(NamedTuple):
    """Images per resample, seed and class; float32 counts exactly up to 16 million."""

    right: Shaped[np.ndarray, "R S C"]
    labelled: Shaped[np.ndarray, "R S C"]
    predicted: Shaped[np.ndarray, "R S C"]


class Counts:
    """Sorts the images by class once; a resample is then one pass over its weights, however many classes there are."""

    def __init__(self, predicted: Int[np.ndarray, "S B"], labels: Classes, n_classes: int) -> None:
        self._n_classes = n_classes
        self._labelled = _Groups(labels, n_classes)
        self._predicted = [_Groups(of_seed, n_classes) for of_seed in predicted]
        self._right = [_Groups(np.where(of_seed == labels, labels, n_classes), n_classes + 1) for of_seed in predicted]

    def __call__(self, weights: Weights) -> Counted:
        """The counts in every resample."""
        right = np.stack([groups.sums(weights)[:, : self._n_classes] for groups in self._right], axis=1)
        predicted = np.stack([groups.sums(weights) for groups in self._predicted], axis=1)
        labelled = np.broadcast_to(self._labelled.sums(weights)[:, None], predicted.shape)
        return Counted(right, labelled, predicted)


def recall_of(counted: Counted) -> PerClass:
    """Share of a class's images that are found; NaN where it has none."""
    return ratio(counted.right, counted.labelled)


def f1_of(counted: Counted) -> PerClass:
    """Harmonic mean of precision and recall; NaN where a class has no image and is never predicted."""
    return ratio(2 * counted.right, counted.labelled + counted.predicted)


class _Groups:
    """Images sorted by the class of each."""

    def __init__(self, of_image: Classes, n_groups: int) -> None:
        self._order = np.argsort(of_image, kind="stable")
        self._present, self._starts = np.unique(of_image[self._order], return_index=True)
        self._n_groups = n_groups

    def sums(self, weights: Weights) -> Float[np.ndarray, "R G"]:
        found = np.zeros((len(weights), self._n_groups), np.float32)
        found[:, self._present] = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return found

"""Labels that are probably wrong, from what classifiers say of images they were not trained on: confident learning.

In: chances [n, C] out of fold, and the given labels.   Out: the class that each image more probably has. Called by
`auditing`.

Northcutt, Jiang and Chuang, Journal of Artificial Intelligence Research 70, 2021. A class's threshold is the mean of
what images with its label are given for it (equation 2), so that a class that is hard, or of which the classifier is
never sure, asks for less. An image counts as a class where its chance reaches that class's threshold; of several the
one with the highest chance (equation 1, and the rule for collisions below it). Those counted as another class than
their label are the errors: the off-diagonal of the confident joint. Of the paper's five ways to choose, this is the one
that names a class for every image. The worst first: by the margin between the two classes, as the paper's ranking is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


class Suspects(NamedTuple):
    """Images whose label is probably wrong, the least believable first."""

    place: NDArray[np.int64]  # [m] among the images that were judged
    suggested: NDArray[np.int64]  # [m] the class instead


def class_thresholds(chances: Float[np.ndarray, "n C"], labels: Int[np.ndarray, " n"]) -> NDArray[np.float64]:
    """[C] what images with a label are given for it, on average; infinite for a class that no image has."""
    own = chances[np.arange(len(labels)), labels].astype(np.float64)
    n_classes = chances.shape[1]
    counts = np.bincount(labels, minlength=n_classes)
    sums = np.bincount(labels, weights=own, minlength=n_classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def find_suspects(chances: Float[np.ndarray, "n C"], labels: Int[np.ndarray, " n"]) -> Suspects:
    """Off-diagonal images of the confident joint, by falling margin; of equal ones the first."""
    # a class whose images all get the same chance: their mean may be rounded above it
    reached = chances >= class_thresholds(chances, labels) - 1e-9
    counted = np.where(reached, chances, -1.0).argmax(axis=1)
    place = np.flatnonzero(reached.any(axis=1) & (counted != labels))
    margins = chances[place, counted[place]].astype(np.float64) - chances[place, labels[place]]
    place = place[np.argsort(-margins, kind="stable")]
    return Suspects(place, counted[place])

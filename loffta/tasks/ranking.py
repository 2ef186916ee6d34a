"""Metrics that depend on the order of scores alone, recounted for thousands of resamples.

In: scores and which images are positive, weights of `bootstrap`.   Out: area under the ROC curve and average precision
per class and resample. Their values on the images as they are come from scikit-learn; this is for the intervals.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from loffta.tasks.bootstrap import Weights, ratio


def placements(scores: Float[np.ndarray, " B"], positive: Bool[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Share of the other kind that each image is rightly ordered against; equal scores count half.

    Among the positive and among the negative images their mean is the area under the ROC curve. Both kinds must be
    there.
    """
    order = np.argsort(scores, kind="stable")
    ranked, hits = scores[order], positive[order]
    found = np.empty(len(scores), np.float32)
    for here in (True, False):
        own, other = ranked[hits == here], ranked[hits != here]
        below = (np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")) / (2 * len(other))
        found[order[hits == here]] = below if here else 1 - below
    return found


class RocAreas:
    """Areas under the ROC curves of C classes, mean over seeds, of any resample.

    To first order, as DeLong's interval is: each image counts with its placements among the images as they are, not
    among those of the resample. What is left out, the product of the fluctuations of both kinds, is smaller than what
    is kept by the square root of the number of images; in exchange nothing is sorted again, and a resample costs a dot
    product per class (DeLong et al., Biometrics 44, 1988; Hajek's projection of a U-statistic).
    """

    def __init__(self, scores: Float[np.ndarray, "S B C"], positive: Bool[np.ndarray, "B C"]) -> None:
        """Sorts every class of every seed once; classes without positive or negative images have no area."""
        count = positive.sum(axis=0)
        classes = np.flatnonzero((count > 0) & (count < len(positive)))
        self._positive = positive[:, classes].astype(np.float32)
        self._mean = np.zeros(self._positive.shape, np.float32)
        for k, c in enumerate(classes):
            for of_seed in scores:
                self._mean[:, k] += placements(of_seed[:, c], positive[:, c])
        self._mean /= len(scores)
        self._area = (self._mean * self._positive).sum(axis=0) / self._positive.sum(axis=0)

    def __call__(self, weights: Weights) -> Float[np.ndarray, "R K"]:
        """NaN where the resample lacks the positive or the negative images of a class; the K classes with an area."""
        found = np.tile(-self._area, (len(weights), 1))
        for kind in (self._positive, 1 - self._positive):
            found += ratio(weights @ (self._mean * kind), weights @ kind)
        return found.clip(0.0, 1.0)


def average_precisions(
    scores: Float[np.ndarray, " B"], positive: Bool[np.ndarray, " B"], by_image: Float[np.ndarray, "B R"]
) -> Float[np.ndarray, " R"]:
    """Average precision of one class in every resample: the sum over thresholds of precision times gain in recall.

    Exact: the images are sorted once, and every resample's weights are summed between one positive image and the next.
    Equal scores are one threshold, as in scikit-learn.

    Args:
        by_image: weights of the resamples, an image a row; C order makes the sums fast.
    Returns:
        NaN where a resample has no positive image.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], positive[order]
    ends = np.searchsorted(-ranked, -ranked[hits], "right")  # of each positive image's threshold
    thresholds, first = np.unique(ends, return_index=True)
    if not len(thresholds):
        return np.full(by_image.shape[1], np.nan)
    drawn = by_image[order[: thresholds[-1]]]
    above = np.add.reduceat(drawn, np.concatenate([[0], thresholds[:-1]]), axis=0).cumsum(axis=0, dtype=np.float64)
    gained = np.add.reduceat(drawn[hits[: len(drawn)]], first, axis=0)
    precision = np.divide(gained.cumsum(axis=0, dtype=np.float64), above, out=np.zeros(above.shape), where=above > 0)
    return ratio((precision * gained).sum(axis=0), gained.sum(axis=0))

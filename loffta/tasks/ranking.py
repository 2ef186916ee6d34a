"""Metrics that depend on the order of scores alone, recounted for thousands of resamples.

In: scores and which images are positive, weights of `bootstrap`.   Out: area under the ROC curve and average precision
per class and resample; the log-odds that classes of one softmax are ranked by. Values on the images as they are come
from `curves`; this is for the intervals.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float

from loffta.tasks.bootstrap import Weights, ratio

_VALUES = 4_000_000  # log-odds worked on at once: 32 MB


def log_odds(logits: Float[np.ndarray, "B C"]) -> Float[np.ndarray, "B C"]:
    """log p / (1 - p) of softmax probabilities p, from logits: one class against all others, without saturation.

    In float32 p is 1.0 from log-odds of 17 on: images that a head tells apart would be ties of the ROC curve (.9210
    became .9084 with 40 % of the scores at 1.0). With two classes it is the difference of the logits. One class alone
    has no odds.
    """
    found = np.empty(logits.shape, np.float32)
    n_rows = max(1, _VALUES // logits.shape[1])
    for first in range(0, len(logits), n_rows):
        z = logits[first : first + n_rows].astype(np.float64)
        best = z.argmax(axis=1)[:, None]
        z -= np.take_along_axis(z, best, axis=1)
        odds = np.exp(z)
        others = odds.sum(axis=1, keepdims=True) - odds  # at least 1, the best, but for the best itself
        np.log(others, where=others > 0, out=others)
        rest = z.copy()
        np.put_along_axis(rest, best, -np.inf, axis=1)
        second = rest.max(axis=1, keepdims=True)
        of_best = second + np.log(np.exp(rest - second).sum(axis=1, keepdims=True))
        np.put_along_axis(others, best, of_best, axis=1)
        found[first : first + n_rows] = z - others
    return found


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

    def __init__(self, scores: Iterable[Float[np.ndarray, "B C"]], positive: Bool[np.ndarray, "B C"]) -> None:
        """Sorts every class of every seed once; classes without positive or negative images have no area."""
        count = positive.sum(axis=0)
        classes = np.flatnonzero((count > 0) & (count < len(positive)))
        self._positive = positive[:, classes].astype(np.float32)
        self._mean = np.zeros(self._positive.shape, np.float32)
        n_seeds = 0
        for of_seed in scores:
            n_seeds += 1
            for k, c in enumerate(classes):
                self._mean[:, k] += placements(of_seed[:, c], positive[:, c])
        self._mean /= n_seeds
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

"""Areas under the curves of one class: images in the order of their scores, each distinct score a threshold.

In: scores and which images are positive, of the images as they are (`ranking` has their resamples).   Out: the numbers
of scikit-learn's `roc_auc_score` and `average_precision_score`, to the last bit: the sums run over the same terms in
the same order. Importing scikit-learn, scipy and pandas with it, takes longer than most trainings from a cache.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def roc_area(scores: Float[np.ndarray, " B"], positive: Bool[np.ndarray, " B"]) -> float:
    """Area under the ROC curve, by trapezoids; equal scores are one threshold. Both kinds of images must be there."""
    hits, misses = _counts(scores, positive)
    bends = (np.diff(hits, 2) != 0) | (np.diff(misses, 2) != 0)  # points between others of a straight line are left out
    corners = np.concatenate([[True], bends, [True]]) if len(hits) > 2 else np.ones(len(hits), bool)
    height, width = (np.append(0.0, counted[corners]) / counted[-1] for counted in (hits, misses))
    return float(np.trapezoid(height, width))


def average_precision(scores: Float[np.ndarray, " B"], positive: Bool[np.ndarray, " B"]) -> float:
    """Precision times gain in recall, summed over the thresholds from the lowest up; some image must be positive."""
    hits, misses = _counts(scores, positive)
    precision, recall = (hits / (hits + misses))[::-1], np.append((hits / hits[-1])[::-1], 0.0)
    return float(-np.sum(np.diff(recall) * precision))


def _counts(
    scores: Float[np.ndarray, " B"], positive: Bool[np.ndarray, " B"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Positive and negative images at and above each of the T thresholds, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(positive[order], dtype=np.float64)[last]
    return hits, 1 + last - hits

"""Whether a head's probabilities can be believed, and what refusing to answer would gain.

In:  logits [B, C] of one seed and labels; one class per image.   Out: errors of calibration, a temperature, the risk at
every coverage. Called by whoever measures or reports; `fit_temperature` on images that are not those measured.

The confidence of an image is the softmax of its highest logit, in float64.

    ece                mean over images of |accuracy - confidence| of their bin; 15 bins of equal width, (a, b] (Guo et
                       al., ICML 2017)
    adaptive_ece       the same with 15 bins of equally many images (Nguyen and O'Connor, EMNLP 2015), which no bin of a
                       few images can spoil
    mce                the largest |accuracy - confidence| of the bins of equal width that hold an image
    nll                mean negative log-likelihood, in nats: `log_loss` elsewhere
    brier              mean over images of the sum over classes of (probability - 1 or 0)^2 (Brier, 1950); with two
                       classes twice scikit-learn's default
    aurc               area under the risk-coverage curve (Geifman, Uziel and El-Yaniv, ICLR 2019)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import log_softmax, logsumexp

from loffta.tasks.bootstrap import ratio
from loffta.tasks.classification import decide
from loffta.tasks.ranking import log_odds

N_BINS = 15
_SHARPEST, _FLATTEST = 1e-3, 1e3  # temperatures that are sought; at their ends nothing is left to change


class Bins(NamedTuple):
    """What a reliability diagram shows; NaN where a bin holds no image."""

    n_images: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]  # mean
    accuracy: Float[np.ndarray, " bins"]

    @property
    def gaps(self) -> Float[np.ndarray, " bins"]:
        """How far accuracy and confidence are apart."""
        return np.asarray(np.abs(self.accuracy - self.confidence))


def calibration(logits: Float[np.ndarray, "B C"], labels: Int[np.ndarray, " B"]) -> dict[str, float]:
    """All figures, by name."""
    logs = log_softmax(logits.astype(np.float64), axis=1)
    wrong = np.exp(logs)
    wrong[np.arange(len(labels)), labels] -= 1
    width, mass = equal_width(logits, labels), equal_mass(logits, labels)
    return {
        "ece": _mean_gap(width),
        "adaptive_ece": _mean_gap(mass),
        "mce": float(np.nanmax(width.gaps)),
        "nll": float(-logs[np.arange(len(labels)), labels].mean()),
        "brier": float(np.square(wrong).sum(axis=1).mean()),
        "aurc": float(risks(logits, labels).mean()),
    }


def equal_width(logits: Float[np.ndarray, "B C"], labels: Int[np.ndarray, " B"], n_bins: int = N_BINS) -> Bins:
    """Bins (0, 1/n], (1/n, 2/n], ... of confidence."""
    confidence = _confidence(logits)
    return _binned(np.ceil(confidence * n_bins).astype(int).clip(1) - 1, confidence, logits, labels, n_bins)


def equal_mass(logits: Float[np.ndarray, "B C"], labels: Int[np.ndarray, " B"], n_bins: int = N_BINS) -> Bins:
    """Bins of equally many images, the first of them one larger where they do not divide; the least sure first."""
    order = np.argsort(_sureness(logits), kind="stable")
    places = np.empty(len(labels), int)
    for i, rows in enumerate(np.array_split(order, n_bins)):
        places[rows] = i
    return _binned(places, _confidence(logits), logits, labels, n_bins)


def fit_temperature(logits: Float[np.ndarray, "B C"], labels: Int[np.ndarray, " B"]) -> float:
    """The T for which logits / T have the lowest NLL (Guo et al.): one number, so no prediction changes.

    The NLL is convex in 1 / T, so its derivative, mean logit by probability less the label's, has one zero. Where
    every label has its image's highest logit it has none, for ever sharper is ever better: then 1/1000 is given; and
    1,000 where the logits are worse than none at all.
    """
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    own = z[np.arange(len(labels)), labels]

    def derivative(log_t: float) -> float:
        sharp = z * np.exp(-log_t)
        chances = np.exp(sharp - logsumexp(sharp, axis=1, keepdims=True))
        return float(((chances * z).sum(axis=1) - own).mean())

    low, high = np.log(_SHARPEST), np.log(_FLATTEST)
    if derivative(low) <= 0:
        return _SHARPEST
    if derivative(high) >= 0:
        return _FLATTEST
    return float(np.exp(brentq(derivative, low, high, xtol=1e-10)))


def risks(logits: Float[np.ndarray, "B C"], labels: Int[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """Share of errors among the 1, 2, ..., B images that are the surest.

    Images that are equally sure count as what is expected of drawing among them by chance.
    """
    sureness = _sureness(logits)
    order = np.argsort(-sureness, kind="stable")
    wrong = (decide(logits) != labels)[order].astype(np.float64)
    _, group = np.unique(-sureness[order], return_inverse=True)
    expected = (np.bincount(group, wrong) / np.bincount(group))[group]
    return np.asarray(expected.cumsum() / np.arange(1, len(labels) + 1))


def refuse(logits: Float[np.ndarray, "B C"], labels: Int[np.ndarray, " B"], share: float) -> float:
    """Accuracy of the images that are left when the least sure `share`, below 1, are refused: at least one is left."""
    return float(1 - risks(logits, labels)[max(1, round(len(labels) * (1 - share))) - 1])


def _confidence(logits: Float[np.ndarray, "B C"]) -> Float[np.ndarray, " B"]:
    return np.asarray(np.exp(log_softmax(logits.astype(np.float64), axis=1).max(axis=1)))


def _sureness(logits: Float[np.ndarray, "B C"]) -> Float[np.ndarray, " B"]:
    """What grows with the confidence, but never becomes 1 for all: the log-odds of the class chosen."""
    return np.asarray(log_odds(logits).max(axis=1))


def _binned(
    places: Int[np.ndarray, " B"],
    confidence: Float[np.ndarray, " B"],
    logits: Float[np.ndarray, "B C"],
    labels: Int[np.ndarray, " B"],
    n_bins: int,
) -> Bins:
    count = np.bincount(places, minlength=n_bins)
    right = (decide(logits) == labels).astype(np.float64)
    sums = (np.bincount(places, weights=values, minlength=n_bins) for values in (confidence, right))
    return Bins(count, *(ratio(each, count) for each in sums))


def _mean_gap(bins: Bins) -> float:
    return float(np.nansum(bins.gaps * bins.n_images) / bins.n_images.sum())

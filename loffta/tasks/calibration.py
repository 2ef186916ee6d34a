"""Whether a head's probabilities can be believed, and what refusing to answer would gain.

In:  logits [B, C] of one seed and labels; one class per image.   Out: errors of calibration, a temperature, the risk at
every coverage. Called by whoever measures or predicts; `fit_temperature` on images that are not those measured.

The confidence of an image is the softmax of its highest logit, in float64.

    ece_width15     mean over images of |accuracy - confidence| of their bin; 15 bins of equal width, (a, b] (Guo et
                    al., ICML 2017)
    ece_mass15      the same with 15 bins of equally many images (Nguyen and O'Connor, EMNLP 2015), which no bin of a
                    few images can spoil
    mce_width15     the largest |accuracy - confidence| of the bins of equal width that hold an image
    log_loss        mean negative log-likelihood, in nats
    brier_sum       mean over images of the sum over classes of (probability - 1 or 0)^2 (Brier, 1950); with two
                    classes twice scikit-learn's default
    aurc            area under the risk-coverage curve (Geifman, Uziel and El-Yaniv, ICLR 2019)
    top1_surest_90  accuracy where the least sure 10 % are refused
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from loffta.tasks.bootstrap import ratio
from loffta.tasks.classification import decide
from loffta.tasks.ranking import log_odds

N_BINS = 15
REFUSED = 0.1
_SHARPEST, _FLATTEST = 1e-3, 1e3  # temperatures that are sought
_VALUES = 4_000_000  # logits worked on at once: 32 MB


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
    losses, squares = [], []
    for rows, block in _blocks(logits):
        logs = log_softmax(block)
        own = logs[np.arange(len(logs)), labels[rows]]
        chances = np.exp(logs)
        losses.append(-own)
        squares.append(np.square(chances).sum(axis=1) - 2 * np.exp(own) + 1)
    width, mass, at_coverage = equal_width(logits, labels), equal_mass(logits, labels), risks(logits, labels)
    return {
        "ece_width15": _mean_gap(width),
        "ece_mass15": _mean_gap(mass),
        "mce_width15": float(np.nanmax(width.gaps)),
        "log_loss": float(np.concatenate(losses).mean()),
        "brier_sum": float(np.concatenate(squares).mean()),
        "aurc": float(at_coverage.mean()),
        "top1_surest_90": _kept(at_coverage, REFUSED),
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


def fit_temperature(logits: Float[np.ndarray, "B C"], labels: Int[np.ndarray, " B"]) -> float | None:
    """The T for which logits / T have the lowest NLL (Guo et al.): one number, so no prediction changes.

    The NLL is convex in 1 / T, so its derivative, mean logit by probability less the label's, has one zero, which is
    sought. None where there is none from 1/1000 to 1,000: every label has its image's highest logit, so that for
    ever sharper is ever better; or the logits are worse than none at all.
    """
    from scipy.optimize import brentq  # 0.2 s that only this needs

    def derivative(log_t: float) -> float:
        total = 0.0
        for rows, block in _blocks(logits):
            z = block - block.max(axis=1, keepdims=True)
            own = z[np.arange(len(z)), labels[rows]].sum()
            odds = np.exp(z * np.exp(-log_t))
            total += float(((odds * z).sum(axis=1) / odds.sum(axis=1)).sum() - own)
        return total

    low, high = float(np.log(_SHARPEST)), float(np.log(_FLATTEST))
    if derivative(low) <= 0 or derivative(high) >= 0:
        return None
    return float(np.exp(brentq(derivative, low, high, xtol=1e-8)))


def log_of_mean(logits: Float[np.ndarray, "S B C"]) -> Float[np.ndarray, "B C"]:
    """Logits of the mean of the seeds' probabilities; of one seed its own, but for a constant.

    Seeds are pooled first and calibrated then: the mean of calibrated probabilities is too little sure (Rahaman and
    Thiery, NeurIPS 2021).
    """
    found = np.empty(logits.shape[1:])
    for rows, _ in _blocks(logits[0]):
        logs = log_softmax(logits[:, rows])
        highest = logs.max(axis=0)
        found[rows] = highest + np.log(np.exp(logs - highest).mean(axis=0))
    return found


def log_softmax(logits: Float[np.ndarray, "*batch C"]) -> Float[np.ndarray, "*batch C"]:
    """In float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


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
    return _kept(risks(logits, labels), share)


def _kept(at_coverage: Float[np.ndarray, " B"], share: float) -> float:
    return float(1 - at_coverage[max(1, round(len(at_coverage) * (1 - share))) - 1])


def _blocks(logits: Float[np.ndarray, "B C"]) -> Iterator[tuple[slice, Float[np.ndarray, "b C"]]]:
    """Some rows after the others in float64, for the sum over all would take eight bytes a logit, several times."""
    n_rows = max(1, _VALUES // logits.shape[1])
    for first in range(0, len(logits), n_rows):
        rows = slice(first, first + n_rows)
        yield rows, logits[rows].astype(np.float64)


def _confidence(logits: Float[np.ndarray, "B C"]) -> Float[np.ndarray, " B"]:
    return np.concatenate([np.exp(log_softmax(block).max(axis=1)) for _, block in _blocks(logits)])


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

"""Logits with some signal, and the plain bootstrap over images that intervals are compared with."""

import numpy as np


def draw_logits(labels, n_classes, n_seeds=2, *, signal=1.5, digits=2, seed=0):
    """Logits [S, B, C]; rounded they have ties."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n_seeds, len(labels), n_classes))
    logits[:, np.arange(len(labels)), labels] += signal
    return logits.round(digits).astype(np.float32)


def softmax(logits):
    """In float64: of moderate logits, which it does not saturate."""
    odds = np.exp(logits.astype(np.float64))
    return odds / odds.sum(axis=-1, keepdims=True)


def draw_labels(n_images=120, shares=(0.6, 0.25, 0.1, 0.05), seed=0):
    return np.random.default_rng(seed).choice(len(shares), n_images, p=shares)


def index_bootstrap(metrics, scores, targets, n_resamples, seed=1):
    """Draws image numbers, computes the seeds' mean of every metric on the images drawn: quantiles, by name."""
    rng = np.random.default_rng(seed)
    found = {}
    for _ in range(n_resamples):
        rows = rng.integers(len(targets), size=len(targets))
        for name, value in metrics(scores[:, rows], targets[rows]).items():
            found.setdefault(name, []).append(value)
    return {name: np.nanquantile(values, [0.025, 0.975]) for name, values in found.items()}


def quadratic_kappa(predicted, labels):
    """By chance: every label with every prediction."""
    return 1 - ((labels - predicted) ** 2).mean() / ((labels[:, None] - predicted) ** 2).mean()


def average_precision(scores, positive):
    """Precision among the images that score at least as high, mean over the positive images."""
    above = scores >= scores[positive][:, None]
    return ((above & positive).sum(axis=1) / above.sum(axis=1)).mean()


def area(scores, positive):
    """Area under the ROC curve, by comparing all pairs."""
    above = scores[positive][:, None] - scores[~positive]
    return ((above > 0) + 0.5 * (above == 0)).mean()

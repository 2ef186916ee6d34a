"""Resamples of a test set, and the 95 % intervals that follow from them.

In: a number of images.   Out: how often each image is drawn in each resample; the same for all metrics and seeds, so
that an interval is about the images, with the trained heads as they are. Metrics recount themselves from these weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Shaped

Weights: TypeAlias = Float[np.ndarray, "R B"]  # each row sums to B; whole numbers where images are drawn

N_RESAMPLES = 1000
_BLOCK = 8_000_000  # weights held at once: 32 MB


def image_weights(n_images: int, n_resamples: int = N_RESAMPLES, *, seed: int = 0) -> Iterator[Weights]:
    """Blocks of resamples, drawn image by image with replacement; the size of a block changes none of them.

    1,000 resamples of 73,728 images take about a second.
    """
    rng = np.random.default_rng(seed)
    n_block = max(1, _BLOCK // n_images)
    for first in range(0, n_resamples, n_block):
        weights = np.empty((min(n_block, n_resamples - first), n_images), np.float32)
        for row in weights:
            row[:] = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)
        yield weights


def group_weights(groups: Sequence[str], n_resamples: int = N_RESAMPLES, *, seed: int = 0) -> Iterator[Weights]:
    """The same with whole groups drawn, all images of each: patients, whose images fail together.

    Groups differ in size, so resamples differ in images: each row is scaled to sum to B, which changes no mean and no
    share. (The cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, 3.8; for
    patients, Rutter, Academic Radiology 7, 2000.)
    """
    names, of_image = np.unique(groups, return_inverse=True)
    for weights in image_weights(len(names), n_resamples, seed=seed):
        n_block = max(1, _BLOCK // len(of_image))
        for first in range(0, len(weights), n_block):
            by_image = weights[first : first + n_block, of_image].astype(np.float64)
            yield by_image * (len(of_image) / by_image.sum(axis=1, keepdims=True))


def interval(values: Float[np.ndarray, " R"]) -> tuple[float, float]:
    """2.5 and 97.5 % quantile of a metric's values; resamples in which it is undefined (NaN) are left out."""
    low, high = np.quantile(values[~np.isnan(values)], [0.025, 0.975])
    return float(low), float(high)


def ratio(part: Shaped[np.ndarray, "*shape"], whole: Shaped[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """part / whole, NaN where `whole` is 0."""
    found = np.full(part.shape, np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found


def mean_of_defined(values: Float[np.ndarray, "*shape C"]) -> Float[np.ndarray, "*shape"]:
    """Mean over the last axis of the values that are not NaN; NaN where none is."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))

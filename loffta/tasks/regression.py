"""Regression: a number per image, an age or a yield; errors in its unit, and how well the order is told.

In:  values [S, B, 1] that the heads of S seeds give, in the unit of the image set's values, and these.   Out: the loss
for `train`, metrics and what becomes of them in resamples for `measure`. Heads learn standardised values
(`heads.scale`): the losses are of these, the metrics are not.

    mae       mean absolute error, in the unit
    rmse      root of the mean squared error, in the unit
    r2        1 - sum of squared errors / sum of squared distances of the values from their mean on these images
              (scikit-learn's `r2_score`): 1 is perfect, 0 as good as that mean, negative worse
    spearman  Pearson's correlation of the ranks; equal values share the mean of their ranks (scipy's `spearmanr`). A
              head that says the same of all images orders nothing: 0, where scipy has no number
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from loffta.shapes import Logits
from loffta.tasks.bootstrap import Weights, ratio

Values: TypeAlias = Float[np.ndarray, " B"]

_SAME = 1e-12  # a variance that is this part of the mean square, or less, is rounding: all values are one


def loss(outputs: Logits, values: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Squared error of each image."""
    return F.mse_loss(outputs[:, 0].float(), values, reduction="none")


def huber(outputs: Logits, values: Float[Tensor, " B"], delta: float) -> Float[Tensor, " B"]:
    """Half the squared error up to `delta`, from there on linear (Huber, 1964; torch's HuberLoss)."""
    return F.huber_loss(outputs[:, 0].float(), values, reduction="none", delta=delta)


def activation(outputs: Float[Tensor, "*batch one"]) -> Float[Tensor, "*batch one"]:
    """The values themselves: there are no probabilities."""
    return outputs


def decide(outputs: Float[np.ndarray, "*batch one"]) -> Float[np.ndarray, "*batch"]:
    """The value."""
    return outputs[..., 0]


def metrics(outputs: Float[np.ndarray, "B 1"], values: Values, _classes: Sequence[str]) -> dict[str, float]:
    """The metrics of one seed; those that these values do not define are left out, see `notes`."""
    found = _metrics(decide(outputs)[None], values, np.ones((1, len(values)), np.float32))
    return {name: float(value[0, 0]) for name, value in found.items()}


def notes(values: Values, _classes: Sequence[str]) -> dict[str, str]:
    """By metric: why it is left out."""
    if len(np.unique(values)) > 1:
        return {}
    why = "there is one image" if len(values) == 1 else f"all {len(values)} images have the value {values[0]:g}"
    return dict.fromkeys(("r2", "spearman"), f"left out: {why}")


def resampled(
    outputs: Float[np.ndarray, "S B 1"], values: Values, _classes: Sequence[str], blocks: Iterable[Weights]
) -> dict[str, Float[np.ndarray, " R"]]:
    """Every metric, mean over seeds, in every resample; NaN where one has a single value."""
    found: dict[str, list[Float[np.ndarray, " R"]]] = {}
    for weights in blocks:
        for name, of_block in _metrics(decide(outputs), values, weights).items():
            found.setdefault(name, []).append(of_block.mean(axis=1))
    return {name: np.concatenate(of_blocks) for name, of_blocks in found.items()}


def recount(labels: Values, predicted: Float[np.ndarray, "S B"], _scores: object) -> Callable[[Weights], Any]:
    """`r2` of each seed in any resample [R, S], from predictions that were kept."""
    values = labels.astype(np.float64)
    return lambda weights: _r2(np.square(predicted - values), values, weights)


def details(_outputs: Float[np.ndarray, "S B 1"], values: Values, _classes: Sequence[str]) -> dict[str, Any]:
    """What the images' own values are: an error is small or large beside their spread."""
    spread = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {"values": {name: float(value) for name, value in spread.items()}}


def _metrics(
    predicted: Float[np.ndarray, "S B"], values: Values, weights: Weights
) -> dict[str, Float[np.ndarray, "R S"]]:
    n_images, squares = len(values), np.square(predicted - values)
    found = {
        "mae": weights @ np.abs(predicted - values).T / n_images,
        "rmse": np.sqrt(weights @ squares.T / n_images),
    }
    if len(np.unique(values)) > 1:
        found["r2"] = _r2(squares, values, weights)
        found["spearman"] = _spearman(predicted, values, weights)
    return found


def _r2(squares: Float[np.ndarray, "S B"], values: Values, weights: Weights) -> Float[np.ndarray, "R S"]:
    """NaN where a resample has a single value."""
    variance = _variance(values - values.mean(), weights)
    return 1 - ratio(
        weights @ squares.T / len(values), np.broadcast_to(variance[:, None], (len(weights), len(squares)))
    )


def _variance(values: Float[np.ndarray, "*rows B"], weights: Weights) -> Float[np.ndarray, " R"]:
    """Of every resample; 0 where nothing but rounding is left of it."""
    n_images = values.shape[-1]
    mean = (weights * values).sum(axis=-1) / n_images
    square = (weights * np.square(values)).sum(axis=-1) / n_images
    found = square - np.square(mean)
    return np.where(found > _SAME * square, found, 0.0)


def _spearman(predicted: Float[np.ndarray, "S B"], values: Values, weights: Weights) -> Float[np.ndarray, "R S"]:
    """NaN where a resample has a single value, 0 where its predictions are all the same."""
    n_images = len(values)
    of_values = _Ranks(values)(weights)
    spread = _variance(of_values, weights)
    found = np.empty((len(weights), len(predicted)))
    for seed, of_seed in enumerate(predicted):
        ranks = _Ranks(of_seed)(weights)
        both = (weights * of_values * ranks).sum(axis=1) / n_images
        parts = np.sqrt(spread * _variance(ranks, weights))
        correlation = np.divide(both, parts, out=np.zeros(len(both)), where=parts > 0)
        found[:, seed] = np.where(spread > 0, correlation, np.nan)
    return found


class _Ranks:
    """Ranks of the images in any resample, from images sorted once; their mean is taken off."""

    def __init__(self, values: Values) -> None:
        _, self._group = np.unique(values, return_inverse=True)
        self._order = np.argsort(self._group, kind="stable")
        self._starts = np.searchsorted(self._group[self._order], np.arange(self._group.max() + 1))

    def __call__(self, weights: Weights) -> Shaped[np.ndarray, "R B"]:
        """Equal values have the mean of the ranks that they take up together."""
        sizes = np.add.reduceat(weights[:, self._order].astype(np.float64), self._starts, axis=1)
        ranks = sizes.cumsum(axis=1) - (sizes - 1) / 2
        return np.asarray((ranks - (weights.shape[1] + 1) / 2)[:, self._group])

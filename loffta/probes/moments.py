"""What one pass over features keeps for every linear model: how many images, their mean, and how they vary together.

In: features and targets, batch by batch.   Out: Moments, in float64: of all columns, of some (a tap, a backbone), of
several parts together. Called by whoever feeds `ridge` and `logreg`.

Batches are merged by their means (Chan, Golub and LeVeque, The American Statistician 37, 1983): nothing is lost where
means are large and spreads small, as in a ViT's few huge channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loffta.probes.maps import Features, RowWeights, Targets, doubles


@dataclass
class Moments:
    """Of J columns, the K features and then the T targets, over the images added so far, as heavy as their weights."""

    n_features: int
    weight: float  # sum of the weights; without weights the number of images
    mean: Float[Tensor, " J"]
    scatter: Float[Tensor, "J J"]  # sum over images of weight * (x - mean) (x - mean)^T

    @staticmethod
    def empty(n_features: int, n_targets: int = 0) -> Moments:
        """Nothing yet; the first batch decides on which device they are."""
        n_columns = n_features + n_targets
        return Moments(
            n_features,
            0.0,
            torch.zeros(n_columns, dtype=torch.float64),
            torch.zeros((n_columns, n_columns), dtype=torch.float64),
        )

    def add(self, features: Features, targets: Targets | None = None, weights: RowWeights | None = None) -> None:
        """One batch; of no matter in which order, but for the last bits."""
        rows = doubles(features)
        if targets is not None:
            rows = torch.cat([rows, doubles(targets).to(rows.device)], dim=1)
        by_row = rows.new_ones(len(rows)) if weights is None else doubles(weights).to(rows.device)
        total = float(by_row.sum())
        if total == 0:
            return
        mean = by_row @ rows / total
        rows = rows - mean
        heavy = rows if weights is None else rows * by_row[:, None]
        self._merge(total, mean, heavy.T @ rows)

    def plus(self, other: Moments) -> Moments:
        """Of the images of both: of the folds that a fit may see, say."""
        both = Moments(self.n_features, self.weight, self.mean, self.scatter.clone())
        both._merge(other.weight, other.mean, other.scatter)
        return both

    def columns(self, chosen: Tensor) -> Moments:
        """Of these features alone, with all targets: every subset of taps from one pass.

        Args:
            chosen: numbers of the features that are kept, in the order that they are to have.
        """
        targets = torch.arange(self.n_features, len(self.mean))
        kept = torch.cat([chosen.cpu(), targets]).to(self.mean.device)
        return Moments(len(chosen), self.weight, self.mean[kept], self.scatter[kept][:, kept])

    def _merge(self, weight: float, mean: Tensor, scatter: Tensor) -> None:
        if weight == 0:
            return
        self.mean, self.scatter = self.mean.to(mean.device), self.scatter.to(mean.device)
        apart, total = mean - self.mean, self.weight + weight
        self.scatter += scatter
        self.scatter.addr_(apart, apart, alpha=self.weight * weight / total)
        self.mean = self.mean + apart * (weight / total)
        self.weight = total

    @property
    def deviation(self) -> Float[Tensor, " K"]:
        """Population standard deviation of each feature; 1 where a feature does not vary, as in scikit-learn."""
        variance = self.scatter.diagonal()[: self.n_features] / max(self.weight, 1e-300)
        # what rounding leaves of a constant: scikit-learn's bound (_is_constant_feature)
        bound = self.weight * 2.3e-16 * variance + (self.weight * self.mean[: self.n_features] * 2.3e-16).square()
        return variance.where(variance > bound, 1.0).sqrt()

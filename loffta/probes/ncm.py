"""Nearest class mean: one pass, a vector per class.

In: features and labels, batch by batch.   Out: a LinearMap whose highest logit is the class with the nearest mean.

    euclidean   the distance to the mean of the features (Mensink et al., TPAMI 2013; scikit-learn's NearestCentroid):
                the square of it is |x|^2 - 2 x m + |m|^2, so the nearest has the largest x m - |m|^2 / 2
    cosine      features at length 1, their means at length 1 again (Qi et al., CVPR 2018: imprinted weights)

A class without images is never the nearest. Of equals the first class.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from loffta.probes.maps import Features, LinearMap, doubles

Metric = Literal["cosine", "euclidean"]


class ClassMeans:
    """Sums per class, in float64; sums of folds may be added up by `plus`."""

    def __init__(self, n_classes: int, n_columns: int, metric: Metric, device: torch.device | None = None) -> None:
        device = None if device is not None and device.type == "mps" else device
        self.metric = metric
        self.sums = torch.zeros((n_classes, n_columns), dtype=torch.float64, device=device)
        self.counts = torch.zeros(n_classes, dtype=torch.float64, device=device)

    def add(self, features: Features, labels: Int[Tensor, " B"]) -> None:
        """One batch, by a multiplication: it adds in the same order on every run, as index_add does not on CUDA."""
        rows = doubles(features)
        if self.metric == "cosine":
            rows = F.normalize(rows, dim=1)
        one_hot = F.one_hot(labels.to(rows.device), len(self.counts)).double()
        self.sums += one_hot.T @ rows
        self.counts += one_hot.sum(dim=0)

    def plus(self, other: ClassMeans) -> ClassMeans:
        """Those of both."""
        both = ClassMeans(len(self.counts), self.sums.shape[1], self.metric, self.sums.device)
        both.sums, both.counts = self.sums + other.sums, self.counts + other.counts
        return both

    def columns(self, start: int, stop: int) -> ClassMeans:
        """Of these columns alone, such as those of one tap; for `euclidean`, which treats every column by itself."""
        assert self.metric == "euclidean", "a part of a vector of length 1 is no vector of length 1"
        part = ClassMeans(len(self.counts), stop - start, self.metric, self.sums.device)
        part.sums, part.counts = self.sums[:, start:stop], self.counts
        return part

    def fit(self) -> LinearMap:
        """The map; for `cosine` its logits are cosines times the length of the features."""
        means = self.sums / self.counts.clamp(min=1)[:, None]
        if self.metric == "cosine":
            means = F.normalize(means, dim=1)
            bias = torch.zeros_like(self.counts)
        else:
            # from the middle of all: where means are long and close together, float32 would not tell them apart
            middle = means[self.counts > 0].mean(dim=0)
            bias = -(means.square().sum(dim=1) - middle.square().sum()) / 2
            means = means - middle
        return LinearMap(means.T, bias.where(self.counts > 0, -torch.inf))

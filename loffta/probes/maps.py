"""A linear map from features to logits: what `ncm`, `ridge` and `logreg` end in; and which of several is the best.

In: features [B, K].   Out: logits [B, C]; losses of many maps, summed over batches. Called by whoever feeds probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Features: TypeAlias = Float[Tensor, "B K"]
Targets: TypeAlias = Float[Tensor, "B T"]  # one-hot, multi-hot, +1 and -1, or values
RowWeights: TypeAlias = Float[Tensor, " B"]


class LinearMap(NamedTuple):
    """logits = features @ weight + bias, for features as they come: centring and scaling are part of it."""

    weight: Float[Tensor, "K T"]  # float64, as the bias
    bias: Float[Tensor, " T"]

    def __call__(self, features: Features) -> Float[Tensor, "B T"]:
        """Multiplied in float32, on the device of `features`; a caller of many batches moves the map there once."""
        return features.float() @ self.weight.to(features.device, torch.float32) + self.bias.to(
            features.device, torch.float32
        )


def doubles(values: Tensor) -> Tensor:
    """In float64, where they are; on the CPU where their device has none (MPS)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def softmax_loss(logits: Float[Tensor, "*maps B T"], targets: Targets) -> Float[Tensor, "*maps B"]:
    """Cross-entropy with one-hot targets."""
    return logits.logsumexp(dim=-1) - (logits * targets).sum(dim=-1)


def sigmoid_loss(logits: Float[Tensor, "*maps B T"], targets: Targets) -> Float[Tensor, "*maps B"]:
    """Binary cross-entropy, summed over the T targets, each 0 or 1."""
    return (F.softplus(logits) - logits * targets).sum(dim=-1)


def squared_loss(outputs: Float[Tensor, "*maps B T"], targets: Targets) -> Float[Tensor, "*maps B"]:
    """Squared distance, summed over the T targets."""
    return (outputs - targets).square().sum(dim=-1)


class PathLosses:
    """Losses of several maps of the same features, such as one per strength of a penalty, in one pass."""

    def __init__(self, maps: Sequence[LinearMap], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Puts the maps side by side, for one multiplication a batch."""
        self._weight = torch.cat([each.weight for each in maps], dim=1).float()
        self._bias = torch.cat([each.bias for each in maps]).float()
        self._n_maps, self._loss = len(maps), loss
        self.totals = torch.zeros(len(maps), dtype=torch.float64)  # summed over all images so far

    def add(self, features: Features, targets: Targets, weights: RowWeights | None = None) -> None:
        """One batch."""
        outputs = features.float() @ self._weight.to(features.device) + self._bias.to(features.device)
        by_map = outputs.reshape(len(outputs), self._n_maps, -1).transpose(0, 1)
        losses = doubles(self._loss(by_map, targets.to(by_map)))
        self.totals += (losses if weights is None else losses * doubles(weights)).sum(dim=1).cpu()

    @property
    def best(self) -> int:
        """The map with the lowest loss; of equals the first."""
        return int(self.totals.argmin())

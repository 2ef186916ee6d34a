"""The unit of a head that learns numbers: it gives standardised values, and its scale, kept with it, what they mean.

In: mean and deviation of the values of the training images.   Out: values standardised for the loss, and the outputs
of heads in the values' unit. `build_head` gives one to every head without classes; `fit` sets it, `score` uses it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Scale(nn.Module):
    """Mean and standard deviation, in float64 and on the CPU wherever the head is: a large mean needs the digits."""

    mean: Float[Tensor, ""]
    deviation: Float[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("deviation", torch.ones((), dtype=torch.float64))

    def set(self, mean: float, deviation: float) -> None:
        """Those of the images to train on."""
        self.mean.fill_(mean)
        self.deviation.fill_(deviation)

    def standardise(self, values: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """What a head is to give for these values, in float32 on their device."""
        return ((values - self.mean) / self.deviation).float()

    def to_values(self, outputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What outputs on the CPU mean, in the values' unit and float64."""
        return outputs.double() * self.deviation + self.mean

    def _apply(self, fn: Any, recurse: bool = True) -> Scale:  # noqa: ARG002
        """Called by `to`, `half` and the like: none of them is for these two numbers."""
        return self

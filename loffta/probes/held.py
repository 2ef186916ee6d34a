"""Rows of a pass that stay in memory: those that say how a logistic loss bends.

In: features and chances, batch by batch.   Out: Held, about `n_held` rows whatever the number of images. Called by
`logreg`; `newton` multiplies by them.

A row is as likely to be kept as its class is undecided, and weighs the more the less likely it was: of few images all
are kept that count, of many a sample (Xu et al., Sub-sampled Newton methods with non-uniform sampling, NeurIPS 2016).

Matrices have images in their last axis, [T, n]: products with few targets are 2 to 4 times faster so on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from loffta.probes.maps import Features

Form: TypeAlias = Literal["softmax", "sigmoid"]


class Held(NamedTuple):
    """In float32: products with them need not be exact, as long as the gradient is."""

    rows: Float[Tensor, "n J"]  # scaled features, and a 1
    chances: Float[Tensor, "T n"]
    weights: Float[Tensor, " n"]


class Holder:
    """Draws rows, pass after pass."""

    def __init__(self, form: Form, n_held: int, total: float) -> None:
        """Begins the first pass.

        Args:
            n_held: how many rows are kept, about; never more than twice as many and a batch.
            total: weight of all images.
        """
        self._form, self._n_held = form, n_held
        self._draws = torch.Generator().manual_seed(0)
        self._doubt_now = total  # of all images together, in the pass under way
        self.begin()

    def begin(self) -> None:
        """A new pass; forgets the rows of the last one."""
        self._doubt, self._doubt_now = max(self._doubt_now, 1e-300), 0.0
        self._share, self._parts = 1.0, list[Held]()

    def add(
        self,
        features: Features,
        chances: Float[Tensor, "T B"],
        weights: Float[Tensor, " B"],
        scale: Callable[[Tensor], Float[Tensor, "n J"]],
    ) -> None:
        """One batch.

        Args:
            scale: makes rows of the features that are kept, in float32.
        """
        doubt = undecided(chances, self._form) * weights
        self._doubt_now += float(doubt.sum())
        likely = (doubt * (self._share * self._n_held / self._doubt)).clamp(max=1.0)
        drawn = self._draw(likely)
        self._parts.append(
            Held(scale(features[drawn]), chances[:, drawn].float(), (weights[drawn] / likely[drawn]).float())
        )
        if sum(len(part.weights) for part in self._parts) > 2 * self._n_held:  # more in doubt than in the last pass
            rows, chances, weights = self.take()
            drawn = self._draw(torch.full_like(weights, 0.5))
            self._parts = [Held(rows[drawn], chances[:, drawn], weights[drawn] * 2)]
            self._share /= 2

    def take(self) -> Held:
        """What was kept of this pass."""
        rows, chances, weights = zip(*self._parts, strict=True)
        return Held(torch.cat(rows), torch.cat(chances, dim=1), torch.cat(weights))

    def _draw(self, likely: Tensor) -> Tensor:
        return (torch.rand(len(likely), generator=self._draws).to(likely) < likely).nonzero()[:, 0]


def undecided(chances: Float[Tensor, "T n"], form: Form) -> Float[Tensor, " n"]:
    """How much each image's loss bends, at most about: 0 where its classes are decided."""
    if form == "softmax":
        return 1 - chances.square().sum(dim=0)
    return (chances * (1 - chances)).amax(dim=0)

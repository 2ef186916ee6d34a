"""An approximation of SMP, structured model probing (Wu et al., CVPR 2024): ours, not the paper's method.

In:  patch tokens and class tokens of every stored tap.   Out: class logits.
The paper selects layers by a structured regulariser and predicts linearly or not. Regulariser and training are not
published; this head has Head2Toe's pooled features, a group lasso over taps, and a linear map or a small MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from loffta.heads.base import HeadBase
from loffta.heads.block import make_linear
from loffta.heads.pooled_taps import PooledTaps
from loffta.heads.recipe import Recipe
from loffta.heads.relevance import backbone_groups, penalty, tap_groups
from loffta.shapes import Logits
from loffta.tokens import FeatureSpec, Kind


class SmpRecipe(Recipe, frozen=True):
    """Ours but for the size: epochs, batch and schedule are ComBo's, the rate Head2Toe's for the same features."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 0.0  # the lasso is the regulariser
    relevance_weight: NonNegativeFloat = 1e-3  # times `relevance.penalty` over taps
    pooled_size: PositiveInt = 1024  # values that a tap is pooled to, about; that of the published inference code
    hidden: PositiveInt | None = None  # units of an MLP's hidden layer; None: a linear map

    def kinds(self) -> tuple[Kind, ...]:
        """Patch tokens, and the class token where the net has one."""
        return ("grid", "prefix")

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `SmpHead`."""
        return self.model_dump(include={"pooled_size", "hidden", "relevance_weight"})


class SmpHead(HeadBase):
    """Logits from the pooled taps; the taps that are not needed lose their weights.

    Args:
        specs: features of the kinds "grid" and "prefix"; registers are left out.
        pooled_size: see `PooledTaps`.
        hidden: units of the hidden layer; None: there is none.
        relevance_weight: of the group lasso over taps.
    """

    default_taps: ClassVar[str] = "every"

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        n_classes: int,
        *,
        rng: torch.Generator,
        pooled_size: int = 1024,
        hidden: int | None = None,
        relevance_weight: float | int = 1e-3,
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.taps = PooledTaps("smp", specs, pooled_size)
        self.relevance_weight = relevance_weight
        self.backbone_groups = backbone_groups(self.taps.specs)  # columns of `project.weight`
        self.tap_groups = tap_groups(self.taps.specs)
        self.project = make_linear(sum(self.taps.sizes), hidden or n_classes, rng)
        self.classify = None if hidden is None else make_linear(hidden, n_classes, rng)

    def prepare(self, features: Sequence[Float[Tensor, " ..."]]) -> Float[Tensor, "B K"]:
        """All taps, pooled and each of length 1; depends on no weights.

        Args:
            features: per spec [B, L, H, W, D] or [B, L, P, D].
        """
        return self.taps.pool(features)

    def forward(self, prepared: Float[Tensor, "B K"], rng: torch.Generator | None = None) -> Logits:  # noqa: ARG002
        """Takes what `prepare` gave."""
        projected: Tensor = self.project(prepared)
        if self.classify is None:
            return projected
        logits: Tensor = self.classify(F.gelu(projected))
        return logits

    def penalty(self) -> Tensor | None:
        """The group lasso over taps, where it has a weight."""
        if self.relevance_weight == 0:
            return None
        return self.relevance_weight * penalty(self.project.weight, self.tap_groups)

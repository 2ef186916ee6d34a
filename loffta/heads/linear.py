"""The linear probe: pooled vectors of all taps, standardised, one affine map to the classes.

The reference that every other head has to beat. Standardising by a BatchNorm without affine parameters is the practice
of MAE's linear probe (He et al., arXiv 2111.06377, appendix A.1); concatenating all taps and the recipe are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loffta.heads.base import HeadBase
from loffta.heads.block import make_linear
from loffta.heads.recipe import Recipe, check_features, check_specs
from loffta.tokens import FeatureSpec, Kind, Logits


class LinearRecipe(Recipe, frozen=True):
    """Ours: the steps of ComBo's recipe, so that the two are compared at equal length.

    Of 3e-4, 1e-3, 3e-3 and 1e-2, 1e-3 is never more than 3 points of top-1 below the best on scikit-learn's digits (200
    and 800 images; K = 64 pixels and K = 4,096 random features); 1e-2 loses up to 5 at large K.
    """

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4

    def kinds(self) -> tuple[Kind, ...]:
        """Means."""
        return ("mean",)


class LinearHead(HeadBase):
    """Logits from the pooled vectors of all taps of all backbones.

    Args:
        specs: features of kind "mean"; K is the sum of L * D over them.
        rng: CPU generator that draws the initial weights.
    """

    default_taps: ClassVar[str] = "last"

    def __init__(self, specs: Sequence[FeatureSpec], n_classes: int, *, rng: torch.Generator) -> None:
        super().__init__()
        check_specs("linear", ("mean",), specs)
        self.specs = tuple(specs)
        n_inputs = sum(len(spec.taps) * spec.dim for spec in specs)
        self.standardise = nn.BatchNorm1d(n_inputs, affine=False)
        self.classify = make_linear(n_inputs, n_classes, rng, std=0.01)  # MAE's standard deviation

    def prepare(self, features: Sequence[Float[Tensor, " ..."]]) -> Float[Tensor, "B K"]:
        """Concatenates the vectors, float32; depends on no weights.

        Args:
            features: one [B, L, D] per spec.
        """
        check_features("linear", self.specs, features)
        return torch.cat([feature.float().flatten(1) for feature in features], dim=1)

    def forward(self, prepared: Float[Tensor, "B K"], rng: torch.Generator | None = None) -> Logits:  # noqa: ARG002
        """Takes what `prepare` gave."""
        logits: Tensor = self.classify(self._standardise(prepared))
        return logits

    def _standardise(self, prepared: Tensor) -> Tensor:
        if self.training and len(prepared) == 1:
            # one image left over for the last batch has no variance: BatchNorm would raise
            norm = self.standardise
            return F.batch_norm(prepared, norm.running_mean, norm.running_var, eps=norm.eps)
        standardised: Tensor = self.standardise(prepared)
        return standardised

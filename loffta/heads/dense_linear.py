"""The linear probe of dense prediction: BatchNorm, one affine map per patch, outputs enlarged bilinearly.

In:  patch tokens of the chosen taps, with `class_token` class tokens too.   Out: maps of any size.
What DINOv2, DINOv3, RADIO and Franca report as "linear", up to their protocols, which docs/methods.md tells apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loffta.errors import UsageError
from loffta.heads.block import undrawn_linear
from loffta.heads.convolution import drop_channels
from loffta.heads.dense import DenseBase, DenseRecipe
from loffta.heads.maps import count_channels, finest_size, join_grids, to_size
from loffta.heads.recipe import check_features, check_specs
from loffta.heads.vectors import apply_batch_norm
from loffta.shapes import Maps
from loffta.targets import Readout
from loffta.tokens import FeatureSpec, Kind

Norm: TypeAlias = Literal["batch", "none"]


class DenseLinearRecipe(DenseRecipe, frozen=True):
    """DINOv2's for segmentation: 40,000 steps of 16, 1,500 of them warm-up; its decay to 0 is linear, here cosine."""

    batch_size: PositiveInt = 16
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    warmup_fraction: float = Field(1_500 / 40_000, ge=0, le=1)
    warmup_start_factor: float = Field(1e-6, gt=0, le=1)
    final_lr_factor: float = Field(0.0, ge=0, le=1)
    min_steps: PositiveInt | None = 40_000
    norm: Norm = "batch"  # none: Franca and NeCo, and DINOv2's depth
    dropout: float = Field(0.0, ge=0, lt=1)  # of whole channels of an image, in training; DINOv3 has 0.1
    class_token: bool = False  # beside every patch: DINOv2's depth

    def kinds(self) -> tuple[Kind, ...]:
        """Patch tokens, and prefix tokens for the class token."""
        return ("grid", "prefix") if self.class_token else ("grid",)

    def resolve(self, specs: Sequence[FeatureSpec]) -> DenseLinearRecipe:
        """Fills in nothing; what the head would refuse is refused before a run is begun."""
        _check_class_token(specs, self.class_token)
        return self

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `DenseLinearHead`."""
        return self.model_dump(include={"output_px", "norm", "dropout", "class_token"})


class DenseLinearHead(DenseBase):
    """One affine map of the cells of all taps of all backbones, side by side on the finest grid.

    Args:
        specs: features of kind "grid", with `class_token` of kind "prefix", too.
        norm: standardises every column over cells and images, with weights and biases of its own.
        dropout: probability that a column of an image is 0 in training.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        readout: Readout,
        *,
        rng: torch.Generator,
        output_px: int,
        norm: Norm = "batch",
        dropout: float | int = 0.0,
        class_token: bool = False,
    ) -> None:
        check_specs("dense-linear", ("grid", "prefix") if class_token else ("grid",), specs)
        _check_class_token(specs, class_token)
        super().__init__(specs, readout, output_px)
        self.size = finest_size(specs)
        self.dropout = dropout
        n_inputs = count_channels(specs)
        self.standardise = nn.BatchNorm1d(n_inputs) if norm == "batch" else None
        self.classify = undrawn_linear(n_inputs, readout.n_outputs)
        nn.init.normal_(self.classify.weight, std=0.01, generator=rng)  # mmseg's, which all of them use
        nn.init.constant_(self.classify.bias, readout.bias)

    def prepare(self, features: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "B H W K"]:
        """All taps on one grid, float32; depends on no weights.

        Args:
            features: one [B, L, H, W, D] or [B, L, P, D] per spec.
        """
        check_features("dense-linear", self.specs, features)
        return join_grids(self.specs, features, self.size)

    def forward(self, prepared: Float[Tensor, "B H W K"], rng: torch.Generator | None = None) -> Maps:
        """Takes what `prepare` gave; `rng` draws which columns are dropped."""
        cells = prepared.flatten(0, 2)
        if self.standardise is not None:
            cells = apply_batch_norm(self.standardise, cells)
        maps = cells.view(prepared.shape).permute(0, 3, 1, 2)
        maps = drop_channels(maps, self.dropout, rng)
        outputs = self.classify(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return to_size(outputs, self.output_px)


def _check_class_token(specs: Sequence[FeatureSpec], wanted: bool) -> None:
    if wanted and not any(spec.has_class_token for spec in specs):
        raise UsageError(
            "no backbone has a class token",
            where="head 'dense-linear'",
            remedy="leave class_token out, or give the features of a backbone with one",
        )

"""DeAP's rival "featup": cells become pixels by joint bilateral stages that the thumbnail guides, then one affine map.

In:  patch tokens, by default of the last tap, and the images' thumbnails.   Out: maps of any size.
FeatUp (Fu, Hamilton et al., ICLR 2024, arXiv 2403.10516) trains its stages without labels, per backbone; here they
learn with the head, are the classic fixed ones, or published ones: see `jbu_stack`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from loffta.errors import UsageError
from loffta.heads.bilateral import GaussianStage, LearnedStage
from loffta.heads.block import make_torch_linear
from loffta.heads.deap import ReleaseRecipe
from loffta.heads.dense import DenseBase, solve_width
from loffta.heads.jbu_stack import N_STAGES, RANGE_DIM, LastMixing, freeze
from loffta.heads.maps import count_channels, finest_size, join_grids, to_size
from loffta.heads.recipe import check_features
from loffta.shapes import Maps
from loffta.targets import Readout
from loffta.tokens import FeatureSpec
from loffta.words import first_of

Kernel: TypeAlias = Literal["learned", "gaussian"]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of the images that FeatUp's stages see


class FeatupRecipe(ReleaseRecipe, frozen=True):
    """Trained as DeAP and its other rivals are."""

    kernel: Kernel = "learned"  # gaussian: fixed, without weights
    range_dim: PositiveInt = RANGE_DIM  # channels in which colours are compared
    budget: PositiveInt | None = None  # parameters: `range_dim` is solved for, and what it says is unused
    upsampler: str | None = None  # a file of FeatUp's published weights, which take the place of stages that learn
    upsampler_digest: str | None = None  # BLAKE2b-128 of that file, in hex; None: what `train` finds there

    @model_validator(mode="after")
    def _budget_has_a_width(self) -> FeatupRecipe:
        if self.budget is not None and self.kernel == "gaussian":
            raise ValueError("budget needs kernel=learned: a fixed kernel has no width to be solved for")
        return self

    @model_validator(mode="after")
    def _upsampler_is_whole(self) -> FeatupRecipe:
        if self.upsampler is None and self.upsampler_digest is not None:
            raise ValueError("upsampler_digest needs upsampler: it says which file that was")
        if self.upsampler is not None and (self.kernel, self.range_dim, self.budget) != ("learned", RANGE_DIM, None):
            raise ValueError("upsampler brings stages of its own: leave kernel, range_dim and budget out")
        return self

    def resolve(self, specs: Sequence[FeatureSpec]) -> FeatupRecipe:
        """Fills in nothing; features that published stages cannot take are refused before a run is begun."""
        if self.upsampler is not None:
            _check_one_tap([spec for spec in specs if spec.kind == "grid"])
        return self

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `FeatupHead`."""
        chosen = self.model_dump(include={"output_px", "kernel", "range_dim", "budget"})
        return chosen | {"published": self.upsampler is not None}


class FeatupHead(DenseBase):
    """One affine map of the enlarged cells of all taps of all backbones.

    The map comes before the stages: they are linear and treat all channels alike, so the order is of no matter, and C
    channels are enlarged instead of K. How many stages of x2 there are, 4 at most, follows from the grid and
    `output_px` at the start; what is missing to the size that is asked for is bilinear.

    Args:
        specs: features of kind "grid", and at last one of kind "thumb".
        kernel: whether the stages learn.
        range_dim: channels in which learned stages compare colours.
        budget: parameters of the head; None: `range_dim` holds.
        published: the stages are FeatUp's, all four and frozen; they say nothing before `jbu_stack.head_state` is
            loaded.

    Raises:
        UsageError: features of other kinds, no thumbnails, several taps for published stages, or a budget that is too
            small.
    """

    needs_thumb: ClassVar[bool] = True

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        readout: Readout,
        *,
        rng: torch.Generator,
        output_px: int,
        kernel: Kernel = "learned",
        range_dim: int = 32,
        budget: int | None = None,
        published: bool = False,
    ) -> None:
        _check_specs(specs)
        if published:
            _check_one_tap(specs[:-1])
        super().__init__(specs, readout, output_px)
        self.size = finest_size(specs)
        n_stages = min(N_STAGES, max(1, math.ceil(math.log2(output_px / min(self.size)))))
        n_inputs, n_outputs = count_channels(specs), readout.n_outputs
        if budget is not None:
            left = budget - (n_inputs + 1) * n_outputs
            range_dim = solve_width(
                lambda dim: n_stages * _count(LearnedStage(dim, rng=torch.Generator())),
                left,
                range(1, math.isqrt(max(0, left)) + 2),
                head="featup",
            )
        self.classify = make_torch_linear(n_inputs, n_outputs, rng)
        self.classify.bias.data += readout.bias
        make = (lambda: LearnedStage(range_dim, rng=rng)) if kernel == "learned" else GaussianStage
        self.stages = nn.ModuleList(make() for _ in range(N_STAGES if published else n_stages))
        self.is_fixed = kernel == "gaussian"
        self.mixing = LastMixing(n_inputs) if published else None
        if published:
            freeze(self.stages)

    def prepare(self, features: Sequence[Tensor]) -> tuple[Float[Tensor, "B H W K"], Float[Tensor, "B 3 T T"]]:
        """All taps on one grid, float32, and the thumbnails as the stages see them; depends on no weights.

        Args:
            features: one [B, L, H, W, D] per spec; at last [B, 1, T, T, 3] of uint8.

        Returns:
            The cells; the images, standardised as FeatUp's are, or from 0 to 1 for the fixed kernel.
        """
        check_features("featup", self.specs, features)
        *grids, thumbs = features
        images = thumbs[:, 0].permute(0, 3, 1, 2).float() / 255
        if not self.is_fixed:
            mean, std = (images.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
            images = (images - mean) / std
        return join_grids(self.specs[:-1], grids, self.size), images

    def forward(
        self,
        prepared: tuple[Float[Tensor, "B H W K"], Float[Tensor, "B 3 T T"]],
        rng: torch.Generator | None = None,
    ) -> Maps:
        """Takes what `prepare` gave; `rng` draws the stages' dropout."""
        cells, images = prepared
        weight: Tensor = self.classify.weight
        bias: Tensor = self.classify.bias
        if self.mixing is not None:
            cells, rng = self.mixing.standardise(cells), None  # what is frozen drops nothing
            weight, bias = self.mixing.fold(weight, bias)
        maps = F.linear(cells, weight).permute(0, 3, 1, 2)
        for stage in self.stages:
            maps = stage(maps, _guide(images, (2 * maps.shape[2], 2 * maps.shape[3])), rng)
        return to_size(maps + bias[:, None, None], self.output_px)


def _guide(images: Float[Tensor, "B 3 T T"], size: tuple[int, int]) -> Float[Tensor, "B 3 H W"]:
    """The image at a stage's size: area averages as in FeatUp; bilinear where the thumbnail is too small for them."""
    if images.shape[2] >= size[0] and images.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(images, size)
    return F.interpolate(images, size, mode="bilinear", align_corners=False)


def _check_specs(specs: Sequence[FeatureSpec]) -> None:
    """Grids, and thumbnails at the end.

    Raises:
        UsageError: anything else.
    """
    where = "head 'featup'"
    if not specs:
        raise UsageError("there are no features", where=where, remedy="give it at least one store")
    for spec in specs[:-1]:
        if spec.kind != "grid":
            raise UsageError(
                f"the features of {spec.backbone} are of kind '{spec.kind}'",
                where=where,
                remedy="give it features of kind 'grid'",
            )
    if len(specs) < 2 or specs[-1].kind != "thumb":
        raise UsageError(
            "the last feature is no thumbnail",
            where=where,
            remedy="give it features of kind 'grid', and behind them the images' thumbnails",
        )


def _check_one_tap(specs: Sequence[FeatureSpec]) -> None:
    """Published stages were trained on the last tap of one backbone.

    Raises:
        UsageError: several taps or backbones.
    """
    taps = [f"{spec.backbone}:{tap}" for spec in specs for tap in spec.taps]
    if len(taps) != 1:
        raise UsageError(
            f"a published upsampler is for one tap of one backbone, and these are {len(taps)}: {first_of(taps)}",
            where="head 'featup'",
            remedy="choose one: --features BACKBONE:last",
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

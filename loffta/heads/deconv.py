"""DeAP's rival "deconv": convolutions alone, from the cells to the query grid and from there to the pixels.

In:  patch tokens, by default of the last tap.   Out: maps of any size. After the official release of DeAP, whose paper
speaks of a transposed convolution in place of the attention; its code has what is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from loffta.heads.block import check_width
from loffta.heads.convolution import make_conv
from loffta.heads.deap import ReleaseRecipe
from loffta.heads.decoder import SCALE, Decoder, decoder_width
from loffta.heads.dense import DenseBase, solve_budget
from loffta.heads.maps import CODE_DIM, code_positions, count_channels, finest_size, join_grids, to_size
from loffta.heads.recipe import check_features, check_specs
from loffta.shapes import Maps
from loffta.targets import Readout
from loffta.tokens import FeatureSpec

_GROUPS_IN, _GROUPS = 16, 8  # of the two GroupNorms


class DeconvRecipe(ReleaseRecipe, frozen=True):
    """The release's."""

    dim: PositiveInt = 48  # channels behind the first convolution, a multiple of 8
    budget: PositiveInt | None = None  # parameters: `dim` and `cnn_width` are solved for, and what they say is unused

    @model_validator(mode="after")
    def _dim_divides(self) -> DeconvRecipe:
        check_width(self.dim, _GROUPS, name="dim", of="the number of groups,")
        return self

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `DeconvHead`."""
        return self.model_dump(include={"output_px", "dim", "cnn_width", "budget"})


class DeconvNetwork(nn.Module):
    """GroupNorm, 1x1, to the query grid, positions beside, GroupNorm, DeAP's decoder.

    Args:
        stride: of a 3x3 convolution for grids finer than the query grid; 1: there is none.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        rng: torch.Generator,
        dim: int,
        cnn_width: int | None,
        stride: int,
        bias: float | int,
    ) -> None:
        super().__init__()
        self.norm_inputs = nn.GroupNorm(math.gcd(_GROUPS_IN, n_inputs), n_inputs)
        self.project = make_conv(n_inputs, dim, 1, rng)
        self.shrink = make_conv(dim, dim, 3, rng, stride=stride) if stride > 1 else None
        self.norm = nn.GroupNorm(_GROUPS, dim + CODE_DIM)
        width = decoder_width(dim, n_outputs) if cnn_width is None else cnn_width
        self.decode = Decoder(dim + CODE_DIM, n_outputs, width=width, bias=bias, rng=rng)

    def forward(self, cells: Float[Tensor, "B H W K"], side: int) -> Float[Tensor, "B C S S"]:
        """Of `side` x `side` queries; S is 8 times as much."""
        maps = self.project(self.norm_inputs(cells.permute(0, 3, 1, 2)))
        if self.shrink is not None:
            maps = self.shrink(maps)
        maps = F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
        code = code_positions(side, side, maps.device).T.reshape(1, CODE_DIM, side, side)
        coded = torch.cat([maps, code.to(maps.dtype).expand(len(maps), -1, -1, -1)], dim=1)
        decoded: Tensor = self.decode(self.norm(coded))
        return decoded


class DeconvHead(DenseBase):
    """Maps by convolutions over the cells of all taps of all backbones; a network for each entry of the readout.

    Args:
        specs: features of kind "grid".
        dim: channels behind the first convolution.
        cnn_width: of the decoder; None: `decoder_width` of `dim`.
        budget: parameters of all networks together; None: `dim` and `cnn_width` hold.

    Raises:
        UsageError: a budget that is too small.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        readout: Readout,
        *,
        rng: torch.Generator,
        output_px: int,
        dim: int = 48,
        cnn_width: int | None = None,
        budget: int | None = None,
    ) -> None:
        check_specs("deconv", ("grid",), specs)
        super().__init__(specs, readout, output_px)
        self.size = finest_size(specs)
        n_inputs = count_channels(specs)
        stride = max(1, min(self.size) // math.ceil(output_px / SCALE))

        def build(dim: int, cnn_width: int | None, rng: torch.Generator) -> nn.ModuleList:
            inputs: dict[str, Any] = {"dim": dim, "cnn_width": cnn_width, "rng": rng, "stride": stride}
            return nn.ModuleList(DeconvNetwork(n_inputs, n, bias=readout.bias, **inputs) for n in readout.channels)

        if budget is not None:
            dim, cnn_width = solve_budget(build, budget, n_inputs=n_inputs, step=_GROUPS, head="deconv")
        self.networks = build(dim, cnn_width, rng)

    def prepare(self, features: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "B H W K"]:
        """All taps on one grid, float32; depends on no weights.

        Args:
            features: one [B, L, H, W, D] per spec.
        """
        check_features("deconv", self.specs, features)
        return join_grids(self.specs, features, self.size)

    def forward(self, prepared: Float[Tensor, "B H W K"], rng: torch.Generator | None = None) -> Maps:  # noqa: ARG002
        """Takes what `prepare` gave; nothing is drawn."""
        side = math.ceil(self.output_px / SCALE)
        return to_size(torch.cat([network(prepared, side) for network in self.networks], dim=1), self.output_px)

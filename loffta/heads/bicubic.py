"""DeAP's rival "bicubic": cells are interpolated to the query grid, where DeAP asks for them by attention.

In:  patch tokens, by default of the last tap.   Out: maps of any size. After the official release of DeAP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from loffta.heads.block import make_torch_linear
from loffta.heads.deap import ReleaseRecipe
from loffta.heads.decoder import SCALE, Decoder, decoder_width
from loffta.heads.dense import DenseBase, solve_budget
from loffta.heads.maps import count_channels, finest_size, join_grids, to_size
from loffta.heads.recipe import check_features, check_specs
from loffta.shapes import Maps
from loffta.targets import Readout
from loffta.tokens import FeatureSpec


class BicubicRecipe(ReleaseRecipe, frozen=True):
    """The release's."""

    dim: PositiveInt = 48  # channels that are interpolated
    budget: PositiveInt | None = None  # parameters: `dim` and `cnn_width` are solved for, and what they say is unused

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `BicubicHead`."""
        return self.model_dump(include={"output_px", "dim", "cnn_width", "budget"})


class BicubicNetwork(nn.Module):
    """A map to few channels, bicubic interpolation, a feed-forward layer, LayerNorm, DeAP's decoder."""

    def __init__(
        self, n_inputs: int, n_outputs: int, *, rng: torch.Generator, dim: int, cnn_width: int | None, bias: float | int
    ) -> None:
        super().__init__()
        self.project = make_torch_linear(n_inputs, dim, rng)
        self.fc1 = make_torch_linear(dim, 2 * dim, rng)
        self.fc2 = make_torch_linear(2 * dim, dim, rng)
        self.norm = nn.LayerNorm(dim)
        width = decoder_width(dim, n_outputs) if cnn_width is None else cnn_width
        self.decode = Decoder(dim, n_outputs, width=width, bias=bias, rng=rng)

    def forward(self, cells: Float[Tensor, "B H W K"], side: int) -> Float[Tensor, "B C S S"]:
        """Of `side` x `side` queries; S is 8 times as much."""
        maps = self.project(cells).permute(0, 3, 1, 2)
        maps = F.interpolate(maps, (side, side), mode="bicubic", align_corners=True)
        tokens = self.norm(self.fc2(F.relu(self.fc1(maps.permute(0, 2, 3, 1)))))
        decoded: Tensor = self.decode(tokens.permute(0, 3, 1, 2))
        return decoded


class BicubicHead(DenseBase):
    """Maps from interpolated cells of all taps of all backbones; a network for each entry of the readout.

    Args:
        specs: features of kind "grid".
        dim: channels that are interpolated.
        cnn_width: of the decoder; None: `decoder_width`.
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
        check_specs("bicubic", ("grid",), specs)
        super().__init__(specs, readout, output_px)
        self.size = finest_size(specs)
        n_inputs = count_channels(specs)

        def build(dim: int, cnn_width: int | None, rng: torch.Generator) -> nn.ModuleList:
            inputs: dict[str, Any] = {"dim": dim, "cnn_width": cnn_width, "rng": rng}
            return nn.ModuleList(BicubicNetwork(n_inputs, n, bias=readout.bias, **inputs) for n in readout.channels)

        if budget is not None:
            dim, cnn_width = solve_budget(build, budget, n_inputs=n_inputs, step=1, head="bicubic")
        self.networks = build(dim, cnn_width, rng)

    def prepare(self, features: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "B H W K"]:
        """All taps on one grid, float32; depends on no weights.

        Args:
            features: one [B, L, H, W, D] per spec.
        """
        check_features("bicubic", self.specs, features)
        return join_grids(self.specs, features, self.size)

    def forward(self, prepared: Float[Tensor, "B H W K"], rng: torch.Generator | None = None) -> Maps:  # noqa: ARG002
        """Takes what `prepare` gave; nothing is drawn."""
        side = math.ceil(self.output_px / SCALE)
        return to_size(torch.cat([network(prepared, side) for network in self.networks], dim=1), self.output_px)

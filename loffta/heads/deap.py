"""DeAP, dense attentive probing: positions ask a frozen net's cells through soft masks (Lüddecke, Ecker, TMLR 2025).

In:  patch tokens, by default of the last tap.   Out: maps at any size, from under 100,000 parameters.
Architecture and recipe are the official release's; where its paper's prose differs, docs/methods.md says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from loffta.heads.block import check_width
from loffta.heads.decoder import SCALE, Decoder, decoder_width
from loffta.heads.dense import DenseBase, DenseRecipe
from loffta.heads.maps import count_channels, finest_size, join_grids, to_size
from loffta.heads.masked_attention import Mask, MaskedAttention, sigma_entries
from loffta.heads.recipe import check_features, check_specs
from loffta.shapes import Maps
from loffta.targets import Readout
from loffta.tokens import FeatureSpec


class ReleaseRecipe(DenseRecipe, frozen=True):
    """How the release trains DeAP and its rivals alike: one rate throughout, float32, no augmentation.

    It takes 3,000 steps for depth, 10,000 for boundaries, 20,000 for COCO-Stuff and CenterNet.
    """

    batch_size: PositiveInt = 32
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.01
    warmup_fraction: float = Field(0.0, ge=0, le=1)
    final_lr_factor: float = Field(1.0, ge=0, le=1)
    min_steps: PositiveInt | None = 3000
    precision: Literal["fp32", "bf16"] | None = "fp32"
    cnn_width: PositiveInt | None = None  # of the decoder; None: `decoder_width`; the release has 32 for COCO-Stuff


class DeapRecipe(ReleaseRecipe, frozen=True):
    """The release's, and its ablations: `dim=8`, `mask=shared`, `mask=none`, `mask=only`."""

    dim: PositiveInt = 16  # of queries and of the map that is decoded
    n_heads: PositiveInt = 8
    mask: Mask = "own"  # a sigma per head; shared: one for all; none: no mask; only: nothing but the mask

    @model_validator(mode="after")
    def _dim_divides(self) -> DeapRecipe:
        check_width(self.dim, self.n_heads, name="dim")
        return self

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `DeapHead`."""
        return self.model_dump(include={"output_px", "dim", "n_heads", "mask", "cnn_width"})


class DeapNetwork(nn.Module):
    """Masked attention and a decoder: a readout's every entry has one of its own."""

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        rng: torch.Generator,
        bias: float | int = 0.0,
        dim: int = 16,
        n_heads: int = 8,
        mask: Mask = "own",
        cnn_width: int | None = None,
        counted_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attend = MaskedAttention(n_inputs, dim=dim, n_heads=n_heads, mask=mask, counted_norm=counted_norm, rng=rng)
        width = decoder_width(dim, n_outputs) if cnn_width is None else cnn_width
        self.decode = Decoder(dim, n_outputs, width=width, bias=bias, rng=rng)

    def forward(self, cells: Float[Tensor, "B H W K"], output_px: int) -> Maps:
        """As many queries as output pixels, over 8 along either axis; S is their next multiple of 8."""
        side = math.ceil(output_px / SCALE)
        decoded: Tensor = self.decode(self.attend(cells, (side, side)))
        return decoded


class DeapHead(DenseBase):
    """Maps from the cells of all taps of all backbones, side by side on the finest grid; the paper has one tap.

    43,286 parameters for one output of a ViT-B. 1,552 of them are a LayerNorm over the inputs that the release makes,
    counts and never applies; they are here so that the count is the paper's, and take no gradient.

    Args:
        specs: features of kind "grid".
        options: `dim`, `n_heads`, `mask`, `cnn_width` of DeapNetwork.
    """

    def __init__(
        self, specs: Sequence[FeatureSpec], readout: Readout, *, rng: torch.Generator, output_px: int, **options: Any
    ) -> None:
        check_specs("deap", ("grid",), specs)
        super().__init__(specs, readout, output_px)
        self.size = finest_size(specs)
        self.networks = nn.ModuleList(
            DeapNetwork(count_channels(specs), n, bias=readout.bias, counted_norm=True, rng=rng, **options)
            for n in readout.channels
        )

    def prepare(self, features: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "B H W K"]:
        """All taps on one grid, float32; depends on no weights.

        Args:
            features: one [B, L, H, W, D] per spec.
        """
        check_features("deap", self.specs, features)
        return join_grids(self.specs, features, self.size)

    def forward(self, prepared: Float[Tensor, "B H W K"], rng: torch.Generator | None = None) -> Maps:  # noqa: ARG002
        """Takes what `prepare` gave; nothing is drawn."""
        outputs = [network(prepared, self.output_px) for network in self.networks]
        return to_size(torch.cat(outputs, dim=1), self.output_px)

    def findings(self, observed: Float[Tensor, " X"] | None) -> dict[str, list[dict[str, Any]]]:  # noqa: ARG002
        """How far each head looks, see `sigma_entries`."""
        return sigma_entries(self.networks)

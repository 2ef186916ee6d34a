"""combo-deap: ComBo's map of all layers of all backbones (arXiv 2512.01405) in front of DeAP's masked attention. Ours.

In:  patch tokens of every tap.   Out: maps of any size, and relevance scores of backbones and taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from loffta.heads.block import make_torch_linear
from loffta.heads.combo import Normalise
from loffta.heads.deap import DeapNetwork, DeapRecipe
from loffta.heads.dense import DenseBase, solve_width
from loffta.heads.maps import count_channels, finest_size, to_size
from loffta.heads.masked_attention import sigma_entries
from loffta.heads.recipe import check_features, check_specs
from loffta.heads.relevance import backbone_groups, penalty, tap_groups
from loffta.pooling import normalise_layers, normalise_tokens
from loffta.shapes import Maps
from loffta.targets import Readout
from loffta.tokens import FeatureSpec


class ComboDeapRecipe(DeapRecipe, frozen=True):
    """DeAP's recipe; the projection is ComBo's."""

    width: PositiveInt = 128  # channels behind the projection: ComBo's
    normalise: Normalise = "embed_and_tokens"  # ComBo's: by image and tap; embed_only: by token
    relevance_weight: NonNegativeFloat = 0.0  # times `relevance.penalty`
    budget: PositiveInt | None = None  # parameters: `width` is solved for, and what it says is unused

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ComboDeapHead`."""
        return super().head_arguments() | self.model_dump(include={"width", "normalise", "relevance_weight", "budget"})


class ComboDeapHead(DenseBase):
    """Maps from all taps of all backbones: normalised, projected together, asked by DeAP's queries.

    Taps are projected on their own grids, and the sums interpolated to the finest: ComBo interpolates first, which for
    bilinear weights is the same, but holds every tap at the finest size. Each tap is normalised at its own size, where
    ComBo does it behind the interpolation. All entries of a readout share the projection, so that a backbone has one
    relevance.

    Args:
        specs: features of kind "grid"; K is the sum of L * D over them.
        width: channels behind the projection.
        normalise: by one mean and standard deviation per image and tap, or per token.
        relevance_weight: of the group lasso over backbones.
        budget: parameters of the head; None: `width` holds.
        options: `dim`, `n_heads`, `mask`, `cnn_width` of DeapNetwork.

    Raises:
        UsageError: features of other kinds, or a budget that is too small.
    """

    default_taps: ClassVar[str] = "all"

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        readout: Readout,
        *,
        rng: torch.Generator,
        output_px: int,
        width: int = 128,
        normalise: Normalise = "embed_and_tokens",
        relevance_weight: float | int = 0.0,
        budget: int | None = None,
        **options: Any,
    ) -> None:
        check_specs("combo-deap", ("grid",), specs)
        super().__init__(specs, readout, output_px)
        self.size = finest_size(specs)
        self.normalise = normalise
        self.relevance_weight = relevance_weight
        self.backbone_groups = backbone_groups(specs)  # columns of `project.weight`
        self.tap_groups = tap_groups(specs)
        n_inputs = count_channels(specs)

        def build(width: int, rng: torch.Generator) -> tuple[nn.Linear, nn.ModuleList]:
            networks = (DeapNetwork(width, n, bias=readout.bias, rng=rng, **options) for n in readout.channels)
            return make_torch_linear(n_inputs, width, rng), nn.ModuleList(networks)

        if budget is not None:
            width = solve_width(
                lambda width: sum(p.numel() for m in build(width, torch.Generator()) for p in m.parameters()),
                budget,
                range(1, budget // n_inputs + 2),
                head="combo-deap",
            )
        self.project, self.networks = build(width, rng)

    def prepare(self, features: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "B _H _W _K"]]:
        """Normalises every tap on its own grid, and puts the taps of a feature side by side; depends on no weights.

        Args:
            features: one [B, L, H, W, D] per spec.

        Returns:
            float32, one per spec; its columns in the order of taps, channels.
        """
        check_features("combo-deap", self.specs, features)
        normalise = normalise_layers if self.normalise == "embed_and_tokens" else normalise_tokens
        normed = [normalise(feature.flatten(2, 3)).unflatten(2, feature.shape[2:4]) for feature in features]  # type: ignore[no-untyped-call]
        return [taps.permute(0, 2, 3, 1, 4).flatten(3) for taps in normed]

    def forward(self, prepared: list[Float[Tensor, "B _H _W _K"]], rng: torch.Generator | None = None) -> Maps:  # noqa: ARG002
        """Takes what `prepare` gave; nothing is drawn."""
        cells = self._project(prepared)
        outputs = [network(cells, self.output_px) for network in self.networks]
        return to_size(torch.cat(outputs, dim=1), self.output_px)

    def _project(self, prepared: list[Float[Tensor, "B _H _W _K"]]) -> Float[Tensor, "B H W M"]:
        """One affine map of all columns, a feature at a time."""
        total, first = None, 0
        for taps in prepared:
            columns = slice(first, first + taps.shape[3])
            part = F.linear(taps, self.project.weight[:, columns]).permute(0, 3, 1, 2)
            if part.shape[2:] != self.size:
                part = F.interpolate(part, self.size, mode="bilinear", align_corners=False)
            total, first = part if total is None else total + part, columns.stop
        assert total is not None, "there is at least one feature"
        projected: Tensor = total.permute(0, 2, 3, 1) + self.project.bias
        return projected

    def penalty(self) -> Tensor | None:
        """The group lasso over backbones, where it has a weight."""
        if self.relevance_weight == 0:
            return None
        return self.relevance_weight * penalty(self.project.weight, self.backbone_groups)

    def findings(self, observed: Float[Tensor, " X"] | None) -> dict[str, list[dict[str, Any]]]:  # noqa: ARG002
        """How far each head looks, see `sigma_entries`."""
        return sigma_entries(self.networks)

"""DPT: four layers brought to four sizes, and fused from coarse to fine (Ranftl et al., ICCV 2021, arXiv 2103.13413).

In:  patch tokens of four taps, of nets with one grid or with several.   Out: maps of any size.
After the descriptions of DINOv2's and probe3d's heads; what of it is ours is in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loffta.errors import UsageError
from loffta.heads.convolution import make_conv, make_transposed
from loffta.heads.dense import DenseBase, DenseRecipe, solve_budget
from loffta.heads.maps import finest_size, join_grids, to_size
from loffta.heads.recipe import check_features, check_specs
from loffta.shapes import Maps
from loffta.targets import Readout
from loffta.tokens import FeatureSpec, Kind

N_LEVELS = 4
_SCALES = (4.0, 2.0, 1.0, 0.5)  # of the levels of a net with one grid: 1/4, 1/8, 1/16, 1/32 of the image


class DptRecipe(DenseRecipe, frozen=True):
    """DINOv2's for depth, which it also has for its linear head; the batch is ours."""

    batch_size: PositiveInt = 16
    lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.01
    warmup_fraction: float = Field(12_800 / 38_400, ge=0, le=1)
    min_steps: PositiveInt | None = 38_400
    width: PositiveInt = 256  # channels of every level; probe3d has 512
    last_width: PositiveInt | None = None  # channels before the outputs; None: `width`
    class_token: bool = False  # beside every patch, where there is one
    budget: PositiveInt | None = None  # parameters: both widths are solved for, and what they say is unused

    def kinds(self) -> tuple[Kind, ...]:
        """Patch tokens, and prefix tokens for the class token."""
        return ("grid", "prefix") if self.class_token else ("grid",)

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `DptHead`."""
        return self.model_dump(include={"output_px", "width", "last_width", "budget"})


class _Unit(nn.Module):
    """Residual convolution unit: x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int, rng: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = (make_conv(width, width, 3, rng) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        added: Tensor = self.second(F.relu(self.first(F.relu(maps))))
        return maps + added


class _Level(nn.Module):
    """Reassembles one level: a map of its cells to `width`, resized, and a 3x3 convolution."""

    def __init__(self, n_inputs: int, width: int, scale: float, rng: torch.Generator) -> None:
        super().__init__()
        self.project = make_conv(n_inputs, width, 1, rng)
        resize: nn.Module = nn.Identity()
        if scale > 1:
            resize = make_transposed(width, width, int(scale), rng)
        elif scale < 1:
            resize = make_conv(width, width, 3, rng, stride=2)
        self.resize = resize
        self.smooth = make_conv(width, width, 3, rng)

    def forward(self, cells: Float[Tensor, "B H W K"]) -> Tensor:
        maps: Tensor = self.smooth(self.resize(self.project(cells.permute(0, 3, 1, 2))))
        return maps


class _Network(nn.Module):
    def __init__(
        self,
        n_inputs: Sequence[int],
        scales: Sequence[float],
        readout: Readout,
        *,
        width: int,
        last_width: int,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_Level(n, width, s, rng) for n, s in zip(n_inputs, scales, strict=True))
        self.take = nn.ModuleList(_Unit(width, rng) for _ in range(N_LEVELS - 1))  # the coarsest has nothing to add to
        self.fuse = nn.ModuleList(_Unit(width, rng) for _ in range(N_LEVELS))
        self.project = nn.ModuleList(make_conv(width, width, 1, rng) for _ in range(N_LEVELS))
        self.smooth = make_conv(width, last_width, 3, rng)
        self.classify = make_conv(last_width, readout.n_outputs, 1, rng)
        assert self.classify.bias is not None
        self.classify.bias.data += readout.bias

    def forward(self, levels: Sequence[Float[Tensor, "B _H _W _K"]]) -> Float[Tensor, "B C h w"]:
        """Twice the size of the finest level."""
        maps = [level(cells) for level, cells in zip(self.levels, levels, strict=True)]
        fused = maps[-1]
        for i in reversed(range(N_LEVELS)):
            if i < N_LEVELS - 1:
                fused = fused + self.take[i](maps[i])
            height, width = maps[i - 1].shape[2:] if i else (2 * maps[0].shape[2], 2 * maps[0].shape[3])
            fused = F.interpolate(self.fuse[i](fused), (height, width), mode="bilinear", align_corners=True)
            fused = self.project[i](fused)
        outputs: Tensor = self.classify(F.relu(self.smooth(fused)))
        return outputs


class DptHead(DenseBase):
    """Maps from four taps of each backbone; those of several stand side by side, level by level.

    Of more than four taps it takes four at even distances, the last among them; of fewer, some twice. Nets whose taps
    are of one grid have them resized to four sizes; where the grids differ, each level keeps its own.

    Args:
        specs: features of kind "grid", and of kind "prefix" for the class token.
        width: channels of every level.
        last_width: channels before the outputs; None: `width`.
        budget: parameters of the head; None: both widths hold.

    Raises:
        UsageError: features of other kinds, or a budget that is too small.
    """

    default_taps: ClassVar[str] = "four-even"

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        readout: Readout,
        *,
        rng: torch.Generator,
        output_px: int,
        width: int = 256,
        last_width: int | None = None,
        budget: int | None = None,
    ) -> None:
        check_specs("dpt", ("grid", "prefix"), specs)
        super().__init__(specs, readout, output_px)
        self.places = _choose_places(specs)
        self.sizes = [_finest(specs, places) for places in self.places]
        scales = _SCALES if len(set(self.sizes)) == 1 else (1.0,) * N_LEVELS
        n_inputs = [sum(specs[i].dim for i, _ in places) for places in self.places]

        def build(width: int, last_width: int | None, rng: torch.Generator) -> _Network:
            return _Network(n_inputs, scales, readout, width=width, last_width=last_width or width, rng=rng)

        if budget is not None:
            width, last_width = solve_budget(build, budget, n_inputs=sum(n_inputs), step=1, head="dpt")
        self.network = build(width, last_width, rng)

    def prepare(self, features: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "B _H _W _K"]]:
        """The cells of each level, fine to coarse, float32; depends on no weights.

        Args:
            features: one [B, L, H, W, D] or [B, L, P, D] per spec.
        """
        check_features("dpt", self.specs, features)
        return [
            join_grids(
                [_with_tap(self.specs[i], tap) for i, tap in places],
                [features[i][:, tap : tap + 1] for i, tap in places],
                size,
            )
            for places, size in zip(self.places, self.sizes, strict=True)
        ]

    def forward(self, prepared: list[Float[Tensor, "B _H _W _K"]], rng: torch.Generator | None = None) -> Maps:  # noqa: ARG002
        """Takes what `prepare` gave; nothing is drawn."""
        return to_size(self.network(prepared), self.output_px)


def _choose_places(specs: Sequence[FeatureSpec]) -> list[list[tuple[int, int]]]:
    """For every level the features, and places along their taps, that it takes: of each backbone a tap's cells, and
    its class token where it is fed.

    Raises:
        UsageError: a backbone without patch tokens.
    """
    levels: list[list[tuple[int, int]]] = [[] for _ in range(N_LEVELS)]
    for backbone in dict.fromkeys(spec.backbone for spec in specs):
        own = [(i, spec) for i, spec in enumerate(specs) if spec.backbone == backbone]
        grids = [(i, place) for i, spec in own if spec.kind == "grid" for place in range(len(spec.taps))]
        if not grids:
            raise UsageError(
                f"there are no patch tokens of {backbone}",
                where="head 'dpt'",
                remedy="give it features of kind 'grid'",
            )
        tokens = {tap: (i, place) for i, spec in own if spec.has_class_token for place, tap in enumerate(spec.taps)}
        for level, number in zip(levels, _four_of(len(grids)), strict=True):
            i, place = grids[number]
            level.append((i, place))
            if (token := tokens.get(specs[i].taps[place])) is not None:
                level.append(token)
    return levels


def _four_of(n: int) -> list[int]:
    """Four of n taps, as the set `four-even`; of fewer than four all, the earlier ones twice."""
    return [n * quarter // 4 - 1 if n > N_LEVELS else (n * quarter + 3) // 4 - 1 for quarter in (1, 2, 3, 4)]


def _finest(specs: Sequence[FeatureSpec], places: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return finest_size([specs[i] for i, _ in places])


def _with_tap(spec: FeatureSpec, place: int) -> FeatureSpec:
    return replace(spec, taps=(spec.taps[place],))

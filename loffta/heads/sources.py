"""Finds each tap's patch tokens and class token among the features that a head is fed.

In:  FeatureSpecs of the kinds grid and prefix, as `choose_features` orders them.   Out: a TapSource per tap, which
reads that tap from a batch. Called by heads that see taps as sequences: `loff`, `head2toe`, `smp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from loffta.errors import UsageError
from loffta.heads.recipe import check_specs
from loffta.shapes import Grid
from loffta.tokens import FeatureSpec


@dataclass(frozen=True)
class TapSource:
    """One tap of one backbone, and where a batch has it."""

    backbone: str
    tap: str
    height: int  # grid rows
    width: int  # grid columns
    dim: int
    image_px: int
    grid_at: tuple[int, int]  # the feature's number, the tap's place along its axis L
    class_token_at: tuple[int, int] | None  # None: a net without one; registers are never read

    @property
    def has_class_token(self) -> bool:
        """Whether there is one to be read."""
        return self.class_token_at is not None

    def read_grid(self, features: Sequence[Tensor]) -> Grid:
        """A view of the batch, in its dtype."""
        feature, tap = self.grid_at
        return features[feature][:, tap]

    def read_class_token(self, features: Sequence[Tensor]) -> Float[Tensor, "B 1 D"]:
        """A view of the batch, in its dtype; only for a tap that has one."""
        assert self.class_token_at is not None, f"{self.backbone}:{self.tap} has no class token"
        feature, tap = self.class_token_at
        return features[feature][:, tap, :1]


def pair_taps(head: str, specs: Sequence[FeatureSpec]) -> tuple[TapSource, ...]:
    """Every tap with its patch tokens and, where its net has one, its class token; in the order of the grids.

    Raises:
        UsageError: no features, another kind, or prefix tokens of a tap whose patch tokens are not there.
    """
    check_specs(head, ("grid", "prefix"), specs)
    grids: dict[tuple[str, str], tuple[int, int]] = {}
    class_tokens: dict[tuple[str, str], tuple[int, int]] = {}
    for number, spec in enumerate(specs):
        places = {(spec.backbone, tap): (number, place) for place, tap in enumerate(spec.taps)}
        if spec.kind == "grid":
            grids |= places
        elif spec.has_class_token:
            class_tokens |= places
    for backbone, tap in sorted(class_tokens.keys() - grids.keys()):
        raise UsageError(
            f"there are prefix tokens of {backbone}:{tap}, but no patch tokens",
            where=f"head '{head}'",
            remedy="give it this tap's features of kind 'grid', too",
        )
    if not grids:
        raise UsageError(
            "there are no patch tokens",
            where=f"head '{head}'",
            remedy="give it features of kind 'grid'",
        )
    return tuple(
        TapSource(
            spec.backbone,
            tap,
            height=spec.shape[0],
            width=spec.shape[1],
            dim=spec.dim,
            image_px=spec.image_px,
            grid_at=grids[spec.backbone, tap],
            class_token_at=class_tokens.get((spec.backbone, tap)),
        )
        for spec in specs
        if spec.kind == "grid"
        for tap in spec.taps
    )

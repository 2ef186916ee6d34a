"""AAT: ALF's attentive probe over all tokens of the last layer, the paper's strong baseline (arXiv 2601.09322).

In: class token and patch tokens of the tap `last`.   Out: class logits. Probe and recipe are in `attention`.
Registers are left out, and tokens are normalised over their channels: methods.md says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from loffta.heads.attention import AttentiveProbe, ProbeRecipe
from loffta.heads.base import HeadBase
from loffta.heads.recipe import check_features, check_specs
from loffta.heads.vectors import check_vectors, count_vectors, unit_channels, unit_vectors
from loffta.shapes import Logits
from loffta.tokens import FeatureSpec, Kind

Normalise: TypeAlias = Literal["channels", "tokens"]
KINDS: tuple[Kind, ...] = ("prefix", "grid")
WITHOUT_CLASS_TOKEN = "give it the patch tokens of this backbone, too"


class AttentiveRecipe(ProbeRecipe, frozen=True):
    """The paper's, which is the same for all its heads; see `ProbeRecipe` for what is ours."""

    n_heads: PositiveInt = 8
    normalise: Normalise = "channels"  # each token over its channels, ours; tokens: each channel over the tokens

    def kinds(self) -> tuple[Kind, ...]:
        """Prefix tokens, for the class token, and patch tokens."""
        return KINDS

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `AttentiveHead`."""
        return super().head_arguments() | {"normalise": self.normalise}

    def resolve(self, specs: Sequence[FeatureSpec]) -> AttentiveRecipe:
        """Fills in nothing; what the head would refuse is refused before a run is begun."""
        check_vectors("attentive", specs, remedy=WITHOUT_CLASS_TOKEN)
        return self


class AttentiveHead(HeadBase):
    """Logits from all tokens of all taps of all backbones.

    Args:
        specs: features of kind "prefix" or "grid".
        normalise: over the channels of each token, or, as ALF's feature loader, over the tokens in each channel.
        noise: `attention_dropout`, `jitter_std` and `jitter_probability` of AttentiveProbe.
    """

    default_taps: ClassVar[str] = "last"

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        n_classes: int,
        *,
        rng: torch.Generator,
        n_heads: int = 8,
        normalise: Normalise = "channels",
        **noise: float | int,
    ) -> None:
        super().__init__()
        check_specs("attentive", KINDS, specs)
        check_vectors("attentive", specs, remedy=WITHOUT_CLASS_TOKEN)
        self.specs = tuple(specs)
        widths = [spec.dim for spec in specs for _ in range(count_vectors(spec))]
        self.dim = max(widths)
        self.normalise = normalise
        self.probe = AttentiveProbe(widths, n_classes, n_heads=n_heads, rng=rng, **noise)

    def prepare(self, features: Sequence[Float[Tensor, " ..."]]) -> Float[Tensor, "B T D"]:
        """Every token, or every channel, with length 1, zero-padded at the end to the widest; depends on no weights.

        Args:
            features: one [B, L, P, D] or [B, L, H, W, D] per spec.

        Returns:
            float32, tokens in the order of specs, taps, positions.
        """
        check_features("attentive", self.specs, features)
        unit = unit_vectors if self.normalise == "channels" else unit_channels
        return unit(self.specs, features, self.dim)

    def forward(self, prepared: Float[Tensor, "B T D"], rng: torch.Generator | None = None) -> Logits:
        """Takes what `prepare` gave; `rng` draws jitter and attention dropout."""
        logits: Tensor = self.probe(prepared, rng)
        return logits

    def no_decay(self) -> set[str]:
        """None: the official code has one group of parameters."""
        return set()

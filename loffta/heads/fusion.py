"""ALF, attentive multi-layer fusion: class token and patch mean of many layers, weighed by attention.

Ciernik, Morik, Thede, Eyring, Nakajima, Akata and Muttenthaler, ICML 2026, arXiv 2601.09322; probe and recipe are in
`attention`. In: prefix tokens and means of the taps `alf`.   Out: class logits, and the weight of every layer's token.
Several backbones, and backbones without class token, are ours: whatever of {class token, mean} x taps there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from loffta.heads.attention import Attention, AttentiveProbe, ProbeRecipe, average_attention
from loffta.heads.base import HeadBase
from loffta.heads.recipe import check_features, check_specs
from loffta.heads.vectors import check_vectors, count_vectors, unit_vectors
from loffta.shapes import Logits
from loffta.tokens import FeatureSpec, Kind

KINDS: tuple[Kind, ...] = ("prefix", "mean")
WITHOUT_CLASS_TOKEN = "give it the means of this backbone, too"


class FusionRecipe(ProbeRecipe, frozen=True):
    """The paper's; see `ProbeRecipe` for what is ours."""

    n_heads: PositiveInt | None = None  # None: as many as tokens

    def kinds(self) -> tuple[Kind, ...]:
        """Prefix tokens, for the class token, and means."""
        return KINDS

    def resolve(self, specs: Sequence[FeatureSpec]) -> FusionRecipe:
        """Fills in the number of heads; what the head would refuse is refused before a run is begun."""
        check_vectors("fusion", specs, remedy=WITHOUT_CLASS_TOKEN)
        return self if self.n_heads else self.model_copy(update={"n_heads": sum(map(count_vectors, specs))})


class TokenName(NamedTuple):
    """Which vector a token is."""

    backbone: str
    tap: str
    kind: Literal["cls", "mean"]


class FusionHead(HeadBase):
    """Logits from one or two vectors per tap.

    The order of the tokens is that of `specs`, as `choose_features` gives it: store by store, first the class tokens of
    all its taps in depth order, then their means.

    Args:
        specs: features of kind "prefix" or "mean".
        n_heads: None: as many as tokens.
        noise: `attention_dropout`, `jitter_std` and `jitter_probability` of AttentiveProbe.
    """

    default_taps: ClassVar[str] = "alf"

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        n_classes: int,
        *,
        rng: torch.Generator,
        n_heads: int | None = None,
        **noise: float | int,
    ) -> None:
        super().__init__()
        check_specs("fusion", KINDS, specs)
        check_vectors("fusion", specs, remedy=WITHOUT_CLASS_TOKEN)
        self.specs = tuple(specs)
        widths = [spec.dim for spec in specs for _ in range(count_vectors(spec))]
        self.dim = max(widths)
        self.probe = AttentiveProbe(widths, n_classes, n_heads=n_heads or len(widths), rng=rng, **noise)

    def prepare(self, features: Sequence[Float[Tensor, " ..."]]) -> Float[Tensor, "B T D"]:
        """Every vector with length 1, zero-padded at the end to the widest; depends on no weights.

        Args:
            features: one [B, L, P, D] or [B, L, D] per spec.

        Returns:
            float32, tokens in the order of `token_names`.
        """
        check_features("fusion", self.specs, features)
        return unit_vectors(self.specs, features, self.dim)

    def forward(self, prepared: Float[Tensor, "B T D"], rng: torch.Generator | None = None) -> Logits:
        """Takes what `prepare` gave; `rng` draws jitter and attention dropout."""
        logits: Tensor = self.probe(prepared, rng)
        return logits

    def no_decay(self) -> set[str]:
        """None: the official code has one group of parameters."""
        return set()

    def attention(self, prepared: Float[Tensor, "B T D"]) -> Attention:
        """The weights over the tokens that each head gives them, without noise; `average_attention` sums them up."""
        return self.probe.attention(prepared)

    def observe(self, prepared: Float[Tensor, "B T D"]) -> Float[Tensor, " T"]:
        """The batch's mean weight of every token, over images and heads."""
        return average_attention(self.attention(prepared))

    def findings(self, observed: Float[Tensor, " T"] | None) -> dict[str, list[dict[str, Any]]]:
        """The mean weight of every token, as `attention`; all together are 1."""
        assert observed is not None, "this head observes every batch"
        weights = zip(self.token_names(), observed.tolist(), strict=True)
        return {"attention": [{**name._asdict(), "value": weight} for name, weight in weights]}

    def token_names(self) -> list[TokenName]:
        """What the T tokens are, in their order."""
        return [
            TokenName(spec.backbone, tap, "mean" if spec.kind == "mean" else "cls")
            for spec in self.specs
            if count_vectors(spec)
            for tap in spec.taps
        ]

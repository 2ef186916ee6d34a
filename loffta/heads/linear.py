"""The linear probe: pooled vectors of all taps, one affine map to the classes.

The reference that every other head has to beat, after one of two practices. MAE's linear probe (He et al., arXiv
2111.06377, appendix A.1) standardises every column by a BatchNorm without affine parameters; concatenating all taps and
the recipe are ours. ALF's linear baselines (arXiv 2601.09322, its official code) have torch's plain linear layer on
vectors of length 1 with noise in training, and let everything decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loffta.heads.base import HeadBase
from loffta.heads.block import make_linear, make_torch_linear
from loffta.heads.recipe import Recipe, check_features, check_specs
from loffta.heads.vectors import (
    JITTER_PROBABILITY,
    JITTER_STD,
    apply_batch_norm,
    check_vectors,
    count_vectors,
    jitter,
    take_vectors,
)
from loffta.shapes import Logits
from loffta.tokens import FeatureSpec, Kind

Pooling: TypeAlias = Literal["mean", "cls", "cls+mean"]
Practice: TypeAlias = Literal["mae", "alf"]
KINDS_OF: dict[Pooling, tuple[Kind, ...]] = {"mean": ("mean",), "cls": ("prefix",), "cls+mean": ("prefix", "mean")}
WITHOUT_CLASS_TOKEN = "use --set pooling=mean, or pooling=cls+mean to take its mean alone, or leave this backbone out"


class LinearRecipe(Recipe, frozen=True):
    """Ours: the steps of ComBo's recipe, so that the two are compared at equal length.

    Of 3e-4, 1e-3, 3e-3 and 1e-2, 1e-3 is never more than 3 points of top-1 below the best on scikit-learn's digits (200
    and 800 images; K = 64 pixels and K = 4,096 random features); 1e-2 loses up to 5 at large K.
    """

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    pooling: Pooling = "mean"  # of each tap; a backbone without class token has its mean alone in cls+mean
    practice: Practice = "mae"  # mae: standardised columns; alf: vectors of length 1 with noise, see `LinearHead`

    def kinds(self) -> tuple[Kind, ...]:
        """Means, prefix tokens, or both."""
        return KINDS_OF[self.pooling]

    def resolve(self, specs: Sequence[FeatureSpec]) -> LinearRecipe:
        """Fills in nothing; what the head would refuse is refused before a run is begun."""
        check_vectors("linear", specs, remedy=WITHOUT_CLASS_TOKEN)
        return self

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `LinearHead`."""
        return {"pooling": self.pooling, "practice": self.practice}


class LinearHead(HeadBase):
    """Logits from the pooled vectors of all taps of all backbones.

    Args:
        specs: features of the kinds that `pooling` needs; K is the sum of L * D over them, registers left out.
        practice: mae standardises each column over the batch, and draws weights with 0.01; alf gives each vector length
            1 and, in training, noise to half of the images; its weights are drawn as torch draws them, and all decay.

    Raises:
        UsageError: features of other kinds, or a backbone without the class token that is asked for.
    """

    default_taps: ClassVar[str] = "last"

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        n_classes: int,
        *,
        rng: torch.Generator,
        pooling: Pooling = "mean",
        practice: Practice = "mae",
    ) -> None:
        super().__init__()
        check_specs("linear", KINDS_OF[pooling], specs)
        check_vectors("linear", specs, remedy=WITHOUT_CLASS_TOKEN)
        self.specs = tuple(specs)
        n_inputs = sum(count_vectors(spec) * spec.dim for spec in specs)
        self.practice = practice
        if practice == "mae":
            self.standardise = nn.BatchNorm1d(n_inputs, affine=False)
            self.classify = make_linear(n_inputs, n_classes, rng, std=0.01)
        else:
            self.classify = make_torch_linear(n_inputs, n_classes, rng)

    def prepare(self, features: Sequence[Float[Tensor, " ..."]]) -> Float[Tensor, "B K"]:
        """Concatenates the vectors, float32, in the order of specs, taps, channels; depends on no weights.

        Args:
            features: one [B, L, D] or [B, L, P, D] per spec.
        """
        check_features("linear", self.specs, features)
        vectors = [take_vectors(spec, feature).float() for spec, feature in zip(self.specs, features, strict=True)]
        if self.practice == "alf":
            vectors = [F.normalize(found, dim=-1) for found in vectors]
        return torch.cat([found.flatten(1) for found in vectors], dim=1)

    def forward(self, prepared: Float[Tensor, "B K"], rng: torch.Generator | None = None) -> Logits:
        """Takes what `prepare` gave; `rng` draws ALF's noise."""
        if self.practice == "mae":
            prepared = apply_batch_norm(self.standardise, prepared)
        elif rng is not None:
            prepared = jitter(prepared, JITTER_STD, JITTER_PROBABILITY, rng)
        logits: Tensor = self.classify(prepared)
        return logits

    def no_decay(self) -> set[str]:
        """The bias; nothing in ALF's code, which has one group of parameters."""
        return set() if self.practice == "alf" else super().no_decay()

"""A head to copy: the mean of every tap, one hidden layer, logits. Say here what a head of yours is, and whose.

In:  means of the chosen taps.   Out: class logits.
Copy it to loffta/heads/NAME.py, add NAME to HEADS in loffta/heads/__init__.py and its recipe to docs/methods.md. The
contract tests (tests/heads/test_contract.py) then run over it, and `loffta train CACHE --head NAME` trains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from loffta.heads.base import HeadBase
from loffta.heads.block import make_linear
from loffta.heads.recipe import Recipe, check_features, check_specs
from loffta.tokens import FeatureSpec, Kind


class TemplateRecipe(Recipe, frozen=True):
    """The defaults are a paper's; whatever is ours is named as ours. `--set hidden=128` changes one."""

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    hidden: PositiveInt = 256  # units of the hidden layer

    def kinds(self) -> tuple[Kind, ...]:
        """What `train` feeds: means, which are pooled from a stored grid where they are not stored."""
        return ("mean",)

    def head_arguments(self) -> dict[str, Any]:
        """What of the recipe the head's constructor gets."""
        return self.model_dump(include={"hidden"})


class TemplateHead(HeadBase):
    """Logits from the means of all taps, side by side.

    Args:
        specs: one per array of features; all of kind "mean".
        rng: CPU generator that draws the initial weights. The global generator has no part.
        hidden: units of the hidden layer.
    """

    default_taps: ClassVar[str] = "all"

    def __init__(
        self, specs: Sequence[FeatureSpec], n_classes: int, *, rng: torch.Generator, hidden: int = 256
    ) -> None:
        super().__init__()
        check_specs("template", ("mean",), specs)
        self.specs = tuple(specs)
        self.project = make_linear(sum(len(spec.taps) * spec.dim for spec in specs), hidden, rng)
        self.classify = make_linear(hidden, n_classes, rng)

    def prepare(self, features: Sequence[Float[Tensor, "B L D"]]) -> Float[Tensor, "B K"]:
        """The part without weights, done once for all seeds; features come in their storage dtype."""
        check_features("template", self.specs, features)
        return torch.cat([feature.float().flatten(1) for feature in features], dim=1)

    def forward(self, prepared: Float[Tensor, "B K"], rng: torch.Generator | None = None) -> Float[Tensor, "B C"]:  # noqa: ARG002
        """Takes what `prepare` gave. `rng` draws dropout and its like in training; None in evaluation."""
        logits: Tensor = self.classify(F.gelu(self.project(prepared)))
        return logits

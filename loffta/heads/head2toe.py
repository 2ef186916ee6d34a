"""Head2Toe: a linear head on few of the features of all layers, chosen by a first head (Evci et al., ICML 2022).

In:  patch tokens and class tokens of every stored tap.   Out: class logits.
Phase 0 trains with a group lasso over input features and scores them; phase 1 keeps the best and trains a new head on
these alone, without it. Pooling, selection and recipe are the paper's and its code's (google-research/head2toe).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from loffta.heads.base import HeadBase
from loffta.heads.block import undrawn_linear
from loffta.heads.pooled_taps import PooledTaps
from loffta.heads.recipe import Recipe
from loffta.shapes import Logits
from loffta.tokens import FeatureSpec, Kind


class Head2ToeRecipe(Recipe, frozen=True):
    """The code's defaults; size, rate and steps are chosen per task in the paper: these are of one of its examples.

    Its grid: sizes up to 8,192, keep_fraction 0.01 to 0.2, lasso_weight 1e-5 to 1e-4, rates 0.1 and 0.01, 500 or 5,000
    steps in each phase. AdamW without decay is Adam, Keras' here. The code draws its batches once for a phase, and
    divides the loss of the last, smaller one by 128 as well.
    """

    epochs: PositiveInt = 1
    min_steps: PositiveInt | None = 500
    batch_size: PositiveInt = 128
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 0.0
    warmup_fraction: float = Field(0.0, ge=0, le=1)
    final_lr_factor: float = Field(0.0, ge=0, le=1)
    search_lr: tuple[PositiveFloat, ...] = Field((0.1, 0.01), min_length=1)
    precision: Literal["fp32", "bf16"] | None = "fp32"
    adam: Literal["torch", "keras"] = "keras"
    same_batches: bool = True
    divide_by_whole_batch: bool = True
    tensors: Literal["taps", "code"] | None = None  # code: see `pooled_taps`; None: code, but taps in runs before it
    pooled_size: PositiveInt = 512  # values that a tap is pooled to, about; never fewer than its channels
    keep_fraction: float = Field(0.1, gt=0, le=1)  # of all features, whichever taps they are of
    lasso_weight: NonNegativeFloat = 1e-4  # in phase 0, times the sum of the features' weight norms

    def kinds(self) -> tuple[Kind, ...]:
        """Patch tokens, and the class token where the net has one."""
        return ("grid", "prefix")

    def resolve(self, specs: Sequence[FeatureSpec]) -> Head2ToeRecipe:  # noqa: ARG002
        """A new run's tensors are the code's; in the recipe of an older one there is no word of them."""
        return self if self.tensors else self.model_copy(update={"tensors": "code"})

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `Head2ToeHead`."""
        return self.model_dump(include={"pooled_size", "keep_fraction", "lasso_weight", "tensors"})


class Head2ToeHead(HeadBase):
    """Logits from the pooled taps, in phase 1 from the features that phase 0 has scored highest.

    Features that are not kept stay in place with weights of 0, so that both phases have the same tensors.

    Args:
        specs: features of the kinds "grid" and "prefix"; registers are left out.
        pooled_size: see `PooledTaps`.
        keep_fraction: of the K features.
        lasso_weight: of the group lasso in phase 0.
        tensors: code adds to the taps what `PooledTaps` says.
    """

    default_taps: ClassVar[str] = "every"
    n_phases: ClassVar[int] = 2
    kept: Bool[Tensor, " K"]

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        n_classes: int,
        *,
        rng: torch.Generator,
        pooled_size: int = 512,
        keep_fraction: float | int = 0.1,
        lasso_weight: float | int = 1e-4,
        tensors: Literal["taps", "code"] | None = None,
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.taps = PooledTaps("head2toe", specs, pooled_size, as_in_code=tensors == "code")
        self.keep_fraction = keep_fraction
        self.lasso_weight = lasso_weight
        n_inputs = sum(self.taps.sizes)
        self.classify = undrawn_linear(n_inputs, n_classes)
        self.register_buffer("kept", torch.ones(n_inputs, dtype=torch.bool))
        self._phase = 0
        self._draw_weights(rng)

    def prepare(self, features: Sequence[Float[Tensor, " ..."]]) -> Float[Tensor, "B K"]:
        """All taps, pooled and each of length 1; depends on no weights.

        Args:
            features: per spec [B, L, H, W, D] or [B, L, P, D].
        """
        return self.taps.pool(features)

    def forward(self, prepared: Float[Tensor, "B K"], rng: torch.Generator | None = None) -> Logits:  # noqa: ARG002
        """Takes what `prepare` gave."""
        if self._phase == 1:
            prepared = self.taps.scale(prepared * self.kept)
        logits: Tensor = self.classify(prepared)
        return logits

    def penalty(self) -> Tensor | None:
        """In phase 0 the group lasso: a norm per feature, over its weights to all classes."""
        if self._phase == 1 or self.lasso_weight == 0:
            return None
        norms: Tensor = torch.linalg.vector_norm(self.classify.weight, dim=0)  # its gradient at 0 is 0
        return self.lasso_weight * norms.sum()

    @torch.no_grad()
    def start_phase(self, phase: int, rng: torch.Generator) -> None:
        """Phase 1: keeps the features with the largest sums of squared weights, then draws new weights for them."""
        assert phase == 1, f"phase {phase} of Head2Toe, which has two"
        scores = self.classify.weight.square().sum(dim=0)
        n_kept = max(1, int(self.keep_fraction * len(scores)))  # rounded down, as in the code
        self.kept.zero_()
        self.kept[scores.topk(n_kept).indices] = True
        self._phase = 1
        self._draw_weights(rng)

    def findings(self, observed: Float[Tensor, " X"] | None) -> dict[str, list[dict[str, Any]]]:  # noqa: ARG002
        """The share that is kept of the features of every tap, as `kept`."""
        shares = [float(part.float().mean()) for part in torch.split(self.kept.cpu(), self.taps.sizes)]
        named = zip(self.taps.specs, shares, strict=True)
        return {"kept": [{"backbone": s.backbone, "tap": s.taps[0], "value": share} for s, share in named]}

    @torch.no_grad()
    def _draw_weights(self, rng: torch.Generator) -> None:
        """Glorot's uniform weights and zero biases (Keras' defaults), as if there were only the features kept."""
        n_classes, n_kept = len(self.classify.weight), int(self.kept.sum())
        bound = math.sqrt(6 / (n_kept + n_classes))
        drawn = torch.empty(n_classes, n_kept).uniform_(-bound, bound, generator=rng)
        self.classify.weight.zero_()
        self.classify.weight[:, self.kept] = drawn.to(self.classify.weight.device)
        self.classify.bias.zero_()

    def get_extra_state(self) -> Tensor:
        """The phase: with keep_fraction 1, `kept` does not tell."""
        return torch.tensor(self._phase)

    def set_extra_state(self, state: Tensor) -> None:
        """Called by `load_state_dict`."""
        self._phase = int(state)

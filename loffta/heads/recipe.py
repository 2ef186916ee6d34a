"""What all heads share beside their weights: the training recipe, and the checks of what is fed to them.

A recipe's defaults are those of the head's paper; what is ours is named so. `train` reads the training fields, the
head's constructor gets `head_arguments()`, `runs` writes the whole resolved recipe into config.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from loffta.errors import UsageError
from loffta.limits import MANY, RECIPE_LIMITS
from loffta.tokens import FeatureSpec, Kind


class Recipe(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How a head is trained: AdamW (betas 0.9 and 0.999), linear warm-up, then cosine, per step.

    The warm-up and final factors are ComBo's and serve every head that does not say otherwise.
    """

    # fields with a default of None or False do nothing unless a head's recipe, or the user, sets them

    epochs: PositiveInt
    batch_size: PositiveInt  # images; the last partial batch is kept
    lr: PositiveFloat  # the highest, reached at the end of the warm-up
    weight_decay: NonNegativeFloat  # decoupled (AdamW); not on the head's `no_decay()`
    warmup_fraction: float = Field(0.1, ge=0, le=1)  # of all steps
    warmup_start_factor: float = Field(1 / 100, gt=0, le=1)  # first step's learning rate over lr
    final_lr_factor: float = Field(1 / 1000, ge=0, le=1)  # where the cosine ends, over lr
    final_lr: NonNegativeFloat | None = None  # the same as a rate of its own, whatever lr is
    min_steps: PositiveInt | None = None  # more epochs are run until there are so many
    min_batches: PositiveInt | None = None  # of an epoch; the batch is lowered until there are so many
    max_grad_norm: PositiveFloat | None = None  # gradients are scaled down to this norm, over all parameters
    adam: Literal["torch", "keras"] = "torch"  # the epsilon: see `optim.adam_eps`
    same_batches: bool = False  # every epoch has the images of its batches, and their order, from the first
    divide_by_whole_batch: bool = False  # the loss of a smaller batch, too, is its sum over batch_size
    class_weights: bool = False  # of the loss: n / (C * n_c) for a class of n_c of the n training images
    loss: Literal["mse", "huber"] | None = None  # of numbers; None: mse where numbers are learnt, else the task's own
    huber_delta: PositiveFloat = 1.0  # in standard deviations: errors beyond count linearly; torch's default
    # `--search` tries all pairs of these. None: weight_decay alone, for at these rates decays up to 1e-2 shrink weights
    # by 8 % at most, and change next to no prediction (decisions.md)
    search_lr: tuple[PositiveFloat, ...] = Field((1e-4, 1e-3, 1e-2), min_length=1, max_length=MANY)
    search_weight_decay: tuple[NonNegativeFloat, ...] | None = Field(None, min_length=1, max_length=MANY)
    precision: Literal["fp32", "bf16"] | None = None  # None: see `precision.uses_bf16`

    @model_validator(mode="after")
    def _is_sensible(self) -> Recipe:
        for name, most in RECIPE_LIMITS.items():
            if (value := getattr(self, name, None)) is not None and value > most:
                raise ValueError(f"{name} must be from 1 to {most:,}")
        return self

    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of features that the head is fed, of every tap that has them: not every tap has prefix tokens.

        Known before the features are, and the same for a resolved recipe.
        """
        raise NotImplementedError

    def resolve(self, specs: Sequence[FeatureSpec]) -> Recipe:  # noqa: ARG002
        """The recipe with everything filled in that depends on the features; resolving twice changes nothing."""
        return self

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the head's constructor."""
        return {}


def check_specs(head: str, kinds: Sequence[Kind], specs: Sequence[FeatureSpec]) -> None:
    """Refuses features of a kind that the head cannot use, and no features at all.

    Raises:
        UsageError: with the head, and the backbone at fault.
    """
    wanted = " or ".join(f"'{kind}'" for kind in kinds)
    if not specs:
        raise UsageError("there are no features", where=f"head '{head}'", remedy="give it at least one store")
    for spec in specs:
        if spec.kind not in kinds:
            raise UsageError(
                f"the features of {spec.backbone} are of kind '{spec.kind}'",
                where=f"head '{head}'",
                remedy=f"give it features of kind {wanted}",
            )


def check_features(head: str, specs: Sequence[FeatureSpec], features: Sequence[Tensor]) -> None:
    """Compares a batch with the specs that the head was built for.

    Right are tensors [B, L, *spec.shape], one per spec, with the same B.

    Raises:
        UsageError: with the shape found and the shape expected.
    """
    where = f"head '{head}'"
    if len(features) != len(specs):
        raise UsageError(
            f"got {len(features)} feature tensors for {len(specs)} specs",
            where=where,
            remedy="pass one tensor per FeatureSpec, in the order of the specs",
        )
    for spec, feature in zip(specs, features, strict=True):
        expected = (len(features[0]), len(spec.taps), *spec.shape)
        if tuple(feature.shape) != expected:
            raise UsageError(
                f"features of {spec.backbone} have shape {tuple(feature.shape)}, not {expected}",
                where=where,
                remedy="pass [B, L, *shape] as in the FeatureSpec, or build the head for these features",
            )

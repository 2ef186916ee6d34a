"""From one loss per image to the number that a step lowers: class weights and mixed images.

In: what a task's `loss` gives, [B].   Out: a scalar. Called by `fit`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loffta.errors import UsageError
from loffta.heads.recipe import Recipe
from loffta.tasks import Task, regression

Loss: TypeAlias = Callable[[Any, Tensor], Tensor]  # logits, targets -> [B], of each image


class Mix(NamedTuple):
    """How images of a batch were mixed: `weight` of each with the rest of its partner."""

    partner: Int[Tensor, " B"]  # places in the batch
    weight: Float[Tensor, " B"]  # in [0, 1]


def loss_of(task: Task, recipe: Recipe) -> Loss:
    """The task's own, or the one that the recipe names."""
    return partial(regression.huber, delta=recipe.huber_delta) if recipe.loss == "huber" else task.loss


def class_weights(labels: Tensor, n_classes: int) -> Float[Tensor, " C"]:
    """n / (C * n_c) for a class of n_c of the n training images; 0 for a class without any: it is never asked for.

    Args:
        labels: [B] int, the class of every training image.
    Raises:
        UsageError: the targets are not one class per image.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise UsageError(
            "class weights need one class per image",
            where="class_weights",
            remedy="leave it out: --set class_weights=false",
        )
    counts = torch.bincount(labels, minlength=n_classes).float()
    return torch.where(counts > 0, len(labels) / (n_classes * counts.clamp(min=1)), 0.0)


def check_weights(recipe: Recipe, targets: Tensor) -> None:
    """Refuses a recipe with class weights for targets that have none: before a run is begun.

    Raises:
        UsageError: as `class_weights`.
    """
    if recipe.class_weights:
        class_weights(targets[:0], 1)


def reduce_loss(
    loss: Loss,
    logits: Any,
    targets: Tensor,
    *,
    weights: Float[Tensor, " C"] | None = None,
    mix: Mix | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, ""]:
    """The mean over images; with class weights the weighted mean, as torch's CrossEntropyLoss has it.

    Args:
        loss: of each image, [B], from logits and targets.
        weights: of the classes; targets are then classes.
        mix: the loss of a mixed image is that of both, in the same shares (Zhang et al., arXiv 1710.09412); of squared
            errors it has the gradient of the mixed value's.
        total: sums over all processes what the mean is over; the loss is then this one's part of that mean.
    """
    if mix is None:
        losses = loss(logits, targets)
        if weights is None and total is None:
            return losses.mean()
        shares = torch.ones_like(losses) if weights is None else weights[targets]
        over = shares.sum()
        return (losses * shares).sum() / (over if total is None else total(over))
    assert total is None, "images are mixed in one process alone"
    both = torch.stack([loss(logits, targets), loss(logits, targets[mix.partner])])
    shares = torch.stack([mix.weight, 1 - mix.weight])
    if weights is not None:
        shares = shares * torch.stack([weights[targets], weights[targets[mix.partner]]])
    return (both * shares).sum() / shares.sum()

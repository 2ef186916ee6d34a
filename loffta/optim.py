"""Steps, parameter groups and the learning rate of every step: linear warm-up, then cosine.

`members` builds one AdamW per head with `make_optimizer`; `fit` sets `lr_at` before each step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from loffta.heads import Head
from loffta.heads.recipe import Recipe


def fit_to_images(recipe: Recipe, n_images: int) -> Recipe:
    """The recipe with the batch that gives `min_batches` an epoch, then the epochs that give `min_steps`.

    The batch is the largest of no more than `batch_size` images with so many batches; 1 where there are not so many
    images.
    """
    batch_size, epochs = recipe.batch_size, recipe.epochs
    if recipe.min_batches is not None and recipe.min_batches > 1:
        largest = math.ceil(n_images / (recipe.min_batches - 1)) - 1  # one more image a batch, and there is one less
        batch_size = max(1, min(batch_size, largest))
    if recipe.min_steps is not None:
        epochs = max(epochs, math.ceil(recipe.min_steps / math.ceil(n_images / batch_size)))
    return recipe.model_copy(update={"batch_size": batch_size, "epochs": epochs})


def n_steps(n_images: int, batch_size: int, epochs: int) -> int:
    """Steps of a training; the last partial batch of an epoch counts: 1,300 for 800 images, 64 a batch, 100 epochs."""
    return math.ceil(n_images / batch_size) * epochs


def lr_factor(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of a step over recipe.lr.

    The closed form of pl_bolts' LinearWarmupCosineAnnealingLR stepped once per batch, as in ComBo. With W warm-up
    steps of `total`, step 0 has warmup_start_factor, steps W - 1 and W have 1; step `total` would have final_lr_factor,
    or the rate `final_lr` where the recipe has one.
    """
    n_warmup = round(recipe.warmup_fraction * total)
    if step < n_warmup:
        start = recipe.warmup_start_factor
        return start + (1 - start) * step / max(1, n_warmup - 1)
    progress = (step - n_warmup) / max(1, total - n_warmup)
    final = recipe.final_lr_factor if recipe.final_lr is None else recipe.final_lr / recipe.lr
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def lr_at(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of a step, 0 for the first."""
    return recipe.lr * lr_factor(step, total, recipe)


def is_finite(module: nn.Module | Head) -> bool:
    """Whether all weights are numbers."""
    return all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def parameter_groups(head: Head, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups "decay" and "no_decay"; every parameter is in one of them, in the head's order."""
    exempt = head.no_decay()
    named = list(head.named_parameters())
    return [
        {"name": "decay", "params": [p for name, p in named if name not in exempt], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
    ]


def make_optimizer(head: Head, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW (betas 0.9 and 0.999) over all parameters of a head on `device`; with no weight decay it is Adam."""
    return make_adamw(parameter_groups(head, recipe.weight_decay), recipe, device)


def make_adamw(groups: list[dict[str, Any]], recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The same over any groups of parameters."""
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=device.type != "mps")

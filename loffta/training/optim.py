"""Steps, parameter groups and the learning rate of every step: linear warm-up, then cosine.

`members` builds one AdamW per head with `make_optimizer`; `fit` sets `lr_at` and `adam_eps` before each step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from loffta.heads import Head
from loffta.heads.recipe import Recipe

BETAS = (0.9, 0.999)


def fit_to_images(recipe: Recipe, n_images: int) -> Recipe:
    """The recipe with the batch that this many images are trained in, then the epochs that give `min_steps`."""
    return _with_epochs(recipe, n_images, choose_batch(recipe, n_images))


def fit_to_part(recipe: Recipe, n_images: int, n_part: int) -> Recipe:
    """The same for a search, which trains on `n_part` of the `n_images`: the batch stays that of all of them.

    One image more where one alone would be left over, which BatchNorm cannot take (ALF's `create_train_val_loaders`).
    """
    batch_size = choose_batch(recipe, n_images)
    if recipe.min_batches is not None and n_part % batch_size == 1:
        batch_size += 1
    return _with_epochs(recipe, n_part, batch_size)


def choose_batch(recipe: Recipe, n_images: int) -> int:
    """Images a step: `batch_size`, or with `min_batches` M the rule of ALF's `adjust_batch_size` (arXiv 2601.09322).

    A batch is good where nothing or at least half a batch is left over. `batch_size` stays where it is good and M full
    batches come of it. Else the largest good batch of as many full ones: M, or as many as `batch_size` has. That may be
    somewhat more than `batch_size`. ALF's own rule gives up below 17 images and takes 1, on which its BatchNorm fails;
    this one goes on downwards.
    """
    given, least = recipe.batch_size, recipe.min_batches
    if least is None or (n_images // given >= least and _ends_well(n_images, given)):
        return given
    least = max(least, n_images // given)
    return next((size for size in range(n_images // least, 0, -1) if _ends_well(n_images, size)), 1)


def _ends_well(n_images: int, batch_size: int) -> bool:
    left_over = n_images % batch_size
    return left_over == 0 or 2 * left_over >= batch_size


def _with_epochs(recipe: Recipe, n_images: int, batch_size: int) -> Recipe:
    epochs = recipe.epochs
    if recipe.min_steps is not None:
        epochs = max(epochs, math.ceil(recipe.min_steps / math.ceil(n_images / batch_size)))
    return recipe.model_copy(update={"batch_size": batch_size, "epochs": epochs})


def n_steps(n_images: int, batch_size: int, epochs: int) -> int:
    """Steps of a training; the last partial batch of an epoch counts: 1,300 for 800 images, 64 a batch, 100 epochs."""
    return math.ceil(n_images / batch_size) * epochs


def lr_factor(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of a step over recipe.lr.

    The closed form of pl_bolts' LinearWarmupCosineAnnealingLR stepped once per batch, as in ComBo. With W warm-up
    steps of `total`, the whole part of their share (ComBo's code), step 0 has warmup_start_factor, steps W - 1 and W
    have 1; step `total` would have final_lr_factor, or the rate `final_lr` where the recipe has one.
    """
    n_warmup = int(recipe.warmup_fraction * total)
    if step < n_warmup:
        start = recipe.warmup_start_factor
        return start + (1 - start) * step / max(1, n_warmup - 1)
    progress = (step - n_warmup) / max(1, total - n_warmup)
    final = recipe.final_lr_factor if recipe.final_lr is None else recipe.final_lr / recipe.lr
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def lr_at(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of a step, 0 for the first."""
    return recipe.lr * lr_factor(step, total, recipe)


def adam_eps(step: int, recipe: Recipe) -> float:
    """What Adam adds to the root of the second moment at a step of the optimiser, 0 for the first.

    1e-8 in torch. Keras has 1e-7 (Head2Toe), and adds it before the moment is corrected for its bias: in torch's terms
    it is larger in the first steps.
    """
    return 1e-8 if recipe.adam == "torch" else 1e-7 / math.sqrt(1 - BETAS[1] ** (step + 1))


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
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS, fused=device.type != "mps")

"""Parameter groups and the learning rate of every step: linear warm-up, then cosine.

`train` builds one AdamW per head from `parameter_groups` and sets `lr_at` before each step.
"""

from __future__ import annotations

import math
from typing import Any

from loffta.heads import Head
from loffta.heads.recipe import Recipe


def n_steps(n_images: int, batch_size: int, epochs: int) -> int:
    """Steps of a training; the last partial batch of an epoch counts: 1,300 for 800 images, 64 a batch, 100 epochs."""
    return math.ceil(n_images / batch_size) * epochs


def lr_factor(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of a step over recipe.lr.

    The closed form of pl_bolts' LinearWarmupCosineAnnealingLR stepped once per batch, as in ComBo. With W warm-up
    steps of `total`, step 0 has warmup_start_factor, steps W - 1 and W have 1; step `total` would have final_lr_factor.
    """
    n_warmup = round(recipe.warmup_fraction * total)
    if step < n_warmup:
        start = recipe.warmup_start_factor
        return start + (1 - start) * step / max(1, n_warmup - 1)
    progress = (step - n_warmup) / max(1, total - n_warmup)
    final = recipe.final_lr_factor
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def lr_at(step: int, total: int, recipe: Recipe) -> float:
    """Learning rate of a step, 0 for the first."""
    return recipe.lr * lr_factor(step, total, recipe)


def parameter_groups(head: Head, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups "decay" and "no_decay"; every parameter is in one of them, in the head's order."""
    exempt = head.no_decay()
    named = list(head.named_parameters())
    return [
        {"name": "decay", "params": [p for name, p in named if name not in exempt], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
    ]

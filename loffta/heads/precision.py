"""In which precision a head computes, in training and in evaluation.

In: a recipe and a device.   Out: contexts for `fit`, `evaluate` and training online. Weights and stored features stay
float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from loffta.heads.recipe import Recipe


def uses_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether the forward pass runs under bfloat16 autocast: unless the recipe says, on GPUs that are made for it."""
    if recipe.precision is not None:
        return recipe.precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def precision_of(recipe: Recipe, device: torch.device) -> Literal["fp32", "bf16"]:
    """The same as a word that a recipe takes: what a run keeps of its training, whatever evaluates it."""
    return "bf16" if uses_bf16(recipe, device) else "fp32"


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """For the forward pass of one batch; in float32 nothing: older MPS refuses bfloat16 even where it is off."""
    return torch.autocast(device.type, torch.bfloat16) if uses_bf16(recipe, device) else nullcontext()


@contextmanager
def matmul_precision(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """In bf16 what is left in float32 is multiplied as ComBo's code has it; in fp32 nothing changes."""
    before = torch.get_float32_matmul_precision()
    try:
        if uses_bf16(recipe, device):
            torch.set_float32_matmul_precision("medium")
        yield
    finally:
        torch.set_float32_matmul_precision(before)

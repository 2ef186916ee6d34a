"""The dense rows of gpu_check.py: steps of DeAP on the device and on the CPU, and what the largest of them holds.

In: a Setup.   Out: (what, largest difference, its bound) as gpu_values.py has it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_values import CLASSES, Comparisons, Setup
from numpy.typing import NDArray

from loffta.heads import build_dense_head
from loffta.heads.deap import DeapRecipe
from loffta.heads.precision import autocast, matmul_precision
from loffta.shapes import TargetBatch
from loffta.targets import Readout
from loffta.tasks.dense import DENSE_TASKS
from loffta.tokens import FeatureSpec


class Maps(NamedTuple):
    """What a dense head is given, and asked for."""

    side: int  # of the grid, in cells
    dim: int
    output_px: int
    batch: int


def check_dense(setup: Setup) -> Comparisons:
    """The losses of DeAP's first steps; and the memory of one from 37 x 37 cells to 448 px, 32 images at once."""
    small = Maps(max(2, setup.image_px // 14), 64 if setup.image_px < 224 else 768, setup.image_px, 4)
    expected, _ = deap_steps(torch.device("cpu"), "fp32", small)
    for precision, bound in (("fp32", 1e-2), ("bf16", 0.1)):
        found, _ = deap_steps(setup.device, precision, small)
        yield f"deap, {precision}", float(np.max(np.abs(found / expected - 1))), bound
    large = Maps(37, 768, 448, 32)
    peak = deap_steps(setup.device, "fp32", large, n_steps=1)[1] if setup.device.type == "cuda" else None
    yield "deap, 37 x 37 to 448 px, batch 32, GiB", peak, 8.0


def deap_steps(
    device: torch.device, precision: str, maps: Maps, *, n_steps: int = 3
) -> tuple[NDArray[Any], float | None]:
    """Losses of a DeAP head's steps on one batch of noise, and GiB at the peak, features included; None on a CPU."""
    rng = torch.Generator().manual_seed(0)
    grids = torch.randn(maps.batch, 1, maps.side, maps.side, maps.dim, generator=rng)
    labels = torch.randint(0, CLASSES, (maps.batch, maps.output_px, maps.output_px), dtype=torch.uint8, generator=rng)
    recipe = DeapRecipe(output_px=maps.output_px, precision=precision)
    spec = FeatureSpec("net", ("last",), "grid", (maps.side, maps.side, maps.dim), 224)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    head = build_dense_head("deap", [spec], Readout((CLASSES,)), recipe, 0).to(device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    features, targets, losses = [grids.to(device)], TargetBatch(maps=labels.to(device)), []
    for _ in range(n_steps):
        with autocast(recipe, device), matmul_precision(recipe, device):
            outputs = head(head.prepare(features))
            loss = DENSE_TASKS["segmentation"].loss(outputs, targets, recipe.settings()).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return np.array(losses), peak


DENSE = {"dense": check_dense}

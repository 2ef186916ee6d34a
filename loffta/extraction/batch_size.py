"""Finds how many images a backbone should be given at once: the fastest number that fits the memory.

In: a job whose backbone is loaded.   Out: images per forward pass. Called by `extract` for `--batch-size auto`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from loffta.extraction.forward import Job, free_memory
from loffta.store.ledger import read_made

DEFAULT = 32
PROBE_FROM_IMAGES = 2048  # fewer are extracted in about the time that looking for their best batch size takes
FIRST, LARGEST = 8, 1024
WORTH = 1.05  # a doubled batch must be this much faster, or memory is better spent otherwise


def set_batch_sizes(jobs: Sequence[Job], wanted: int | None, n_images: int) -> int:
    """Gives every job that has to compute something its batch size.

    Args:
        wanted: the same for all; None: each finds its own.
        n_images: still to be extracted.
    Returns:
        The largest: how many images are decoded into one batch.
    """
    for job in jobs:
        if job.backbone is not None:
            job.batch_size = choose_batch_size(job, n_images) if wanted is None else wanted
    return max((job.batch_size for job in jobs), default=0) or DEFAULT


def choose_batch_size(job: Job, n_images: int) -> int:
    """What the store's finished units were made with on such a device, else the fastest of 8, 16, 32, ...

    Keeping to one size makes a resumed store bit for bit what an uninterrupted run gives.

    Args:
        n_images: still to be extracted.
    """
    for array in job.arrays:
        made = read_made(array.paths)
        if made and torch.device(made["device"]).type == job.device.type:
            return int(made["batch_size"])
    return fastest_batch_size(job, job.taps_of(job.arrays)) if n_images >= PROBE_FROM_IMAGES else DEFAULT


def fastest_batch_size(job: Job, taps: Sequence[str]) -> int:
    """Doubles the batch while that gives 5 % more images per second and fits; images of noise, real sizes."""
    side = job.geometry.image_px
    best, best_rate, size = 1, 0.0, FIRST
    while size <= LARGEST:
        pixels = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8)
        try:
            rate = size / _forward_s(job, pixels, taps)
        except torch.OutOfMemoryError:
            free_memory(job.device)
            break
        if rate < WORTH * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    free_memory(job.device)
    return best


def _forward_s(job: Job, pixels: torch.Tensor, taps: Sequence[str]) -> float:
    """Seconds of the second pass: the first also pays for choosing kernels."""
    for _ in range(2):
        start = time.perf_counter()
        tokens = job.forward(pixels, taps)
        for out in tokens.values():
            out.grid[..., :1].cpu()  # waits for the device
    return time.perf_counter() - start

"""Measures the ranges that int8 storage needs, on a seeded sample of the image set, before the first unit is written.

In: a job whose network is loaded.   Out: the scales of those int8 arrays that have none.
Called by `extract`. Two passes over the sample that keep no tokens: the first finds each channel's range, the second
what rounding to it costs, which goes into the scales' attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loffta.errors import DamageFound, TooManyBadImages
from loffta.extraction.forward import Job
from loffta.images.batches import ImageStream
from loffta.images.sources import ImageSource
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache, CachedArray
from loffta.store.quantise import dequantise, fit_scales, quantise
from loffta.store.scales import Scales, create_scales, has_scales
from loffta.store.writer import not_finite

SAMPLE_IMAGES = 256
SEED = 0


def calibrate(cache: Cache, job: Job, source: ImageSource, pool: Executor, stop: StopFlag) -> None:
    """Makes the scales that any of the job's arrays lacks; another process may make them first, and its scales stay.

    Args:
        pool: threads that decode.
    Raises:
        Stopped: a signal came; nothing is kept.
        TooManyBadImages: no image of the sample can be decoded.
        LofftaError: a feature is NaN or infinite; the tap and image are named.
        DamageFound: finished units were written with scales that are gone.
    """
    lacking = [array for array in job.arrays if array.layout.dtype == np.int8 and not has_scales(array.paths)]
    for array in lacking:
        if array.ledger.units and not has_scales(array.paths):  # asked again: another process may just have begun
            raise DamageFound(
                "the scales of an int8 array with finished units are gone",
                where=array.paths.scales,
                remedy="run `loffta verify CACHE --repair`: it makes new ones and extracts the array anew",
            )
    if not lacking:
        return
    rows = sample_rows(len(cache.table), SAMPLE_IMAGES, SEED)

    def passes() -> Iterator[tuple[list[str], Sequence[Tensor]]]:
        size = job.batch_size
        for images in ImageStream(source, cache.table, [job.geometry], pool, [(0, rows)], n_ahead=2 * size):
            for batch in images.batches(size):
                stop.check("measuring the ranges for int8; nothing is kept of it")
                names = [cache.table.keys[row] for row in batch.rows]
                for part, tensors in job.tokens(batch.pixels[job.geometry], lacking, names):
                    yield names[part], tensors

    ranges = _find_ranges(lacking, passes())
    if ranges is None:
        raise TooManyBadImages(
            f"none of the {len(rows)} images sampled for int8 can be decoded",
            where=cache.paths.root,
            remedy="mend or remove the images and extract into a new cache",
        )
    scales = [fit_scales(low, high) for low, high in ranges]
    costs = _measure(scales, passes())
    for array, fitted, cost in zip(lacking, scales, costs, strict=True):
        create_scales(array.paths, array.layout, fitted, {"seed": SEED, "rows": rows, **cost})


def sample_rows(n_rows: int, n_sample: int, seed: int) -> list[int]:
    """One random row from each of `n_sample` equal stretches of the image set; all rows where it has no more."""
    if n_rows <= n_sample:
        return list(range(n_rows))
    bounds = np.linspace(0, n_rows, n_sample + 1).astype(np.int64)
    return [int(row) for row in np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])]


def _find_ranges(
    arrays: Sequence[CachedArray], batches: Iterator[tuple[list[str], Sequence[Tensor]]]
) -> list[tuple[Tensor, Tensor]] | None:
    """Lowest and highest value of each channel, [L, D] on the CPU, per array; None where there was no image."""
    ranges: list[tuple[Tensor, Tensor]] | None = None
    for keys, tensors in batches:
        for array, tokens in zip(arrays, tensors, strict=True):
            _refuse_non_finite(array, tokens, keys)
        flat = [tokens.float().flatten(2, -2) for tokens in tensors]
        here = [(cells.amin(dim=(0, 2)).cpu(), cells.amax(dim=(0, 2)).cpu()) for cells in flat]
        pairs = zip(ranges or here, here, strict=True)
        ranges = [(torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])) for a, b in pairs]
    return ranges


def _measure(scales: Sequence[Scales], batches: Iterator[tuple[list[str], Sequence[Tensor]]]) -> list[dict[str, Any]]:
    """Per array and tap: ||x - decoded(x)|| / ||x||, and the share of values that did not fit."""
    sums = [torch.zeros(4, len(fitted.scale), dtype=torch.float64) for fitted in scales]
    for _, tensors in batches:
        for fitted, tokens, total in zip(scales, tensors, sums, strict=True):
            codes = quantise(tokens, fitted)
            flat = tokens.float().flatten(2)
            error = dequantise(codes.values, fitted).flatten(2) - flat
            parts = [
                error.square().sum(dim=(0, 2)),
                flat.square().sum(dim=(0, 2)),
                codes.saturated.sum(dim=0),
                torch.full((flat.shape[1],), flat.shape[0] * flat.shape[2]),
            ]
            total += torch.stack([part.cpu().double() for part in parts])
    return [
        {
            "relative_rms": (error / power.clamp(min=torch.finfo(torch.float64).tiny)).sqrt().tolist(),
            "saturated": (saturated / count).tolist(),
        }
        for error, power, saturated, count in sums
    ]


def _refuse_non_finite(array: CachedArray, tokens: Tensor, keys: Sequence[str]) -> None:
    finite = tokens.flatten(2).isfinite().all(dim=2).cpu()
    if not finite.all():
        image, tap = (~finite).nonzero()[0].tolist()
        raise not_finite(array.taps[tap], keys[image], where=array.paths.name)

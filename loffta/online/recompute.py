"""Features as the backbone gives them now, beside those of the cache.

In: an open cache and its images.   Out: how far fresh features are from stored ones. Imported by `loffta verify
--recompute` when it is asked for: it needs images, backbones and stores at once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.extraction.forward import Job
from loffta.extraction.jobs import Load, reopen
from loffta.extraction.repair import request_config
from loffta.images.batches import ImageStream, decoding_threads
from loffta.images.sources import ImageSource
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.store.cache import Cache, CachedArray, Store
from loffta.store.quantise import dequantise
from loffta.store.zarr_reader import open_array

# Largest relative RMS error of one tap of one image that still counts as the same features. Both sides are rounded, so
# on one machine most images differ in no bit; another batch size, thread count or device changes the last bits of a
# float32 network (1e-6 to 1e-4), of which float16 may round some the other way (one step is 1e-3 of a value), int8
# some by one of its steps (about 1e-2). Reasoned from rounding; not yet measured across devices.
TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "int8": 2e-2}
AUTOCAST_TOLERANCE = {"fp32": 0.0, "fp16": 5e-3, "bf16": 2e-2}  # by the recipe's precision, where that is coarser
_AHEAD = 8  # images that are decoded ahead
_PEAK = 10.0  # one value may be off by so many times the tolerance, relative to the tap's largest value


@dataclass(frozen=True)
class Comparison:
    """One tap of one array over all images that were compared; errors are those of the worst image."""

    array: str
    tap: str
    images: int
    worst: str  # key of the worst image
    relative_rms: float
    max_abs: float
    tolerance: float  # of relative_rms
    agrees: bool
    what: str = ""  # an image that cannot be decoded any more


class Distance(NamedTuple):
    """Errors of one tap of one image; infinite where a value is no number, or where all stored values are 0."""

    relative_rms: float
    max_abs: float
    badness: float  # what is compared with the tolerance


def recompute(cache: Cache, source: ImageSource, load: Load, n_images: int) -> Iterator[Comparison]:
    """Decodes random finished images of every store anew, runs its backbone and compares.

    Args:
        n_images: of each store; all where it has fewer.
    Raises:
        LofftaError: the weights are not those of the store; the differing fields are given.
    """
    for store in cache.stores():
        rows = choose_rows(store, n_images, seed=0, without=cache.table.gone)
        if len(rows):
            job = reopen(cache, store, request_config(cache, store), load)
            yield from _compare_store(cache, source, job, rows)


def choose_rows(store: Store, n_images: int, seed: int, *, without: Collection[int] = ()) -> NDArray[np.int64]:
    """Random rows that have data in every array of the store, in order; none of `without`."""
    if not store.arrays:
        return np.empty(0, np.int64)
    n_rows = min(array.layout.shape[0] for array in store.arrays)
    ready = np.logical_and.reduce([array.ledger.ready[:n_rows] for array in store.arrays])
    ready[[row for row in without if row < n_rows]] = False
    rows = np.flatnonzero(ready)
    chosen = np.random.default_rng(seed).choice(rows, min(n_images, len(rows)), replace=False)
    return np.sort(chosen)


def _compare_store(cache: Cache, source: ImageSource, job: Job, rows: NDArray[np.int64]) -> Iterator[Comparison]:
    readers = [open_array(array.paths) for array in job.arrays]
    errors: dict[tuple[str, str], list[tuple[Distance, str]]] = {}
    gone: list[tuple[str, str]] = []
    keys = cache.table.keys
    title = f"verify --recompute {job.store.name}"
    with Progress(title, len(rows), "images") as progress, decoding_threads(process.available_cpus()) as pool:
        units = [(row, [row]) for row in rows.tolist()]  # one by one: what is bad is told apart
        for images in ImageStream(source, cache.table, [job.geometry], pool, units, n_ahead=_AHEAD):
            key = keys[images.unit]
            batch = next(images.batches(1), None)
            if batch is None:
                gone.append((key, images.statuses[0].reason))
                continue
            ((_, found),) = job.run(batch.pixels[job.geometry], job.arrays, [key])
            for array, reader, fresh in zip(job.arrays, readers, found, strict=True):
                pair = [
                    _decode(array, values) for values in (reader.read(np.array([images.unit])), fresh.fetch().values)
                ]
                for i, tap in enumerate(array.taps):
                    errors.setdefault((array.paths.name, tap), []).append((distance(pair[0][i], pair[1][i]), key))
            progress.advance(1)
    for key, reason in gone:
        what = f"cannot be used any more: {reason}"
        yield Comparison(job.store.name, "every tap", 1, key, math.inf, math.inf, 0.0, False, what)
    for array in job.arrays:
        tolerance = tolerance_of(job.store, array)
        for tap in array.taps:
            measured = errors.get((array.paths.name, tap), [])
            if measured:
                apart, key = max(measured, key=lambda pair: pair[0].badness)
                agrees = apart.badness <= tolerance
                yield Comparison(
                    array.paths.name, tap, len(measured), key, apart.relative_rms, apart.max_abs, tolerance, agrees
                )


def distance(stored: NDArray[Any], fresh: NDArray[Any]) -> Distance:
    """How far one tap of one image, [...] each, is from its stored values."""
    a, b = stored.astype(np.float64), fresh.astype(np.float64)
    error = np.abs(a - b)
    if not np.isfinite(error).all():
        return Distance(math.inf, math.inf, math.inf)
    if not error.any():
        return Distance(0.0, 0.0, 0.0)
    largest, peak = float(np.abs(a).max()), float(error.max())
    if not largest:  # an empty tap that is not empty any more
        return Distance(math.inf, peak, math.inf)
    relative_rms = math.sqrt(float((error**2).mean()) / float((a**2).mean()))
    return Distance(relative_rms, peak, max(relative_rms, peak / largest / _PEAK))


def tolerance_of(store: Store, array: CachedArray) -> float:
    """What the storage type and the precision of the network allow."""
    return max(TOLERANCE[array.layout.dtype.name], AUTOCAST_TOLERANCE[store.info.recipe.get("precision", "fp32")])


def _decode(array: CachedArray, values: NDArray[Any]) -> NDArray[Any]:
    """One image's taps, [L, ...], from a batch of it as stored."""
    return values[0] if array.scales is None else dequantise(torch.from_numpy(values), array.scales)[0].numpy()

"""What would take less room, with about how much: shown by `loffta plan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loffta.extraction.forward import Job
from loffta.store.cache import CachedArray

BIG_SET, BIG_UNIT = 500_000, 1024  # above half a million images, 256 a unit makes too many files


def advise(jobs: Sequence[Job], n_images: int, unit_images: int) -> Iterator[str]:
    """One line per way to take less; sizes are of the data alone, for all `n_images`."""
    arrays = [(job, array) for job in jobs for array in job.arrays]
    grids = [(job, array) for job, array in arrays if array.kind == "grid"]
    others = sum(_image_bytes(array) for _, array in arrays if array.kind != "grid")
    grid_bytes = sum(_image_bytes(array) for _, array in grids)
    if grids:
        pooled = sum(_pooled_bytes(job, array) for job, array in grids)
        yield f"--kinds mean,prefix: {_about(pooled * n_images)}; no head that needs the grid can be trained then"
        if all(array.layout.dtype.itemsize > 1 for _, array in grids):
            small = sum(_image_bytes(array) // array.layout.dtype.itemsize for _, array in arrays)
            yield f"--dtype int8: {_about(small * n_images)}"
        if all(min(array.layout.item_shape[1:3]) > 1 for _, array in grids):
            yield f"--pool 2x2: {_about((grid_bytes / 4 + others) * n_images)}"
    n_taps = sum(len(array.taps) for _, array in grids)
    if n_taps > len(grids):
        least = sum(_image_bytes(array) // len(array.taps) for _, array in arrays)
        yield f"fewer --taps: {_about(least * n_images)} with one of each array"
    if n_images > BIG_SET and unit_images < BIG_UNIT:
        yield f"--unit-images {BIG_UNIT} for a new cache: a file where there are {BIG_UNIT // unit_images} now"


def _image_bytes(array: CachedArray) -> int:
    return array.layout.stored_chunk_bytes * array.layout.chunks_per_image


def _pooled_bytes(job: Job, array: CachedArray) -> int:
    """Mean and prefix tokens of one image, of the taps of a grid array."""
    n_prefix = {spec.tap: spec.n_prefix for spec in job.store.info.taps}
    n_tokens = sum(1 + n_prefix[tap] for tap in array.taps)
    return n_tokens * array.layout.item_shape[-1] * array.layout.dtype.itemsize


def _about(n_bytes: float | int) -> str:
    return f"about {n_bytes / 1e9:,.3g} GB"

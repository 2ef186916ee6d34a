"""Times the parts of a training step one by one: the read, cold and warm, and what a batch then goes through.

In: a Job: features of a cache, and a head on a device.   Out: seconds a batch of each part. Called by `bench`.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from crc32c import crc32c
from numpy.typing import NDArray
from torch import Tensor

from loffta import augment
from loffta.features import Feature
from loffta.feed.batches import COLD_THREADS, WARM_THREADS
from loffta.feed.sources import StreamedArray, group_by_array
from loffta.heads import Head
from loffta.heads.recipe import Recipe
from loffta.precision import autocast
from loffta.store.reader import ArrayReader

_MIN_ROUNDS = 2  # the first one warms up


@dataclass(frozen=True)
class Job:
    """What is measured: features of one cache, and a head on a device."""

    features: list[Feature]
    rows: NDArray[np.int64]
    head: Head
    recipe: Recipe
    optimizer: torch.optim.Optimizer
    device: torch.device
    batch_size: int
    augmentation: augment.AugmentConfig | None = None


def time_parts(job: Job, seconds: float) -> dict[str, float]:
    """Seconds a batch of each part, the median over random batches."""
    rng = np.random.default_rng(0)
    readers = [ArrayReader(job.features[m[0]].array.paths, check="never") for m in group_by_array(job.features)]
    sources = [
        StreamedArray(reader, [job.features[i] for i in members], members, job.rows)
        for reader, members in zip(readers, group_by_array(job.features), strict=True)
    ]
    buffers = [source.empty(job.batch_size) for source in sources]
    found: dict[str, list[float]] = {}
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(COLD_THREADS) as pool:
        while time.monotonic() < end or len(found.get("head", ())) < _MIN_ROUNDS:
            places = np.sort(rng.permutation(len(job.rows))[: job.batch_size])
            for reader, source in zip(readers, sources, strict=True):
                evict(reader, job.rows[places], source.taps)

            def read(n_threads: int, places: NDArray[np.int64] = places) -> None:
                for source, buffer in zip(sources, buffers, strict=True):
                    source.fill(places, buffer, pool, n_threads)

            taken = {
                "disk": _timed(lambda: read(COLD_THREADS)),
                "page cache": _timed(lambda: read(WARM_THREADS)),
                "crc32c": _timed(lambda: _checksum(buffers, readers)),
            }
            for name, taken_s in (taken | _time_step_parts(job, sources, buffers)).items():
                found.setdefault(name, []).append(taken_s)
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def _time_step_parts(job: Job, sources: Sequence[StreamedArray], buffers: Sequence[NDArray[Any]]) -> dict[str, float]:
    """What a batch goes through after its read; each part waits for the device."""
    state: dict[str, Any] = {}

    def reduce() -> None:
        pairs = [
            pair
            for source, raw in zip(sources, state["raw"], strict=True)
            for pair in zip(source.members, source.finish(raw), strict=True)
        ]
        state["features"] = tuple(tensor for _, tensor in sorted(pairs, key=lambda pair: pair[0]))

    copy = _timed(lambda: state.update(raw=[torch.from_numpy(buffer).to(job.device) for buffer in buffers]), job.device)
    actions: dict[str, Callable[[], None]] = {
        "reduce": reduce,
        "augment": lambda: state.update(features=augmented(job, state["features"])),
        "prepare": lambda: state.update(prepared=job.head.prepare(state["features"])),
        "head": lambda: train_step(job, state["prepared"]),
    }
    if job.augmentation is None:
        del actions["augment"]
    found = {name: _timed(action, job.device) for name, action in actions.items()}
    return found if job.device.type == "cpu" else {"copy": copy, **found}  # on the CPU there is nothing to copy


def augmented(job: Job, features: Sequence[Tensor]) -> Sequence[Tensor]:
    """The features of a batch as a head in training gets them."""
    if job.augmentation is None:
        return features
    rng = torch.Generator(job.device).manual_seed(0)
    drawn = augment.draw(job.augmentation, len(features[0]), rng, job.device)
    return augment.apply(features, [feature.spec for feature in job.features], drawn)


def train_step(job: Job, prepared: Any) -> None:
    """Forward, backward and optimiser, towards zero outputs: what the labels are does not change the time."""
    with autocast(job.recipe, job.device):
        outputs = _tensors(job.head(prepared, torch.Generator(job.device).manual_seed(0)))
        loss = torch.stack([output.float().square().mean() for output in outputs if output.requires_grad]).sum()
    job.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    job.optimizer.step()


def _tensors(outputs: Any) -> list[Tensor]:
    """What a head gave: a tensor, or tensors in lists or mappings."""
    if isinstance(outputs, Tensor):
        return [outputs]
    items = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for item in items for tensor in _tensors(item)]


def evict(reader: ArrayReader, rows: NDArray[np.int64], taps: Sequence[int] | None) -> None:
    """Drops the chunks of some images from the page cache, where the system can; other pages stay.

    Network file systems may keep a copy of their own.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    layout = reader.layout
    chunks = list(range(layout.chunks_per_image)) if taps is None else list(taps)
    units = rows // layout.unit_images
    for unit in np.unique(units).tolist():
        offsets = reader.shard_index(unit)[:, 0].reshape(layout.unit_images, -1)
        fd = os.open(reader.paths.shard(unit, layout.ndim), os.O_RDONLY)
        try:
            for offset in offsets[rows[units == unit] % layout.unit_images][:, chunks].reshape(-1).tolist():
                os.posix_fadvise(fd, offset, layout.stored_chunk_bytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _checksum(buffers: Sequence[NDArray[Any]], readers: Sequence[ArrayReader]) -> None:
    """What the first touch of these chunks takes beside their read."""
    for buffer, reader in zip(buffers, readers, strict=True):
        data, size = buffer.reshape(-1).view(np.uint8).data, reader.layout.chunk_bytes
        for first in range(0, len(data), size):
            crc32c(data[first : first + size])


def _timed(action: Callable[[], Any], device: torch.device | None = None) -> float:
    start = time.perf_counter()
    action()
    if device is not None:
        wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

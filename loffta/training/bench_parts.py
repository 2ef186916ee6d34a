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
from functools import partial
from typing import Any

import numpy as np
import torch
from crc32c import crc32c
from numpy.typing import NDArray
from torch import Tensor

from loffta import augment
from loffta.dataset.features import Feature
from loffta.feed.batches import COLD_THREADS, WARM_THREADS
from loffta.feed.modes import Placement, bytes_per_image
from loffta.feed.sources import Source, StreamedArray, group_by_array, make_sources, pick_taps, read_bytes
from loffta.heads import Head
from loffta.heads.precision import autocast
from loffta.heads.recipe import Recipe
from loffta.store.near import open_nearest
from loffta.store.zarr_reader import AnyReader, ZarrReader, open_array

_MIN_ROUNDS = 2  # the first one warms up
_SAMPLE_BATCHES = 4  # that are held in memory or on the device while their parts are timed


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
    placements: Sequence[Placement] = ()  # of the features


def time_parts(job: Job, seconds: float, *, cold: bool) -> dict[str, float]:
    """Seconds a batch of each part, the median over random batches; what the feed does not do in a training is absent.

    Features that are held in memory are read, pooled and put there once, in the first epoch; then they are gathered.

    Args:
        cold: what is streamed comes from the disk in every epoch.
    """
    rng = np.random.default_rng(0)
    sample = np.sort(rng.permutation(job.rows)[: _SAMPLE_BATCHES * job.batch_size])
    readers = [open_array(job.features[m[0]].array.paths, check="never") for m in group_by_array(job.features)]
    arrays = [
        StreamedArray(reader, [job.features[i] for i in members], members, sample)
        for reader, members in zip(readers, group_by_array(job.features), strict=True)
    ]
    stored = [array.empty(job.batch_size) for array in arrays]
    sizes = [job.features[members[0]].array.layout.chunk_bytes for members in group_by_array(job.features)]
    found: dict[str, list[float]] = {}
    with ThreadPoolExecutor(COLD_THREADS) as pool:
        sources = make_sources(job.features, job.placements, sample, job.device, pool, WARM_THREADS)
        buffers = [source.empty(job.batch_size) for source in sources]
        pairs = list(zip(sources, buffers, strict=True))
        streamed = [(source, buffer) for source, buffer in pairs if isinstance(source, StreamedArray)]
        held = [(source, buffer) for source, buffer in pairs if not isinstance(source, StreamedArray)]
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(found.get("head", ())) < _MIN_ROUNDS:
            places = np.sort(rng.permutation(len(sample))[: job.batch_size])
            for reader, array in zip(readers, arrays, strict=True):
                evict(reader, sample[places], array.taps)
            actions: dict[str, Callable[[], None]] = {
                "disk": partial(_fill, list(zip(arrays, stored, strict=True)), places, pool, COLD_THREADS),
                "crc32c": partial(_checksum, stored, sizes),
            }
            if any(job.features[i].is_pooled for source, _ in held for i in source.members):
                actions["hold"] = partial(_hold, job, arrays, stored)
            if streamed:  # the disk has been read: these are in the page cache
                actions["page cache"] = partial(_fill, streamed, places, pool, WARM_THREADS)
            if held:
                actions["memory"] = partial(_fill, held, places, pool, WARM_THREADS)
            taken = {name: _timed(action, job.device) for name, action in actions.items()}
            for name, taken_s in (taken | _time_step_parts(job, sources, buffers)).items():
                found.setdefault(name, []).append(taken_s)
    if cold:
        found.pop("page cache", None)
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def bytes_moved(job: Job) -> dict[str, int]:
    """Bytes of a batch that each part carries, by its name; parts that compute are absent."""
    kept = [(f, p.mode) for f, p in zip(job.features, job.placements, strict=True)]
    streamed = read_bytes([feature for feature, mode in kept if mode == "stream"])
    in_host = bytes_per_image([feature for feature, mode in kept if mode == "host"])
    whole = read_bytes(job.features)
    per_image = {"disk": whole, "crc32c": whole, "page cache": streamed, "memory": in_host, "copy": streamed + in_host}
    return {name: n * job.batch_size for name, n in per_image.items() if n}


def _fill(
    pairs: Sequence[tuple[Source, NDArray[Any]]], places: NDArray[np.int64], pool: ThreadPoolExecutor, n_threads: int
) -> None:
    for source, buffer in pairs:
        source.fill(places, buffer, pool, n_threads)


def _hold(job: Job, arrays: Sequence[StreamedArray], stored: Sequence[NDArray[Any]]) -> None:
    """Pools what is held pooled, as the feed does when it is filled."""
    for array, buffer in zip(arrays, stored, strict=True):
        for i in array.members:
            feature = job.features[i]
            if feature.is_pooled and job.placements[i].mode != "stream":
                feature.reduce(pick_taps(torch.from_numpy(buffer), array.taps, feature).to(job.device))


def _time_step_parts(job: Job, sources: Sequence[Source], buffers: Sequence[NDArray[Any]]) -> dict[str, float]:
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


def evict(reader: AnyReader, rows: NDArray[np.int64], taps: Sequence[int] | None) -> None:
    """Drops the chunks of some images from the page cache, where the system can; other pages stay.

    Network file systems may keep a copy of their own.
    """
    if not hasattr(os, "posix_fadvise") or isinstance(reader, ZarrReader):
        return
    layout = reader.layout
    chunks = list(range(layout.chunks_per_image)) if taps is None else list(taps)
    units = rows // layout.unit_images
    for unit in np.unique(units).tolist():
        index = reader.shard_index(unit).reshape(layout.unit_images, -1, 2)
        fd, _ = open_nearest(reader.near, unit, reader.paths.shard(unit, layout.ndim))
        try:
            for offset, length in index[rows[units == unit] % layout.unit_images][:, chunks].reshape(-1, 2).tolist():
                os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _checksum(buffers: Sequence[NDArray[Any]], sizes: Sequence[int]) -> None:
    """What the first touch of these chunks, of so many bytes, takes beside their read."""
    for buffer, size in zip(buffers, sizes, strict=True):
        data = buffer.reshape(-1).view(np.uint8).data
        for first in range(0, len(data), size):
            crc32c(data[first : first + size])


def _timed(action: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

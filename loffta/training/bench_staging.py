"""Measures whether copies on the node's own disk would pay: `loffta bench --stage-dir`.

In: a Job, and a folder.   Out: rates of both places, and after how many epochs the copy has paid. A sample of the
units is copied there, read from both places in turn, and deleted. Called by `bench`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loffta.dataset.features import Feature
from loffta.errors import LofftaError
from loffta.feed.batches import COLD_THREADS
from loffta.feed.sources import StreamedArray, group_by_array, read_bytes
from loffta.feed.staged import Stage, check_room
from loffta.files.durable import delete_part, make_folder, part_name
from loffta.machine.progress import silenced
from loffta.store.staging import open_folder
from loffta.store.zarr_reader import AnyReader, open_array
from loffta.training.bench_parts import Job, evict
from loffta.words import human_size, human_time, plural

SAMPLE_BYTES = 512 << 20
_MIN_ROUNDS = 2  # the first one warms up
_SHARED = "a copy pays where several jobs of this node share it"


class Rates(NamedTuple):
    """Bytes a second."""

    copy: float  # from the cache to the folder
    cache: float
    near: float  # from the folder


def bench_staging(
    job: Job, word: str, seconds: float, *, computes_s: float, streams: bool, cold: bool
) -> dict[str, Any]:
    """What copies in the folder `word` are worth to a training.

    Args:
        computes_s: what an epoch takes beside its reads.
        streams, cold: as `bench.advise` has them.
    """
    needed = read_bytes(job.features) * len(job.rows)
    found: dict[str, Any] = {"folder": word, "bytes": needed}
    try:
        root = open_folder(word)
        check_room(root, needed, 0)
        rates = _measure(job, root, seconds)
    except LofftaError as error:
        return found | {"epochs": None, "advice": f"{word or '--stage-dir'} cannot be used: {error.what}"}
    epochs, advice = judge(needed, rates, computes_s=computes_s, streams=streams, cold=cold)
    named = {f"{name}_gb_per_s": rate / 1e9 for name, rate in rates._asdict().items()}
    return found | named | {"epochs": epochs, "advice": advice}


def judge(needed: int, rates: Rates, *, computes_s: float, streams: bool, cold: bool) -> tuple[int | None, str]:
    """After how many epochs the copy has paid, None where never; and why, in words.

    Args:
        needed: bytes that an epoch reads.
    """
    copy_s, cache_s, near_s = (needed / rate for rate in rates)
    costs = f"a copy of {human_size(needed)} takes {human_time(copy_s)}"
    if not streams:
        return None, f"the features are read once and held in memory, and {costs}: {_SHARED}"
    if not cold:
        return None, f"from the second epoch on the page cache has it all, and {costs}: {_SHARED}"
    gain = max(cache_s, computes_s) - max(near_s, computes_s)
    if gain > 0:
        epochs = math.ceil(copy_s / gain)
        after, before = (human_time(max(taken_s, computes_s)) for taken_s in (near_s, cache_s))
        won = f"an epoch then takes {after} instead of {before}"
        return epochs, f"{costs}; {won}: it has paid after {epochs} {plural(epochs, 'epoch')}"
    if cache_s > near_s:
        return None, f"the head takes longer than the reads from the cache, and {costs}: it does not pay"
    return None, f"the folder is no faster than the cache, and {costs}: it does not pay"


def _measure(job: Job, root: Path, seconds: float) -> Rates:
    """Copies some units and reads them from both places in turn, dropped from the page cache each time."""
    rng = np.random.default_rng(2)
    rows = _some_units(job, rng)
    n_bytes = read_bytes(job.features) * len(rows)
    part = part_name(root / "bench")  # swept like other leftovers
    make_folder(part)
    try:
        for reader, array in _arrays(job.features, rows):
            evict(reader, rows, array.taps)
        stage = Stage(str(part))
        start = time.perf_counter()
        with silenced():
            stage.bring([(job.features, rows)])
        copy_s = time.perf_counter() - start
        if (why := stage.told["staging"]["given_up"]) is not None:
            raise LofftaError(why, where=root, remedy="name another folder")
        places = [_arrays(features, rows) for features in (job.features, stage.use(job.features))]
        taken: list[list[float]] = [[], []]
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(COLD_THREADS) as pool:
            while time.monotonic() < end or len(taken[1]) < _MIN_ROUNDS:
                batch = np.sort(rng.permutation(len(rows))[: job.batch_size])
                for arrays, times in zip(places, taken, strict=True):
                    times.append(_read(arrays, rows, batch, pool))
    finally:
        delete_part(part)
    size = read_bytes(job.features) * min(job.batch_size, len(rows))
    cache, near = (size / statistics.median(times[1:]) for times in taken)
    return Rates(n_bytes / copy_s, cache, near)


def _some_units(job: Job, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of whole units, in random order of these, up to SAMPLE_BYTES; of one unit at least."""
    units = job.rows // job.features[0].array.layout.unit_images
    n_rows, chosen = max(1, SAMPLE_BYTES // read_bytes(job.features)), []
    for unit in rng.permutation(np.unique(units)):
        chosen.append(unit)
        if np.isin(units, chosen).sum() >= n_rows:
            break
    return job.rows[np.isin(units, chosen)]


def _arrays(features: Sequence[Feature], rows: NDArray[np.int64]) -> list[tuple[AnyReader, StreamedArray]]:
    found = []
    for members in group_by_array(features):
        first = features[members[0]]
        reader = open_array(first.array.paths, check="never", near=first.near)
        found.append((reader, StreamedArray(reader, [features[i] for i in members], members, rows)))
    return found


def _read(
    arrays: Sequence[tuple[AnyReader, StreamedArray]],
    rows: NDArray[np.int64],
    batch: NDArray[np.int64],
    pool: ThreadPoolExecutor,
) -> float:
    """Seconds that a batch takes from the disk."""
    buffers = [array.empty(len(batch)) for _, array in arrays]
    for buffer in buffers:
        buffer.fill(0)  # its pages are there
    for reader, array in arrays:
        evict(reader, rows[batch], array.taps)
    start = time.perf_counter()
    for (_, array), buffer in zip(arrays, buffers, strict=True):
        array.fill(batch, buffer, pool, COLD_THREADS)
    return time.perf_counter() - start

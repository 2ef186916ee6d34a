"""What an extraction will take before it is begun: bytes, files, hours, and when the cache pays for itself.

In: the same ExtractConfig as `extract`.   Out: a Plan. Nothing is written near the cache: the extraction is begun in a
temporary folder that holds the cache's metadata and no data, and its first batches run without being stored.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loffta.config import ExtractConfig
from loffta.errors import LofftaError
from loffta.extraction.advice import advise
from loffta.extraction.batch_size import set_batch_sizes
from loffta.extraction.begin import Begun, backbone_loader, begin, settle
from loffta.extraction.forward import Job
from loffta.extraction.jobs import Load
from loffta.extraction.target_plan import FileWork, file_work
from loffta.images.batches import ImageStream, PixelBatch, decoding_threads
from loffta.images.sources import ImageSource, open_source
from loffta.machine import process
from loffta.machine.progress import say
from loffta.machine.quota import Quota, Room, free_room, user_quota
from loffta.store.cache import CachedArray
from loffta.store.labels import SOURCE
from loffta.store.metadata import ArrayLayout
from loffta.store.paths import TARGETS, CachePaths
from loffta.store.space import Work, missing_work, shard_bytes, shortages

SAMPLE_BATCHES = 3  # timed where --sample says nothing
_AHEAD = 2  # batches that are decoded ahead of the network, as in an extraction; they are not timed
ASSUMED_READ = 500e6  # bytes/s, where there is nothing on the file system to measure with
_READ_BYTES, _READ_AT_LEAST, _READ_BLOCK = 256 << 20, 16 << 20, 4 << 20


@dataclass(frozen=True)
class ArrayPlan:
    """One array of one store."""

    store: str  # "targets" for thumbnails and dense targets
    kind: str
    taps: tuple[str, ...]
    shape: tuple[int, ...]  # of one image
    dtype: str
    units_missing: int
    images_missing: int
    shard_bytes: int  # missing ones; exact, if no image is bad
    done_bytes: int  # to about a percent
    files: int
    whole_bytes: int  # shards of all images asked for, missing or not


@dataclass(frozen=True)
class Timing:
    """Medians over the batches of a sample of the set's own images."""

    images: int  # timed
    batches: int
    warmed_up: bool  # a first batch was left out
    image_s: float  # seconds an image: decoding, networks and the cast to the storage type, overlapped as in extract
    forward_s: float  # of these, networks and cast
    device: str
    batch_size: int


@dataclass(frozen=True)
class BreakEven:
    """Epochs after which a cache has cost less than running the networks in every epoch."""

    online_epoch_s: float  # at least: the networks alone
    cached_epoch_s: float  # at least: reading every byte once
    read_rate: float  # bytes/s
    read_measured: bool  # else assumed
    epochs: float | None  # at most; None: reading takes as long as computing


@dataclass(frozen=True)
class Plan:
    """All that `loffta plan` tells."""

    cache: Path
    source: str
    exists: bool
    images: int  # asked for
    images_missing: int  # lacking from at least one array
    unit_images: int
    units: int
    arrays: tuple[ArrayPlan, ...]
    metadata_bytes: int
    metadata_files: int
    room: Room
    quota: Quota | None
    shortages: tuple[str, ...]
    timing: Timing | None
    extract_s: float | None  # for what is missing; writing is assumed to keep up
    break_even: BreakEven | None
    advice: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """All that will be written."""
        return sum(a.shard_bytes + a.done_bytes for a in self.arrays) + self.metadata_bytes

    @property
    def files(self) -> int:
        """All files that will be made."""
        return sum(a.files for a in self.arrays) + self.metadata_files


def run(config: ExtractConfig, *, sample: int | None = None) -> Plan:
    """Plans an extraction with timm's backbones; see make_plan."""
    process.cap_threads()
    config = settle(config)
    return make_plan(config, open_source(config.source), backbone_loader(config.device), sample=sample)


def make_plan(config: ExtractConfig, source: ImageSource, load: Load, *, sample: int | None = None) -> Plan:
    """Counts what is missing and times a sample.

    Args:
        sample: images to time, rounded up to whole batches; 0 times nothing, None takes three batches.
    Raises:
        LofftaError: what `extract` would refuse before its first unit.
    """
    root = config.cache
    with _shadow(root) as shadow:
        begun = begin(config.model_copy(update={"cache": shadow}), source.listing(), load, read=source.read)
        if (said := CachePaths(shadow).label_set(SOURCE)).exists() and not said.is_symlink():
            say(f"no labels were written: `loffta plan` leaves {root} as it is, `loffta extract` brings it up to date")
        work = missing_work(begun.all_arrays, begun.asked)
        files = file_work(begun.cache, begun.dense, source, begun.asked)
        timing = _time_sample(begun, work, source, config.batch_size, sample)
        made = [path for path in _plain_files(shadow) if not (root / path.relative_to(shadow)).exists()]
        metadata_bytes = sum(path.stat().st_size for path in made)
    n_images = begun.n_images
    arrays = (*(_plan_array(begun, w) for w in work), *map(_plan_files, files))
    lacking = {unit for w in work for unit in w.units} | {unit for w in files for unit in w.units}
    missing = sum(len(begun.asked[unit]) for unit in lacking)
    room, quota = free_room(root), user_quota(root)
    n_bytes = sum(a.shard_bytes + a.done_bytes for a in arrays) + metadata_bytes
    n_files = sum(a.files for a in arrays) + len(made)
    timed = {array.store for array in arrays if array.units_missing} - {TARGETS}
    feature_bytes = sum(array.whole_bytes for array in arrays if array.store in timed)
    return Plan(
        cache=root,
        source=config.source,
        exists=CachePaths(root).config.exists(),
        images=n_images,
        images_missing=missing,
        unit_images=begun.cache.unit_images,
        units=len(begun.asked),
        arrays=arrays,
        metadata_bytes=metadata_bytes,
        metadata_files=len(made),
        room=room,
        quota=quota,
        shortages=tuple(shortages(n_bytes, n_files, room, quota)) if missing else (),
        timing=timing,
        extract_s=timing.image_s * missing if timing else None,
        break_even=_break_even(timing, n_images, feature_bytes, root) if timing else None,
        advice=tuple(advise(begun.jobs, n_images, begun.cache.unit_images)) if missing else (),
    )


@contextmanager
def _shadow(root: Path) -> Iterator[Path]:
    """A temporary cache with a copy of the metadata, and a link in place of every other file: what is done is seen.

    Whatever is begun in it replaces links, and never writes through one. Errors name the real cache.
    """
    if not CachePaths(root).config.exists() and CachePaths(root).is_foreign():
        raise LofftaError("this folder holds something else", where=root, remedy="choose an empty or new folder")
    with tempfile.TemporaryDirectory(prefix="loffta-plan-") as temporary:
        shadow = Path(temporary) / "cache"
        whole = root.resolve()
        for folder, folders, files in os.walk(whole):
            copy = shadow / Path(folder).relative_to(whole)
            for name in (".", *folders):
                (copy / name).mkdir(parents=True, exist_ok=True)
            for file in files:  # there may be 100,000: no Path for each
                if file == "zarr.json" or copy == shadow:
                    shutil.copyfile(f"{folder}/{file}", copy / file)
                elif not file.endswith(".part"):
                    os.symlink(f"{folder}/{file}", f"{copy}/{file}")  # noqa: PTH211
        try:
            yield shadow
        except LofftaError as error:
            texts = [text.replace(str(shadow), str(root)) for text in (error.what, error.where, error.remedy)]
            raise type(error)(texts[0], where=texts[1], remedy=texts[2]) from error


def _plain_files(folder: Path) -> Iterator[Path]:
    """Every file below a folder that is no link."""
    for name, _, files in os.walk(folder):
        yield from (Path(name, file) for file in files if not Path(name, file).is_symlink())


def _plan_array(begun: Begun, work: Work) -> ArrayPlan:
    layout: ArrayLayout = work.array.layout
    owner, _, name = work.array.paths.name.partition("/")
    return ArrayPlan(
        store=owner,
        kind=name if owner == TARGETS else work.array.kind,
        taps=work.array.taps,
        shape=layout.item_shape,
        dtype=layout.dtype.name,
        units_missing=len(work.units),
        images_missing=work.images,
        shard_bytes=work.shard_bytes,
        done_bytes=work.done_bytes,
        files=work.files,
        whole_bytes=sum(shard_bytes(layout, len(rows)) for rows in begun.asked.values()),
    )


def _plan_files(work: FileWork) -> ArrayPlan:
    """Of dense targets that are no array; their files are their own done files."""
    kind = work.name.removeprefix(f"{TARGETS}/")
    sizes = {"shard_bytes": work.bytes, "done_bytes": 0, "files": len(work.units), "whole_bytes": work.whole_bytes}
    return ArrayPlan(TARGETS, kind, (), (), "parquet", len(work.units), work.images, **sizes)


# -- time


def _time_sample(
    begun: Begun, work: Sequence[Work], source: ImageSource, batch_size: int | None, sample: int | None
) -> Timing | None:
    """Runs batches of images from all over the set as `extract` does, unwritten; None where nothing is missing."""
    lacking = {w.array.paths.name for w in work if w.units}
    jobs = [(job, [array for array in job.arrays if array.paths.name in lacking]) for job in begun.jobs]
    jobs = [(job, arrays) for job, arrays in jobs if arrays]
    if not jobs or sample == 0:
        return None
    batch_size = set_batch_sizes(begun.jobs, batch_size, max(w.images for w in work))
    wanted = SAMPLE_BATCHES if sample is None else -(-sample // batch_size)
    asked = [row for rows in begun.asked.values() for row in rows]
    n_decoded = min(len(asked), (1 + wanted + _AHEAD) * batch_size)
    rows = asked[:: len(asked) // n_decoded][:n_decoded]
    turns: list[tuple[int, float, float]] = []  # images, seconds of the whole turn, of the networks in it
    with decoding_threads(process.available_cpus()) as pool:
        keys = begun.cache.table.keys
        stream = ImageStream(source, begun.cache.table, begun.sizes, pool, [(0, rows)], n_ahead=_AHEAD * batch_size)
        start = time.perf_counter()
        for batch in islice(next(iter(stream)).batches(batch_size), 1 + wanted):
            begin_s = time.perf_counter()
            _run_networks(jobs, batch, keys)
            now = time.perf_counter()
            turns.append((len(batch.rows), now - start, now - begin_s))
            start = now
    timed = turns[1:] or turns  # the first warms up: lazy initialisation, cold caches, decoding that is not ahead yet
    if not timed:
        return None  # no image of the sample could be read
    return Timing(
        images=sum(n for n, _, _ in timed),
        batches=len(timed),
        warmed_up=len(turns) > 1,
        image_s=statistics.median(whole / n for n, whole, _ in timed),
        forward_s=statistics.median(forward / n for n, _, forward in timed),
        device=str(begun.jobs[0].device),
        batch_size=batch_size,
    )


def _run_networks(jobs: Sequence[tuple[Job, Sequence[CachedArray]]], batch: PixelBatch, keys: Sequence[str]) -> None:
    for job, arrays in jobs:
        names = [keys[row] for row in batch.rows]
        for _, tensors in job.tokens(batch.pixels[job.geometry], arrays, names):
            for tokens in tensors:
                tokens.cpu()  # the device has finished


def _break_even(timing: Timing, n_images: int, feature_bytes: int, root: Path) -> BreakEven:
    measured = _read_rate(root)
    rate = measured or ASSUMED_READ
    online, cached = timing.forward_s * n_images, feature_bytes / rate
    saved = online - cached
    return BreakEven(
        online, cached, rate, measured is not None, timing.image_s * n_images / saved if saved > 0 else None
    )


def _read_rate(root: Path) -> float | None:
    """Bytes/s of reading shards that are there from one end to the other; None where there are too few to tell."""
    shards = sorted(CachePaths(root).stores.glob("*/*/c.*"))
    buffer = bytearray(_READ_BLOCK)
    n_bytes, seconds = 0, 0.0
    for path in shards:
        fd = os.open(path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, as far as advice is taken
            start = time.perf_counter()
            while n_bytes < _READ_BYTES and (done := os.readv(fd, [buffer])):
                n_bytes += done
            seconds += time.perf_counter() - start
        finally:
            os.close(fd)
        if n_bytes >= _READ_BYTES:
            break
    return n_bytes / seconds if n_bytes >= _READ_AT_LEAST else None

"""Stage one: runs frozen backbones over an image set and writes their tokens to the cache.

In: an ExtractConfig.   Out: finished units in the cache, and a summary. Called by `loffta extract`; a second call
continues, and does nothing (loads no model) when all is there.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from loffta import machine
from loffta.backbones import Backbone, TapTokens
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import TooManyBadImages
from loffta.images.batches import PixelBatch, UnitImages, decoding_threads
from loffta.images.decode import PixelGeometry
from loffta.images.sources import ImageSource, open_source
from loffta.jobs import Job, Load, choose_specs, prepare
from loffta.pooling import pool_mean
from loffta.progress import Progress
from loffta.space import check_room
from loffta.store.cache import MAX_THUMB_PX, Cache, CachedArray
from loffta.store.files import sweep_parts
from loffta.store.paths import THUMB, CachePaths
from loffta.store.purge import describe_missing, forget_missing
from loffta.store.table import ImageTable
from loffta.store.units import Share, count_units
from loffta.store.writer import Stored, UnitWriter, to_storage


@dataclass
class Report:
    """What one call did."""

    images: int = 0  # read and decoded by this call
    bad: int = 0  # quarantined ones in the cache
    units: int = 0  # written by this call
    seconds: float = 0.0
    stores: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Begun:
    """An extraction whose arrays exist, before its first unit."""

    cache: Cache
    thumbs: CachedArray
    jobs: list[Job]
    units: list[int]  # of this process's share
    n_rows: int  # images asked for

    @property
    def arrays(self) -> list[CachedArray]:
        """All that it writes to: thumbnails, then features."""
        return [self.thumbs, *(array for job in self.jobs for array in job.arrays)]


def run(config: ExtractConfig, stop: machine.StopFlag, *, only: Collection[int] | None = None) -> Report:
    """Extracts all that `config` asks for and the cache lacks, with timm's backbones.

    Args:
        only: units to look at; None: all of this process's share.
    """
    machine.cap_threads()
    device = machine.resolve_device(config.device)
    config = config.model_copy(update={"device": str(device)})  # done files say which it was, not `auto`
    return extract(config, open_source(config.source), timm_loader(device), stop, only=only)


def timm_loader(device: torch.device) -> Load:
    """Makes timm's backbones on a device."""
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions; the recipe says fp32 on every device

    def load(backbone: BackboneConfig) -> Backbone:
        from loffta.backbones.timm_backbone import load_timm

        return load_timm(backbone.name, weights=backbone.weights, image_px=backbone.image_px, device=str(device))

    return load


def extract(
    config: ExtractConfig,
    source: ImageSource,
    load: Load,
    stop: machine.StopFlag,
    *,
    only: Collection[int] | None = None,
) -> Report:
    """The driver: prepare a job per backbone, then unit by unit decode once and feed every job.

    Args:
        load: makes a backbone; called only when something of it has to be computed.
        only: units to look at; None: all of this process's share.
    Raises:
        Stopped: a signal came; finished units are kept.
        TooManyBadImages: over `max_bad_frac`; all good images are in the cache.
        LofftaError: another recipe under the same name, a changed image set, no space.
    """
    start = time.monotonic()
    listing = source.listing()  # before any model is loaded: a faulty table should not cost that wait
    begun = begin(config, listing, load, only=only)
    cache, thumbs, jobs, units = begun.cache, begun.thumbs, begun.jobs, begun.units
    if not config.ignore_space:
        check_room(cache, begun.arrays, units, config.limit)
    todo = [u for u in units if _lacking(cache, thumbs, jobs, u, config.limit)]
    report = Report()
    with Progress("extract", len(todo), "units") as progress, decoding_threads(machine.available_cpus()) as pool:
        for unit in todo:
            stop.check(f"extracting unit {unit}; finished units are kept")
            if _lacking(cache, thumbs, jobs, unit, config.limit):  # else another process has written it meanwhile
                rows = cache.rows_of_unit(unit, config.limit)
                images = UnitImages(source, cache.table.keys, rows, pixel_sizes(cache, jobs), pool)
                _extract_unit(cache, thumbs, jobs, unit, images, config, stop)
                report.units += 1
                report.images += len(rows)
            progress.advance(1)
    bad = cache.thumbs().ledger.bad
    report.bad, report.seconds = len(bad), time.monotonic() - start
    report.stores = [_describe(job) for job in jobs]
    asked = {row: reason for row, reason in bad.items() if row < begun.n_rows}
    _judge_bad(cache, asked, begun.n_rows, config.max_bad_frac)
    return report


def begin(config: ExtractConfig, listing: ImageTable, load: Load, *, only: Collection[int] | None = None) -> Begun:
    """Opens or makes the cache, its stores and arrays, and loads what is needed to fill them; writes no features.

    Args:
        listing: the image set as it is now.
        load: makes a backbone; called only when something of it has to be computed.
    Raises:
        LofftaError: another recipe under the same name, a changed image set.
    """
    load = functools.cache(load)
    if not CachePaths(config.cache).config.exists():  # what cannot be had or is misspelt leaves no empty cache behind
        for wanted in config.backbones:
            choose_specs(wanted, load(wanted).specs, config.kinds)
    thumb_px = min(MAX_THUMB_PX, max(b.image_px or MAX_THUMB_PX for b in config.backbones))
    cache = Cache.create(config.cache, listing, unit_images=config.unit_images, thumb_px=thumb_px)
    _sweep(cache)
    _say_missing(forget_missing(cache))
    fresh = not cache.paths.target(THUMB).metadata.exists()  # a finished cache is not even touched
    thumbs = cache.extend(cache.thumbs(create=fresh))
    share = Share(*config.share)
    n_rows = min(config.limit or len(cache.table), len(cache.table))
    units = [u for u in range(count_units(n_rows, cache.unit_images)) if share.owns(u) and (only is None or u in only)]
    jobs = [prepare(cache, backbone, config, load, units) for backbone in config.backbones]
    return Begun(cache, thumbs, jobs, units, n_rows)


def _sweep(cache: Cache) -> None:
    """Deletes what killed processes left half-written, wherever in the cache a file is made."""
    for folder in {part.parent for part in cache.paths.root.rglob(".*.part")}:
        sweep_parts(folder)


def _say_missing(missing: dict[str, list[int]]) -> None:
    if missing:
        print(
            f"{describe_missing(missing)}\n  was the file system purged? These units are not finished any more; "
            "this command writes anew those of its own stores",
            file=sys.stderr,
            flush=True,
        )


def _extract_unit(
    cache: Cache,
    thumbs: CachedArray,
    jobs: Sequence[Job],
    unit: int,
    images: UnitImages,
    config: ExtractConfig,
    stop: machine.StopFlag,
) -> None:
    """Decodes one unit once and writes what each job lacks of it; on any error nothing of the unit stays."""
    rows = cache.rows_of_unit(unit, config.limit)
    keys = cache.table.keys
    with ExitStack() as undo:

        def open_writer(array: CachedArray) -> UnitWriter:
            writer = UnitWriter(array.paths, array.layout, unit)
            undo.callback(writer.abort)
            return writer

        thumb_writer = None if thumbs.has_unit(unit, rows) else open_writer(thumbs)
        work = [(job, [(array, open_writer(array)) for array in job.missing(unit, rows)]) for job in jobs]
        for batch in images.batches(config.batch_size):
            stop.check(f"extracting unit {unit}; finished units are kept")
            names = [keys[row] for row in batch.rows]
            if thumb_writer is not None:
                thumb_writer.append(batch.rows, _thumb_values(batch, cache.thumb_px), names)
            for job, writers in work:
                stored = compute(job, batch, [array for array, _ in writers])
                for (_, writer), values in zip(writers, stored, strict=True):
                    writer.append(batch.rows, values, names)
        made = {"batch_size": config.batch_size, "device": config.device, "versions": machine.versions()}
        thumb_writers = [thumb_writer] if thumb_writer is not None else []
        for writer in [*thumb_writers, *(writer for _, writers in work for _, writer in writers)]:
            writer.commit(images.statuses, made)


def _lacking(cache: Cache, thumbs: CachedArray, jobs: Sequence[Job], unit: int, limit: int | None) -> bool:
    rows = cache.rows_of_unit(unit, limit)
    return not thumbs.has_unit(unit, rows) or any(job.missing(unit, rows) for job in jobs)


def pixel_sizes(cache: Cache, jobs: Sequence[Job]) -> list[PixelGeometry]:
    """Every size that an image is wanted in: the thumbnail's, and those of the networks that will run."""
    return [_thumb_geometry(cache.thumb_px), *(job.backbone.geometry for job in jobs if job.backbone is not None)]


def _thumb_geometry(thumb_px: int) -> PixelGeometry:
    return PixelGeometry(thumb_px, interpolation="bilinear")


def _thumb_values(batch: PixelBatch, thumb_px: int) -> Stored:
    n = len(batch.rows)
    return Stored(batch.pixels[_thumb_geometry(thumb_px)], np.ones((n, 0), bool), np.zeros((n, 0), np.float32))


def compute(job: Job, batch: PixelBatch, arrays: Sequence[CachedArray]) -> Iterator[Stored]:
    """What each array stores of a batch, one after the other; the network runs once."""
    tokens = _forward(job, batch, arrays) if arrays else {}
    for array in arrays:
        yield to_storage(_gather(array, tokens), array.layout.dtype.name)


def _forward(job: Job, batch: PixelBatch, arrays: Sequence[CachedArray]) -> dict[str, TapTokens]:
    assert job.backbone is not None, "a job with missing units has its backbone"
    pixels = torch.from_numpy(batch.pixels[job.backbone.geometry]).permute(0, 3, 1, 2)
    taps = {tap for array in arrays for tap in array.taps}
    in_depth_order = [spec.tap for spec in job.store.info.taps if spec.tap in taps]
    return dict(job.backbone(pixels, in_depth_order))


def _gather(array: CachedArray, tokens: dict[str, TapTokens]) -> torch.Tensor:
    """[B, L, ...] of the array's kind, its taps in order."""
    if array.kind == "prefix":
        return torch.stack([tokens[tap].prefix for tap in array.taps], dim=1)
    grids = torch.stack([tokens[tap].grid for tap in array.taps], dim=1)
    return grids if array.kind == "grid" else pool_mean(grids)


def _describe(job: Job) -> dict[str, Any]:
    taps = sorted({tap for array in job.arrays for tap in array.taps}, key=[s.tap for s in job.store.info.taps].index)
    n_bytes = sum(path.stat().st_size for array in job.arrays for path in array.paths.folder.glob("c.*"))
    return {"store": job.store.name, "label": job.store.info.label, "taps": taps, "bytes": n_bytes}


def _judge_bad(cache: Cache, bad: dict[int, str], n_rows: int, max_bad_frac: float) -> None:
    if len(bad) > max_bad_frac * n_rows:
        row, reason = next(iter(bad.items()))
        raise TooManyBadImages(
            f"{len(bad)} of {n_rows} images cannot be used; the first: {cache.table.keys[row]}: {reason}",
            where=cache.paths.root,
            remedy="mend or remove the images and extract into a new cache, or accept them with --max-bad-frac",
        )

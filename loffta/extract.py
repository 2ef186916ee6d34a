"""Stage one: runs frozen backbones over an image set and writes their tokens to the cache.

In: an ExtractConfig.   Out: finished units in the cache, and a summary. Called by `loffta extract`; a second call
continues, and does nothing (loads no model) when all is there.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from loffta import machine
from loffta.backbones import Backbone
from loffta.batch_size import DEFAULT, choose_batch_size
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import TooManyBadImages
from loffta.forward import Job
from loffta.images.batches import ImageStream, PixelBatch, UnitImages, decoding_threads
from loffta.images.geometry import PixelGeometry, View
from loffta.images.sources import ImageSource, open_source
from loffta.jobs import Load, choose_specs, describe, make_request, prepare
from loffta.progress import Progress
from loffta.store.cache import MAX_THUMB_PX, Cache, CachedArray
from loffta.store.files import sweep_parts
from loffta.store.ledger import BAD
from loffta.store.paths import THUMB, CachePaths
from loffta.store.sink import UnitSink
from loffta.store.units import Share, count_units
from loffta.store.writer import Stored


@dataclass
class Report:
    """What one call did."""

    images: int = 0  # read and decoded by this call
    bad: int = 0  # quarantined ones in the cache
    units: int = 0  # written by this call
    seconds: float = 0.0
    stores: list[dict[str, Any]] = field(default_factory=list)


def run(
    config: ExtractConfig,
    stop: machine.StopFlag,
    *,
    only: Collection[int] | None = None,
    views: Sequence[View | None] | None = None,
) -> Report:
    """Extracts all that `config` asks for and the cache lacks, with timm's backbones.

    Args:
        only: units to look at; None: all of this process's share.
        views: stores of each backbone to look at, None standing for the plain one; None: those `config` asks for.
    """
    machine.cap_threads()
    device = machine.resolve_device(config.device)
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions; the recipe says fp32 on every device
    config = config.model_copy(update={"device": str(device)})  # done files say which it was, not `auto`

    def load(backbone: BackboneConfig) -> Backbone:
        from loffta.backbones.timm_backbone import load_timm

        return load_timm(backbone.name, weights=backbone.weights, image_px=backbone.image_px, device=str(device))

    return extract(config, open_source(config.source), load, stop, only=only, views=views)


def extract(
    config: ExtractConfig,
    source: ImageSource,
    load: Load,
    stop: machine.StopFlag,
    *,
    only: Collection[int] | None = None,
    views: Sequence[View | None] | None = None,
) -> Report:
    """The driver: prepare a job per backbone and view, then unit by unit decode once and feed every job.

    Args:
        load: makes a backbone; called only when something of it has to be computed.
        only: units to look at; None: all of this process's share.
        views: stores of each backbone to look at, None standing for the plain one; None: those `config` asks for.
    Raises:
        Stopped: a signal came; finished units are kept.
        TooManyBadImages: over `max_bad_frac`; all good images are in the cache.
        LofftaError: another recipe under the same name, a changed image set, no space.
    """
    start = time.monotonic()
    listing = source.listing()  # before any model is loaded: a faulty table should not cost that wait
    load = functools.cache(load)
    wanted = [
        (backbone, view) for backbone in config.backbones for view in (_views(config) if views is None else views)
    ]
    if not CachePaths(config.cache).config.exists():  # what cannot be had or is misspelt leaves no empty cache behind
        for backbone, view in wanted:
            info = describe(load(backbone), make_request(backbone, view, config))
            choose_specs(backbone, info.taps, config.kinds)
    thumb_px = min(MAX_THUMB_PX, max(b.image_px or MAX_THUMB_PX for b in config.backbones))
    cache = Cache.create(config.cache, listing, unit_images=config.unit_images, thumb_px=thumb_px)
    _sweep(cache)
    fresh = not cache.paths.target(THUMB).metadata.exists()  # a finished cache is not even touched
    thumbs = cache.extend(cache.thumbs(create=fresh))
    share = Share(*config.share)
    n_rows = min(config.limit or len(cache.table), len(cache.table))
    units = [u for u in range(count_units(n_rows, cache.unit_images)) if share.owns(u) and (only is None or u in only)]
    jobs = [prepare(cache, backbone, view, config, load, units) for backbone, view in wanted]
    todo = [u for u in units if _lacking(cache, thumbs, jobs, u, config.limit)]
    n_images = sum(len(cache.rows_of_unit(u, config.limit)) for u in todo)
    for job in jobs:
        if job.backbone is not None:
            job.batch_size = _batch_size(job, config, n_images)
    batch_size = max((job.batch_size for job in jobs), default=0) or DEFAULT
    if todo:
        print(machine.describe(jobs[0].device), file=sys.stderr)
    report = Report()
    with (
        Progress("extract", n_images, "images") as progress,
        decoding_threads(machine.available_cpus()) as pool,
        UnitSink() as sink,
    ):
        due = ((u, cache.rows_of_unit(u, config.limit)) for u in todo if _lacking(cache, thumbs, jobs, u, config.limit))
        stream = ImageStream(source, cache.table.keys, _sizes(cache, jobs), pool, due, n_ahead=2 * batch_size)
        for images in stream:  # units that another process has written meanwhile are left out
            stop.check(f"extracting unit {images.unit}; finished units are kept")
            _extract_unit(cache, thumbs, jobs, images, batch_size, sink, stop, progress)
            report.units += 1
            report.images += len(images.rows)
    bad = cache.thumbs().ledger.bad
    report.bad, report.seconds = len(bad), time.monotonic() - start
    report.stores = [_describe(job) for job in jobs]
    _judge_bad(cache, {row: reason for row, reason in bad.items() if row < n_rows}, n_rows, config.max_bad_frac)
    return report


def _views(config: ExtractConfig) -> list[View | None]:
    """The stores of every backbone: the plain one, and one per view."""
    return [None, *(View(config.view_seed, index) for index in range(config.views))]


def _batch_size(job: Job, config: ExtractConfig, n_images: int) -> int:
    return choose_batch_size(job, n_images) if config.batch_size is None else config.batch_size


def _sweep(cache: Cache) -> None:
    """Deletes what killed processes left half-written, wherever in the cache a file is made."""
    for folder in {part.parent for part in cache.paths.root.rglob(".*.part")}:
        sweep_parts(folder)


def _extract_unit(
    cache: Cache,
    thumbs: CachedArray,
    jobs: Sequence[Job],
    images: UnitImages,
    batch_size: int,
    sink: UnitSink,
    stop: machine.StopFlag,
    progress: Progress,
) -> None:
    """Decodes one unit once and hands the sink what each job lacks of it."""
    unit, rows = images.unit, images.rows
    thumb_writer = None if thumbs.has_unit(unit, rows) else sink.open(thumbs, unit)
    work = [(job, [(array, sink.open(array, unit)) for array in job.missing(unit, rows)]) for job in jobs]
    for batch in images.batches(batch_size):
        stop.check(f"extracting unit {unit}; finished units are kept")
        names = [cache.table.keys[row] for row in batch.rows]
        if thumb_writer is not None:
            sink.append(thumb_writer, batch.rows, _thumb_values(batch, cache.thumb_px), names)
        for job, writers in work:
            if writers:
                for part, found in job.run(batch.pixels[job.geometry], [array for array, _ in writers], names):
                    for (_, writer), stored in zip(writers, found, strict=True):
                        sink.append(writer, batch.rows[part], stored, names[part])
        progress.advance(len(batch.rows))
    progress.advance(sum(status.status == BAD for status in images.statuses))
    made = {"device": str(jobs[0].device), "versions": machine.versions()}
    if thumb_writer is not None:
        sink.commit(thumb_writer, images.statuses, {"batch_size": batch_size, **made})
    for job, writers in work:
        for _, writer in writers:
            sink.commit(writer, images.statuses, {"batch_size": job.batch_size, **made})


def _lacking(cache: Cache, thumbs: CachedArray, jobs: Sequence[Job], unit: int, limit: int | None) -> bool:
    rows = cache.rows_of_unit(unit, limit)
    return not thumbs.has_unit(unit, rows) or any(job.missing(unit, rows) for job in jobs)


def _sizes(cache: Cache, jobs: Sequence[Job]) -> list[PixelGeometry]:
    return [_thumb_geometry(cache.thumb_px), *(job.geometry for job in jobs if job.backbone is not None)]


def _thumb_geometry(thumb_px: int) -> PixelGeometry:
    return PixelGeometry(thumb_px, interpolation="bilinear")


def _thumb_values(batch: PixelBatch, thumb_px: int) -> Stored:
    n = len(batch.rows)
    return Stored(batch.pixels[_thumb_geometry(thumb_px)], np.ones((n, 0), bool), np.zeros((n, 0), np.float32))


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

"""Stage one: runs frozen backbones over an image set and writes their tokens to the cache.

In: an ExtractConfig.   Out: finished units in the cache, and a summary. Called by `loffta extract`; a second call
continues, and does nothing (loads no model) when all is there.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from loffta import machine
from loffta.backbones import Backbone, TapTokens
from loffta.backbones.load import load_backbone
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import TooManyBadImages
from loffta.images.batches import PixelBatch, UnitImages, decoding_threads
from loffta.images.decode import PixelGeometry
from loffta.images.sources import ImageSource, open_source
from loffta.jobs import Job, Load, choose_specs, prepare
from loffta.pooling import pool_mean
from loffta.progress import Progress
from loffta.store.cache import MAX_THUMB_PX, Cache, CachedArray
from loffta.store.files import sweep_parts
from loffta.store.paths import THUMB, CachePaths
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


def run(config: ExtractConfig, stop: machine.StopFlag, *, only: Collection[int] | None = None) -> Report:
    """Extracts all that `config` asks for and the cache lacks.

    Args:
        only: units to look at; None: all of this process's share.
    """
    machine.cap_threads()
    device = machine.resolve_device(config.device)
    torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions; the recipe says fp32 on every device
    config = config.model_copy(update={"device": str(device)})  # done files say which it was, not `auto`

    def load(backbone: BackboneConfig) -> Backbone:
        return load_backbone(
            backbone.name, weights=backbone.weights, image_px=backbone.image_px, taps=backbone.taps, device=str(device)
        )

    return extract(config, open_source(config.source), load, stop, only=only)


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
    load = functools.cache(load)
    if not CachePaths(config.cache).config.exists():  # what cannot be had or is misspelt leaves no empty cache behind
        for wanted in config.backbones:
            choose_specs(wanted, load(wanted).specs, config.kinds)
    thumb_px = min(MAX_THUMB_PX, max(b.image_px or MAX_THUMB_PX for b in config.backbones))
    cache = Cache.create(config.cache, listing, unit_images=config.unit_images, thumb_px=thumb_px)
    _sweep(cache)
    fresh = not cache.paths.target(THUMB).metadata.exists()  # a finished cache is not even touched
    thumbs = cache.extend(cache.thumbs(create=fresh))
    share = Share(*config.share)
    n_rows = min(config.limit or len(cache.table), len(cache.table))
    units = [u for u in range(count_units(n_rows, cache.unit_images)) if share.owns(u) and (only is None or u in only)]
    jobs = [prepare(cache, backbone, config, load, units) for backbone in config.backbones]
    todo = [u for u in units if _lacking(cache, thumbs, jobs, u, config.limit)]
    report = Report()
    with Progress("extract", len(todo), "units") as progress, decoding_threads(machine.available_cpus()) as pool:
        for unit in todo:
            stop.check(f"extracting unit {unit}; finished units are kept")
            if _lacking(cache, thumbs, jobs, unit, config.limit):  # else another process has written it meanwhile
                rows = cache.rows_of_unit(unit, config.limit)
                images = UnitImages(source, cache.table.keys, rows, _sizes(cache, jobs), pool)
                _extract_unit(cache, thumbs, jobs, unit, images, config, stop)
                report.units += 1
                report.images += len(rows)
            progress.advance(1)
    bad = cache.thumbs().ledger.bad
    report.bad, report.seconds = len(bad), time.monotonic() - start
    report.stores = [_describe(job) for job in jobs]
    _judge_bad(cache, {row: reason for row, reason in bad.items() if row < n_rows}, n_rows, config.max_bad_frac)
    return report


def _sweep(cache: Cache) -> None:
    """Deletes what killed processes left half-written, wherever in the cache a file is made."""
    for folder in {part.parent for part in cache.paths.root.rglob(".*.part")}:
        sweep_parts(folder)


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
                if writers:
                    tokens = _forward(job, batch, [array for array, _ in writers])
                    for array, writer in writers:
                        writer.append(batch.rows, to_storage(_gather(array, tokens), array.layout.dtype.name), names)
        made = {"batch_size": config.batch_size, "device": config.device, "versions": machine.versions()}
        thumb_writers = [thumb_writer] if thumb_writer is not None else []
        for writer in [*thumb_writers, *(writer for _, writers in work for _, writer in writers)]:
            writer.commit(images.statuses, made)


def _lacking(cache: Cache, thumbs: CachedArray, jobs: Sequence[Job], unit: int, limit: int | None) -> bool:
    rows = cache.rows_of_unit(unit, limit)
    return not thumbs.has_unit(unit, rows) or any(job.missing(unit, rows) for job in jobs)


def _sizes(cache: Cache, jobs: Sequence[Job]) -> list[PixelGeometry]:
    return [_thumb_geometry(cache.thumb_px), *(job.backbone.geometry for job in jobs if job.backbone is not None)]


def _thumb_geometry(thumb_px: int) -> PixelGeometry:
    return PixelGeometry(thumb_px, interpolation="bilinear")


def _thumb_values(batch: PixelBatch, thumb_px: int) -> Stored:
    n = len(batch.rows)
    return Stored(batch.pixels[_thumb_geometry(thumb_px)], np.ones((n, 0), bool), np.zeros((n, 0), np.float32))


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

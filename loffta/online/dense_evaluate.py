"""Measures trained dense heads on images that no cache holds, at the labels' own size.

In: finished runs of dense tasks, and a source of images with targets.   Out: results and figures of each image in each
run, as those of the cached path. All runs are measured on one pass; no map is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.crop import Windows
from loffta.dataset.dense import digest_of
from loffta.dataset.shown import centre_of
from loffta.errors import LofftaError
from loffta.evaluation.dense import describe_dense
from loffta.evaluation.dense_measure import Goal, figure_columns, measure_dense_run
from loffta.evaluation.findings import Findings
from loffta.evaluation.told import count_left_out, describe, describe_training
from loffta.extraction.jobs import Load
from loffta.images.batches import judge_bad
from loffta.images.sources import ImageSource
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.machine.usage import Meter
from loffta.online.dense_targets import ReadTarget, SourceTargets
from loffta.online.evaluate import Measured, save_all
from loffta.online.opened_dense import OpenedDense, open_dense, true_size
from loffta.online.stream import BATCH_SIZE, FreshBatch, FreshStream
from loffta.store.table import ImageTable

DOING = "evaluating; no results were written"


@dataclass
class _Tally:
    """What is kept of one run: small records of every image and seed."""

    run: OpenedDense
    targets: SourceTargets
    told: Findings
    records: list[list[Any]]  # [S][B]
    rows: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def add(self, batch: FreshBatch, here: slice, keys: Sequence[str]) -> None:
        """Measures the images of a batch that have a target; `here` are the run's own among the batch's features."""
        sizes = {status.row: true_size(status) for status in batch.statuses}
        read = [self.targets.read(row, *sizes[row]) for row in batch.rows]
        places = [i for i, one in enumerate(read) if one is not None]
        found: list[ReadTarget] = [one for one in read if one is not None]
        if not found:
            return
        rows = [batch.rows[i] for i in places]
        natives, run = [one.native for one in found], self.run
        chosen, mirrored = ([feature[places] for feature in of[here]] for of in (batch.features, batch.mirrored))
        turned = mirrored if run.mirrors else []
        shapes = [sizes[row] for row in rows]
        for seed, part, outputs in run.each_output(chosen, [keys[row] for row in rows], self.told, turned, shapes):
            self.records[seed] += run.task.records(outputs, natives[part], run.settings, len(run.classes))
        self.rows += rows
        self.digests += [one.digest for one in found]


def evaluate_dense_online(
    roots: Sequence[Path],
    source: ImageSource,
    split: str,
    load: Load,
    *,
    device: torch.device,
    output_px: int | None = None,
    windows: Windows | None = None,
    batch_size: int = BATCH_SIZE,
    max_bad_frac: float = 0.01,
    stop: process.StopFlag | None = None,
) -> list[Mapping[str, Any]]:
    """Evaluates every seed of finished trainings of dense heads; arguments and errors as `evaluate_online` has them.

    Args:
        output_px: side of the heads' outputs; None: as in training. Labels keep their own size.
        windows: slide them over each image; None: see it as the features were made.
    Raises:
        LofftaError: the targets' classes are not the runs', or no image of the split has a target.
    """
    meter = Meter()
    stop = stop or process.StopFlag()
    with stop.at_once(DOING):
        runs = [open_dense(root, device, output_px, windows) for root in roots]
        listing = source.listing()
        listing.check_split(split, where=f"--split, {listing.source}")
        rows = listing.rows_of(split)
    how: dict[str, Any] = {"load": load, "device": device, "batch_size": batch_size, "windows": windows}
    measured, bad = measure_images(runs, source, listing, split, rows, stop, how)
    save_all([run.paths for run in runs], split, measured, meter, dense=True)
    judge_bad(bad, listing.keys, len(rows), max_bad_frac, done="the results of the good images are written")
    return [one.results for one in measured]


def measure_images(
    runs: Sequence[OpenedDense],
    source: ImageSource,
    listing: ImageTable,
    split: str,
    rows: NDArray[np.int64],
    stop: process.StopFlag,
    how: Mapping[str, Any],
) -> tuple[list[Measured], dict[int, str]]:
    """Of each run what is to be written, and why some of the images could not be used.

    Args:
        how: arguments of FreshStream.
    """
    with stop.at_once(DOING):
        tallies = [_tally(run, source, listing) for run in runs]
        features = [feature for run in runs for feature in run.origins.inputs]
        mirrored = any(run.mirrors for run in runs)
        stream = FreshStream(features, source, listing, rows.tolist(), mirrored=mirrored, **how)
    ends = np.cumsum([0, *(len(run.origins.inputs) for run in runs)])
    with Progress("evaluate --online", len(rows), "images") as progress:
        for batch in stop.each(stream, DOING):
            for i, tally in enumerate(tallies):
                tally.add(batch, slice(ends[i], ends[i + 1]), listing.keys)
            progress.advance(len(batch.statuses))
    if len(stream.bad) == len(rows):
        judge_bad(stream.bad, listing.keys, len(rows), 0.0, done="no results were written")
    return [_measure(tally, listing, split, len(rows), len(stream.bad)) for tally in tallies], stream.bad


def _tally(run: OpenedDense, source: ImageSource, listing: ImageTable) -> _Tally:
    centre = centre_of(run.origins.features[0].store) if run.windows is None else None
    targets = SourceTargets(source, listing, run.config.task, run.classes, run.paths.root, centre)
    return _Tally(run, targets, Findings(run.heads), [[] for _ in run.heads])


def _measure(tally: _Tally, listing: ImageTable, split: str, n_asked: int, n_bad: int) -> Measured:
    run, rows = tally.run, np.array(tally.rows, np.int64)
    if not tally.rows:
        first = next(iter(tally.targets.bad.values()), "")
        raise LofftaError(
            f"no image of split '{split}' has a target '{run.task.target}' that can be used",
            where=f"{listing.source}: {first}" if first else listing.source,
            remedy="choose a split whose images have them",
        )
    keys = [listing.keys[row] for row in tally.rows]
    goal = Goal(run.task, run.classes, run.settings)
    left_out = count_left_out(n_bad, n_asked - n_bad - len(rows))
    results = describe(run.config, run.origins.features, split, len(rows), left_out)
    results |= measure_dense_run(goal, run.config, None, tally.records, rows, listing.source)
    results["online"] = {"source": listing.source, "digest": listing.digest}
    if (online := run.config.online) is not None:
        recipe = run.origins.features[0].store.info.recipe
        results["online"] |= {"unfrozen": False, "augment": online.augment, "backbone": recipe}
    results |= describe_training(run.paths, run.config, run.recipe, run.heads) | tally.told.entries()
    results["protocol"] = run.config.protocol
    digest = digest_of(run.config.task, run.classes, tally.digests)
    results["dense"] |= describe_dense(
        run.task.target, run.classes, digest, run.origins.features[0].store, run.recipe, run.heads[0]
    )
    if run.windows is not None:
        results["dense"]["geometry"] = {"windows": str(run.windows)}
    return Measured(results, figure_columns(goal, tally.records, rows, keys))

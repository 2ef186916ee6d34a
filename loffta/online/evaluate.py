"""Measures trained heads on images that no cache holds: test sets too large to keep.

In: finished runs and a source of images with classes.   Out: results and predictions in each run, as those of the
cached path. All runs are measured on one pass; what they share of the networks is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.dataset.splits import name_some
from loffta.dataset.targets import labelled_rows, read_targets
from loffta.errors import LofftaError, NotSaved
from loffta.evaluation.calibrated import calibrate
from loffta.evaluation.findings import Findings
from loffta.evaluation.measure import measure, prediction_columns
from loffta.evaluation.told import cost_told, count_left_out, describe, describe_training
from loffta.extraction.jobs import Load
from loffta.images.batches import judge_bad
from loffta.images.sources import ImageSource
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.machine.usage import Meter
from loffta.online.opened import OpenedRun, open_for_images
from loffta.online.stream import BATCH_SIZE, FreshStream
from loffta.runs.run import RunPaths, read_results, save_results
from loffta.store.names import in_order
from loffta.store.table import ImageTable
from loffta.words import first_of


def evaluate_online(
    roots: Sequence[Path],
    source: ImageSource,
    split: str,
    load: Load,
    *,
    device: torch.device,
    cache_root: Path | None = None,
    batch_size: int = BATCH_SIZE,
    max_bad_frac: float = 0.01,
    stop: process.StopFlag | None = None,
) -> list[Mapping[str, Any]]:
    """Evaluates every seed of finished trainings on images that are not cached.

    Args:
        cache_root: see `open_for_images`.
    Returns:
        The results of each run, as in its results file.
    Raises:
        UsageError: no such split.
        LofftaError: the images' classes are not the runs'; a backbone is not the one of the features.
        NotSaved: measured, and nothing could be written for at least one run.
        TooManyBadImages: over `max_bad_frac`; the results are written.
        Stopped: a signal came; nothing is written.
    """
    meter = Meter()
    stop = stop or process.StopFlag()
    doing = "evaluating; no results were written"
    with stop.at_once(doing):
        runs = [open_for_images(root, device, cache_root) for root in roots]
        listing = source.listing()
        for run in runs:  # of any task: what one of them cannot use shows before the networks run
            rows = rows_to_use(listing, split, run.config.task)
        numbered = [as_numbered(listing, rows, run) for run in runs]
        features = [feature for run in runs for feature in run.origins.features]
        stream = FreshStream(features, source, listing, rows.tolist(), load=load, device=device, batch_size=batch_size)
    ends = np.cumsum([0, *(len(run.origins.features) for run in runs)])
    found: list[list[torch.Tensor]] = [[] for _ in runs]
    told = [Findings(run.heads) for run in runs]
    good: list[int] = []
    with Progress("evaluate --online", len(rows), "images") as progress:
        for batch in stop.each(stream, doing):
            progress.advance(len(batch.statuses))
            if batch.rows:
                good += batch.rows
                for i, run in enumerate(runs):
                    found[i].append(run.predict(batch.features[ends[i] : ends[i + 1]], told[i]))
    if not good:
        judge_bad(stream.bad, listing.keys, len(rows), 0.0, done="no results were written")
    left_out = count_left_out(len(stream.bad), len(listing.rows_of(split)) - len(rows))
    results = [
        _measure(run, table, split, np.array(good), torch.cat(parts, dim=1).numpy(), findings, left_out)
        for run, parts, findings, table in zip(runs, found, told, numbered, strict=True)
    ]
    save_all([run.paths for run in runs], split, results, meter)
    judge_bad(stream.bad, listing.keys, len(rows), max_bad_frac, done="the results of the good images are written")
    return [measured.results for measured in results]


def rows_to_use(listing: ImageTable, split: str, task: str) -> NDArray[np.int64]:
    """Rows of a split of a listing that have the labels of a task.

    Raises:
        UsageError: no such split.
        LofftaError: another kind of labels, or no image with one.
    """
    listing.check_split(split, where=f"--split, {listing.source}")
    return labelled_rows(listing, listing.rows_of(split), split, task)


def as_numbered(listing: ImageTable, rows: NDArray[np.int64], run: OpenedRun) -> ImageTable:
    """The same listing with the classes as a run numbers them; matched by name, whatever their order.

    Raises:
        LofftaError: some of `rows` are of classes that the run does not know.
    """
    numbered = listing.numbered_by(run.origins.classes)
    strange = rows[~numbered.is_labelled()[rows]].tolist()
    if strange:
        names = {name for row in strange for name in listing.class_names(row) or [listing.class_name(row)] if name}
        unknown = in_order(names.difference(run.origins.classes))
        raise LofftaError(
            f"{len(strange)} images are of classes that the run was not trained on: {first_of(unknown, ', ')}",
            where=f"{listing.source}; {run.paths.root} knows {name_some(run.origins.classes)}",
            remedy="name the classes as in training, or leave these images out",
        )
    return numbered


@dataclass(frozen=True)
class Measured:
    """Of one run: what its results say, and the columns of its predictions."""

    results: dict[str, Any]
    columns: dict[str, NDArray[Any] | list[Any]]


def _measure(
    run: OpenedRun,
    table: ImageTable,
    split: str,
    rows: NDArray[np.int64],
    logits: NDArray[np.floating[Any]],
    told: Findings,
    left_out: dict[str, int],
) -> Measured:
    keys = [table.keys[row] for row in rows]
    targets = read_targets(table, run.config.task)[rows].numpy()
    results = describe(run.config, run.origins.features, split, len(rows), left_out)
    results |= measure(run.task, logits, targets, table.classes, keys=keys, seed=run.config.data_seed)
    results |= calibrate(run.paths, run.config, split, logits, targets, may_fit=False).told
    results["online"] = {"source": table.source, "digest": table.digest}
    results |= describe_training(run.paths, run.config, run.recipe, run.heads) | told.entries()
    return Measured(results, prediction_columns(run.task, logits, targets, rows, keys))


def save_all(
    runs: Sequence[RunPaths], split: str, measured: Sequence[Measured], meter: Meter, *, dense: bool = False
) -> None:
    """Writes into every run that can be written to; NotSaved, with all results, where one cannot."""
    unsaved: NotSaved | None = None
    for paths, one in zip(runs, measured, strict=True):
        path = paths.results(split)
        one.results.update(cost_told(paths, meter) | {"versions": process.versions()})
        if path.exists() and "train_seconds" in (before := read_results(path)):
            one.results["train_seconds"] = before["train_seconds"]
        try:
            save_results(paths, split, one.results, one.columns, dense=dense)
        except NotSaved as error:  # the others' are written
            unsaved = unsaved or error
    if unsaved is not None:
        raise unsaved.together([one.results for one in measured])

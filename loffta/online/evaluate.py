"""Measures trained heads on images that no cache holds: test sets too large to keep.

In: finished runs and a source of images with classes.   Out: results and predictions in each run, as those of the
cached path. All runs are measured on one pass; what they share of the networks is computed once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loffta import machine
from loffta.errors import LofftaError, NotSaved, unknown_name
from loffta.evaluate import count_left_out, describe, describe_training
from loffta.findings import Findings
from loffta.images.sources import ImageSource
from loffta.jobs import Load
from loffta.measure import measure, prediction_columns
from loffta.online.opened import OpenedRun, open_for_images
from loffta.online.stream import BATCH_SIZE, FreshStream, judge_bad
from loffta.progress import Progress
from loffta.runs import read_results, save_results
from loffta.store.table import ImageTable
from loffta.targets import labelled_rows, read_targets


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
    stop: machine.StopFlag | None = None,
) -> list[Mapping[str, Any]]:
    """Evaluates every seed of finished trainings on images that are not cached.

    Args:
        load: makes a backbone on `device`.
        cache_root: see `open_for_images`.
        batch_size: images per forward pass.
    Returns:
        The results of each run, as in its results file.
    Raises:
        UsageError: no such split.
        LofftaError: the images' classes are not the runs'; a backbone is not the one of the features.
        NotSaved: measured, and nothing could be written for at least one run.
        TooManyBadImages: over `max_bad_frac`; the results are written.
        Stopped: a signal came; nothing is written.
    """
    start = time.monotonic()
    stop = stop or machine.StopFlag()
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
    results: list[Mapping[str, Any]] = []
    unsaved: NotSaved | None = None
    for run, parts, findings, table in zip(runs, found, told, numbered, strict=True):
        logits = torch.cat(parts, dim=1).numpy()
        left_out = count_left_out(len(stream.bad), len(listing.rows_of(split)) - len(rows))
        try:
            results.append(_write(run, table, split, np.array(good), logits, findings, left_out, start))
        except NotSaved as error:  # of one of several: the others' are written
            results.append(error.results)
            unsaved = unsaved or error
    if unsaved is not None:
        raise unsaved.together(results)
    judge_bad(stream.bad, listing.keys, len(rows), max_bad_frac, done="the results of the good images are written")
    return results


def rows_to_use(listing: ImageTable, split: str, task: str) -> NDArray[np.int64]:
    """Rows of a split of a listing that have the labels of a task.

    Raises:
        UsageError: no such split.
        LofftaError: another kind of labels, or no image with one.
    """
    sizes = listing.split_sizes()
    for part in split.split("+"):
        if part not in sizes:
            raise unknown_name("split", part, sizes, where=f"--split, {listing.source}")
    return labelled_rows(listing, listing.rows_of(split), split, task)


def as_numbered(listing: ImageTable, rows: NDArray[np.int64], run: OpenedRun) -> ImageTable:
    """The same listing with the classes as a run numbers them; matched by name, whatever their order.

    Raises:
        LofftaError: some of `rows` are of classes that the run does not know.
    """
    place = {name: i for i, name in enumerate(run.origins.classes)}
    mapped = np.array([*(place.get(name, -1) for name in listing.classes), -1], dtype=np.int64)  # -1 stays -1
    sets = listing.label_sets
    mine = [[int(listing.labels[row])] if sets is None else list(sets[row] or ()) for row in rows]
    strange = [row for row, found in zip(rows, mine, strict=True) if any(mapped[label] < 0 for label in found)]
    if strange:
        unknown = sorted({listing.classes[label] for found in mine for label in found if mapped[label] < 0})
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        known = ", ".join(run.origins.classes[:5]) + (", ..." if len(run.origins.classes) > 5 else "")
        raise LofftaError(
            f"{len(strange)} images are of classes that the run was not trained on: {shown}",
            where=f"{listing.source}; {run.paths.root} knows {len(run.origins.classes)} classes: {known}",
            remedy="name the classes as in training, or leave these images out",
        )
    renamed = None
    if sets is not None:
        known_to_run = [None if found is None else [c for c in found if mapped[c] >= 0] for found in sets]
        renamed = [None if found is None else tuple(sorted(int(mapped[c]) for c in found)) for found in known_to_run]
    return replace(listing, classes=run.origins.classes, labels=mapped[listing.labels], label_sets=renamed)


def _write(
    run: OpenedRun,
    table: ImageTable,
    split: str,
    rows: NDArray[np.int64],
    logits: NDArray[np.float32],
    told: Findings,
    left_out: dict[str, int],
    start: float,
) -> dict[str, Any]:
    keys = [table.keys[row] for row in rows]
    targets = read_targets(table, run.config.task)[rows].numpy()
    results = describe(run.config, run.origins.features, split, len(rows), left_out)
    results |= measure(run.task, logits, targets, table.classes, keys=keys, seed=run.config.data_seed)
    results["online"] = {"source": table.source, "digest": table.digest}
    results |= describe_training(run.paths, run.config, run.recipe, run.heads) | told.entries()
    path = run.paths.results(split)
    results |= {"seconds": time.monotonic() - start, "peak_rss_mib": machine.peak_rss_mib()}
    results["versions"] = machine.versions()
    if path.exists() and "train_seconds" in (before := read_results(path)):
        results["train_seconds"] = before["train_seconds"]
    save_results(run.paths, split, results, prediction_columns(run.task, logits, targets, rows, keys))
    return results

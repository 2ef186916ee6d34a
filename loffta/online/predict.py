"""Classes or values of new images by a trained head: images -> backbones -> head -> one parquet file.

In: a finished run and any source of images, with or without classes.   Out: FILE.parquet with a row per image in the
source's order, bad images included. Rows are written as they come, so memory does not grow with their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from loffta import __version__
from loffta.errors import LofftaError, UsageError
from loffta.extraction.jobs import Load
from loffta.files.durable import new_file
from loffta.files.os_words import guard
from loffta.images.batches import judge_bad
from loffta.images.files import is_there, user_path
from loffta.images.one_file import OneFile
from loffta.images.sources import ImageSource, open_source
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.online.opened import OpenedRun, open_for_images
from loffta.online.stream import BATCH_SIZE, FreshBatch, FreshStream
from loffta.store.arrow import to_column
from loffta.store.columns import SUFFIXES as TABLES
from loffta.store.ledger import OK

ROW_GROUP = 4096  # rows that are gathered before they are written
META = b"loffta-predictions"


@dataclass
class Prediction:
    """What one call did."""

    out: str
    images: int  # all of the source
    bad: int
    classes: list[str]
    counts: dict[str, int]  # images by predicted class
    values: dict[str, float] = field(default_factory=dict)  # min, mean, max of predicted numbers


def open_images(spec: str) -> ImageSource:
    """As `open_source`, but the path of one image file is an image set, too."""
    path = user_path(spec)
    if path.suffix.lower() not in TABLES and is_there(path, folder=False):
        return OneFile(path)
    return open_source(spec)


def check_out(out: Path) -> None:
    """Refuses names that are not a parquet file's, and to replace what `predict` has not written.

    Raises:
        UsageError: a folder, or another ending.
        LofftaError: another file.
    """
    if out.is_dir():
        raise UsageError(
            "this is a folder", where=f"--out {out}", remedy=f"name a file in it: --out {out / 'predictions.parquet'}"
        )
    if out.suffix != ".parquet":
        raise UsageError(
            "predictions are written as parquet, and this name does not say so",
            where=f"--out {out}",
            remedy=f"write --out {out.with_suffix('.parquet')}",
        )
    if not out.exists() and not out.is_symlink():
        return
    try:
        with out.open("rb") as file:
            ours = META in (pq.read_schema(file).metadata or {})
    except (OSError, pa.ArrowException):
        ours = False
    if not ours:
        raise LofftaError(
            "this is no file of predictions, and will not be replaced", where=out, remedy="choose another --out"
        )


def predict(
    root: Path,
    source: ImageSource,
    out: Path,
    load: Load,
    *,
    device: torch.device,
    cache_root: Path | None = None,
    per_seed: bool = False,
    calibrated: bool = False,
    batch_size: int = BATCH_SIZE,
    max_bad_frac: float = 0.01,
    stop: process.StopFlag | None = None,
) -> Prediction:
    """Predicts the class, the classes or the number of every image by the mean of what the seeds' heads say.

    Args:
        out: the file; replaced at once when all of it is written, if it was one of predictions.
        cache_root: see `open_for_images`.
        per_seed: each seed's own prediction beside the mean.
        calibrated: with the run's temperature, so that a confidence of 0.8 is right in 80 of 100.
    Raises:
        UsageError: `out` is a folder, or no .parquet.
        LofftaError: `out` is something else, no run, no trained head, a backbone that is not the features'; no
            temperature.
        TooManyBadImages: over `max_bad_frac`; the file is written.
        Stopped: a signal came; nothing is written.
    """
    stop = stop or process.StopFlag()
    with guard(out):  # a folder that may not even be looked at
        check_out(out)
    doing = f"predicting; {out.name} was not written"
    with stop.at_once(doing):
        run = open_for_images(root, device, cache_root, calibrated=calibrated)
        listing = source.listing()
        rows = range(len(listing))
        stream = FreshStream(
            run.origins.features, source, listing, rows, load=load, device=device, batch_size=batch_size
        )
    classes = list(run.origins.classes)
    counts, values = np.zeros(len(classes), np.int64), []
    with (
        table_writer(out, _schema(run, listing.source, per_seed)) as write,
        Progress("predict", len(rows), "images") as progress,
    ):
        for batch in stop.each(stream, doing):
            columns, mean = _columns(batch, listing.keys, run, per_seed)
            if classes:
                counts += np.bincount(np.concatenate([[], *_decided(mean, run)]).astype(int), minlength=len(classes))
            else:
                values += mean[:, 0].tolist()
            write(columns)
            progress.advance(len(batch.statuses))
    judge_bad(stream.bad, listing.keys, len(rows), max_bad_frac, done=f"{out} is written")
    found = {name: int(n) for name, n in zip(classes, counts, strict=True) if n}
    spread = {"min": min(values), "mean": fmean(values), "max": max(values)} if values else {}
    return Prediction(str(out), len(rows), len(stream.bad), classes, found, spread)


def _schema(run: OpenedRun, source: str, per_seed: bool) -> pa.Schema:
    """One column per fact; probabilities are lists in the order of `classes`, which the metadata hold."""
    predicted = pa.list_(pa.string()) if run.task.label_kind == "multi-label" else pa.string()
    score: list[tuple[str, pa.DataType]] = [
        ("predicted", predicted),
        ("confidence", pa.float32()),
        ("probabilities", pa.list_(pa.float32())),
    ]
    if run.task.label_kind == "regression":
        score = [("predicted", pa.float64())]
    seeds = range(len(run.heads)) if per_seed else ()
    fields: list[tuple[str, pa.DataType]] = [
        ("key", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        *score,
    ]
    fields += [(f"seed_{seed}_{name}", kind) for seed in seeds for name, kind in score]
    meta: dict[str, Any] = {
        "classes": list(run.origins.classes),
        "run": str(run.paths.root.absolute()),
        "source": source,
        "loffta": __version__,
    }
    if run.temperatures is not None:
        meta["temperature"] = run.temperatures.of_mean
    return pa.schema(fields, metadata={META: json.dumps(meta).encode()})


def _columns(
    batch: FreshBatch, keys: Sequence[str], run: OpenedRun, per_seed: bool
) -> tuple[dict[str, list[Any]], NDArray[np.floating[Any]]]:
    """The rows of one batch, and for its good images the mean over the seeds, [B, C]."""
    good = [i for i, status in enumerate(batch.statuses) if status.status == OK]
    columns: dict[str, list[Any]] = {
        "key": [keys[status.row] for status in batch.statuses],
        "status": [status.status for status in batch.statuses],
        "reason": [status.reason or None for status in batch.statuses],
    }
    if good:
        mean, found = run.probabilities(run.predict(batch.features))
    else:
        found = np.empty((len(run.heads), 0, len(run.origins.classes) or 1), np.float32)
        mean = found[0]
    parts = {"": mean} | {f"seed_{seed}_": part for seed, part in enumerate(found) if per_seed}
    for prefix, probabilities in parts.items():
        for name, values in _scores(probabilities, run).items():
            column: list[Any] = [None] * len(batch.statuses)
            for place, value in zip(good, values, strict=True):
                column[place] = value
            columns[prefix + name] = column
    return columns, mean


def name_predicted(probabilities: Float[np.ndarray, "B C"], run: OpenedRun) -> list[Any]:
    """What is predicted of each image: the name of a class, a list of names where it may have several, or a number."""
    if run.task.label_kind == "regression":
        return list(run.task.decide(probabilities).tolist())
    names = [[run.origins.classes[i] for i in of_image] for of_image in _decided(probabilities, run)]
    return names if run.task.label_kind == "multi-label" else [of_image[0] for of_image in names]


def _decided(probabilities: Float[np.ndarray, "B C"], run: OpenedRun) -> list[NDArray[np.int64]]:
    """Positions of the classes of each image: one, or any number where the task is multi-label."""
    found = run.task.decide(probabilities - 0.5)  # of the logits' sign, and in their order
    return [np.flatnonzero(row) for row in found] if found.ndim == 2 else list(found[:, None])


def _scores(probabilities: Float[np.ndarray, "B C"], run: OpenedRun) -> dict[str, list[Any]]:
    predicted = {"predicted": name_predicted(probabilities, run)}
    if run.task.label_kind == "regression":
        return predicted
    return predicted | {"confidence": probabilities.max(axis=1).tolist(), "probabilities": list(probabilities)}


@contextmanager
def table_writer(out: Path, schema: pa.Schema) -> Iterator[Any]:
    """Gives a function that takes columns; the file is in place when the block has ended well."""
    waiting: list[pa.Table] = []
    with new_file(out) as file:
        with guard(out):
            writer = pq.ParquetWriter(file, schema)

        def flush() -> None:
            if waiting:
                with guard(out):
                    writer.write_table(pa.concat_tables(waiting))
                waiting.clear()

        def write(columns: dict[str, list[Any]]) -> None:
            waiting.append(
                pa.Table.from_arrays([to_column(columns[field.name], field.type) for field in schema], schema=schema)
            )
            if sum(map(len, waiting)) >= ROW_GROUP:
                flush()

        try:
            yield write
            flush()
            with guard(out):
                writer.close()
        finally:
            writer.is_open = False  # else its end writes a footer, to a file that is thrown away

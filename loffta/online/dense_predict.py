"""Maps or boxes of new images by the trained heads of a dense run: images -> backbones -> heads -> a folder.

In: a finished run of a dense task and any source of images.   Out: a folder, see `prediction_folder`. Files are written
as images come, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from loffta.crop import Windows
from loffta.drawing import OVERLAYS, class_colours
from loffta.extraction.jobs import Load
from loffta.files.os_words import guard
from loffta.images.batches import judge_bad
from loffta.images.decode import open_image
from loffta.images.rgb import to_rgb
from loffta.images.sources import ImageSource
from loffta.look import look_of
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.online.maps_files import MapForm, map_bytes, map_facts, overlay_bytes
from loffta.online.opened_dense import OpenedDense, open_dense, true_size
from loffta.online.predict import table_writer
from loffta.online.prediction_folder import BOXES, PREDICTIONS, PredictionFolder
from loffta.online.stream import BATCH_SIZE, FreshBatch, FreshStream
from loffta.store.ledger import OK, ImageStatus
from loffta.tasks.centernet import Found

OVERLAY_PX = 1024  # longer side at most


@dataclass
class DensePrediction:
    """What one call did."""

    out: str
    task: str
    images: int  # all of the source
    bad: int
    classes: list[str]
    means: dict[str, Any]  # what a number in a map means: unit, and step where it is a whole number of steps
    boxes: int | None = None  # found; of detection alone


def predict_dense(
    root: Path,
    source: ImageSource,
    out: Path,
    load: Load,
    *,
    device: torch.device,
    maps: MapForm = "png",
    overlay: bool = False,
    windows: Windows | None = None,
    batch_size: int = BATCH_SIZE,
    max_bad_frac: float = 0.01,
    stop: process.StopFlag | None = None,
) -> DensePrediction:
    """Predicts a map, or boxes, of every image by the mean of what the seeds' heads give.

    Args:
        out: a folder; what an earlier `predict` wrote there is replaced.
        windows: slide them over each image; None: see it as the features were made.
    Raises:
        UsageError: `out` is a file.
        LofftaError: `out` holds other things; no run, no trained head, a backbone that is not the features'.
        TooManyBadImages: over `max_bad_frac`; the files are written.
        Stopped: a signal came; `predictions.parquet` is not there, and the same command begins anew.
    """
    stop = stop or process.StopFlag()
    folder = PredictionFolder(out)
    doing = f"predicting; {folder.predictions} was not written"
    with stop.at_once(doing), guard(out):
        run = open_dense(root, device, windows=windows)
        listing = source.listing()
        rows = range(len(listing))
        how: dict[str, Any] = {"load": load, "device": device, "batch_size": batch_size}
        how |= {"mirrored": run.mirrors, "windows": windows}
        stream = FreshStream(run.origins.inputs, source, listing, rows, **how)
        means = map_facts(run.config.task, run.settings)
        folder.begin(_about(run, listing.source) | {"means": means})
    n_boxes = 0
    with (
        table_writer(folder.predictions, pa.schema(list(PREDICTIONS.items()))) as write,
        _boxes_of(run, folder) as write_boxes,
        Progress("predict", len(rows), "images") as progress,
    ):
        for batch in stop.each(stream, doing):
            lines = {status.row: _line(status, listing.keys[status.row]) for status in batch.statuses}
            for row, outputs, found in each_image(run, batch, listing.keys):
                key, line = listing.keys[row], lines[row]
                if isinstance(found, Found):
                    write_boxes(_box_columns(found, key, run))
                    n_boxes += len(found.scores)
                else:
                    data = map_bytes(run.config.task, found, maps, run.settings)
                    line["map"] = folder.put(folder.map(key, maps), data)
                if overlay:
                    picture = _overlay(run, outputs, key, _small_image(source.read(listing.key_now(row)), run))
                    line["overlay"] = folder.put(folder.overlay(key), overlay_bytes(picture))
            write({name: [line[name] for line in lines.values()] for name in PREDICTIONS})
            progress.advance(len(batch.statuses))
    judge_bad(stream.bad, listing.keys, len(rows), max_bad_frac, done=f"{out} is written")
    boxes = n_boxes if run.config.task == "detection" else None
    return DensePrediction(str(out), run.config.task, len(rows), len(stream.bad), list(run.classes), means, boxes)


def each_image(run: OpenedDense, batch: FreshBatch, keys: Sequence[str]) -> Iterator[tuple[int, Tensor, Any]]:
    """(row, mean outputs [K, h, w], what they say of the image at its own size) of every good image of a batch."""
    sizes = {status.row: true_size(status) for status in batch.statuses}
    names, shapes = [keys[row] for row in batch.rows], [sizes[row] for row in batch.rows]
    for part, outputs in run.mean_outputs(batch.features, names, batch.mirrored, shapes):
        for row, of_image in zip(batch.rows[part], outputs, strict=True):
            yield row, of_image, run.read(of_image, keys[row], *sizes[row])


def _about(run: OpenedDense, source: str) -> dict[str, Any]:
    colours = class_colours(len(run.classes)).tolist()
    return {
        "task": run.config.task,
        "run": str(run.paths.root.absolute()),
        "source": source,
        "classes": [{"class": name, "colour": colour} for name, colour in zip(run.classes, colours, strict=True)],
    }


def _line(status: ImageStatus, key: str) -> dict[str, Any]:
    size = (status.width, status.height) if status.status == OK else (None, None)
    facts = (key, status.status, status.reason or None, *size, None, None)
    return dict(zip(PREDICTIONS, facts, strict=True))


@contextmanager
def _boxes_of(run: OpenedDense, folder: PredictionFolder) -> Iterator[Any]:
    """A function that takes columns of boxes; there is no such file of other tasks."""
    if run.config.task != "detection":
        yield None
        return
    with table_writer(folder.boxes, pa.schema(list(BOXES.items()))) as write:
        yield write


def _box_columns(found: Found, key: str, run: OpenedDense) -> dict[str, list[Any]]:
    named = [run.classes[i] if run.settings.boxes_by_class else None for i in found.classes.tolist()]
    columns = [[key] * len(named), *found.corners.T.tolist(), found.scores.tolist(), named]
    return dict(zip(BOXES, columns, strict=True))


def _small_image(data: bytes, run: OpenedDense) -> NDArray[np.uint8]:
    """An image that the network has seen, as people see it, no larger than OVERLAY_PX."""
    picture = open_image(data).decode()
    image = to_rgb(picture, look_of(run.origins.features[0].store.info.request))
    image.thumbnail((OVERLAY_PX, OVERLAY_PX), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _overlay(run: OpenedDense, outputs: Tensor, key: str, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    found = run.read(outputs, key, *image.shape[:2])
    if run.config.task == "instances":
        rows, columns = (np.arange(n) * side // n for n, side in zip(image.shape[:2], found.shape[1:], strict=True))
        found = found[:, rows[:, None], columns]
    return OVERLAYS[run.config.task](image, found)

"""A run's predictions of the split that the report shows, checked against its results.

In: a loaded run.   Out: Predicted, of a dense run Recorded. Called by `gallery` and `comparisons`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.errors import LofftaError
from loffta.reporting.tables import LoadedRun
from loffta.runs.run import read_json, read_predictions
from loffta.runs.turns import TurnsText, is_of_folds
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.records import unpack

_SCORES = ("logits", "probabilities")  # runs of before have no logits


@dataclass(frozen=True)
class Predicted:
    """What S seeds made of B images, in one order for all of them."""

    keys: NDArray[Any]  # [B]
    labels: NDArray[Any]  # [B] numbers of classes, or lists of them; or values
    predicted: NDArray[Any]  # [S, B] likewise
    confidence: NDArray[np.float32]  # [S, B]; of values NaN
    scores: NDArray[np.float32] | None  # [S, B, C]; None: not asked for, or not kept of so many classes
    groups: NDArray[Any] | None = None  # [B] whom each is of; None: the run kept none together


@dataclass(frozen=True)
class Recorded:
    """What S seeds of a dense head left of B images, in one order for all of them."""

    keys: NDArray[Any]  # [B]
    records: list[list[Any]]  # [S][B], of the task's kind
    groups: NDArray[Any] | None = None  # as in Predicted


def read_predicted(run: LoadedRun, *, scores: bool = False) -> Predicted:
    """All seeds' predictions, images in the order of their keys.

    Args:
        scores: logits, too, or the probabilities of older runs.
    Raises:
        LofftaError: they are gone, damaged, or of other images than the results.
    """
    path, columns = run.paths.predictions(run.row.split), ["key", "label", "seed", "predicted"]
    sure = run.results.get("task") != "regression"
    if not path.exists():
        raise LofftaError("this run has no predictions", where=path, remedy=_again(run))
    try:
        found = read_predictions(path, [*columns, "confidence"] if sure else columns)
        found.setdefault("confidence", np.full(len(found["key"]), np.nan, np.float32))
        kept = _read_scores(run) if scores else None
        n_seeds, n_images = run.row.n_seeds, run.row.n_images
        shaped = {name: values.reshape(n_seeds, n_images) for name, values in found.items()}
        order = _order(shaped)
        by_seed = kept.reshape(n_seeds, n_images, -1)[:, order] if kept is not None else None
    except (ValueError, TypeError) as error:
        raise _astray(run, path, error) from error
    return Predicted(
        shaped["key"][0][order],
        shaped["label"][0][order],
        shaped["predicted"][:, order],
        shaped["confidence"][:, order],
        by_seed,
        _read_groups(run, path, order),
    )


def read_recorded(run: LoadedRun) -> Recorded:
    """The records of all seeds of a dense run, images in the order of their keys.

    Raises:
        LofftaError: they are gone, damaged, of other images than the results, or the run is older than records.
    """
    path, kind = run.paths.predictions_dense(run.row.split), DENSE_TASKS[run.config.task].record
    if not path.exists():
        raise LofftaError("this run has no figures of its images", where=path, remedy=_again(run))
    try:
        found = read_predictions(path, ["key", "seed", "record"])
    except LofftaError as error:
        raise LofftaError(
            "its figures of images are damaged, or older than comparisons of dense runs", where=path, remedy=_again(run)
        ) from error
    try:
        shaped = {name: values.reshape(run.row.n_seeds, run.row.n_images) for name, values in found.items()}
        order = _order(shaped)
        records = [[unpack(kind, data) for data in of_seed[order]] for of_seed in shaped["record"]]
    except (ValueError, TypeError) as error:
        raise _astray(run, path, error) from error
    return Recorded(shaped["key"][0][order], records, _read_groups(run, path, order))


def _order(shaped: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Of the keys; ValueError where the images do not stand seed after seed."""
    if not (shaped["key"] == shaped["key"][0]).all() or not (shaped["seed"] == shaped["seed"][:, :1]).all():
        raise ValueError("not seed after seed")
    return np.argsort(shaped["key"][0].astype(str), kind="stable")


def _astray(run: LoadedRun, path: Path, error: Exception) -> LofftaError:
    what = f"the predictions do not go with the results ({type(error).__name__})"
    return LofftaError(what, where=path, remedy=_again(run))


def _read_groups(run: LoadedRun, path: Path, order: NDArray[np.int64]) -> NDArray[Any] | None:
    """The group of each image, in this order of those of one seed; None: the run kept none together."""
    if not (run.config.group and is_of_folds(run.config, run.row.split)):
        return None
    turns = read_json(run.paths.turns, TurnsText)
    group_of = dict(zip(turns.rows, turns.groups or (), strict=False))
    rows = read_predictions(path, ["row"])["row"][: run.row.n_images].tolist()
    if not {*rows} <= {*group_of}:
        raise LofftaError("the predictions are of images that no fold has", where=path, remedy=_again(run))
    return np.array([group_of[row] for row in rows])[order]


def _read_scores(run: LoadedRun) -> NDArray[np.float32] | None:
    path = run.paths.predictions(run.row.split)
    for name in _SCORES:
        try:
            return np.stack(list(read_predictions(path, [name])[name])).astype(np.float32)
        except LofftaError:  # no such column
            continue
    return None


def _again(run: LoadedRun) -> str:
    return f"run `loffta evaluate RUN --split {run.row.split}`"

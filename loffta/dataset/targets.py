"""What a head is to learn of an image set: targets as a tensor, and which rows have one.

In: the table of an image set.   Out: the task that its labels are for, and one target per row. Called by `train` and
`evaluate`, with the table of a cache or a fresh listing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8
from numpy.typing import NDArray
from torch import Tensor

from loffta.errors import LofftaError, UsageError
from loffta.heads.recipe import Recipe
from loffta.store.names import one_folder_down
from loffta.store.table import ImageTable
from loffta.tasks import TASKS, find_task

UNKNOWN = -1  # in every place of the target of an image without a label


def choose_task(table: ImageTable, name: str = "auto") -> str:
    """The name of a task that fits the labels; `auto` lets them decide.

    Raises:
        UsageError: no such task.
        LofftaError: labels that this task cannot learn.
    """
    fitting = next(known for known, task in TASKS.items() if task.label_kind == table.label_kind)
    if name == "auto":
        return fitting
    task = find_task(name)
    if task.label_kind != table.label_kind:
        numbers = "; numbers to learn stand in a column value" if name == "regression" else ""
        raise LofftaError(
            f"the labels of this image set are {table.label_kind}, and {name} needs {task.targets}",
            where=table.source,
            remedy=f"leave --task out, which chooses {fitting}{numbers}",
        )
    return name


def fit_to_task(recipe: Recipe, task: str, given: Collection[str]) -> Recipe:
    """The recipe without class weights where the task has no classes to weigh, unless they were asked for.

    Where numbers are learnt, it says by which loss.

    Args:
        given: keys of the recipe that are the user's, not the head's.
    Raises:
        UsageError: a loss of numbers where there are classes.
    """
    kind = find_task(task).label_kind
    if kind != "regression" and recipe.loss is not None:
        raise UsageError(
            f"the loss '{recipe.loss}' is for numbers, and {task} has classes",
            where="recipe: loss",
            remedy="leave it out; numbers to learn stand in a column value of a table",
        )
    changes: dict[str, Any] = {"loss": recipe.loss or "mse"} if kind == "regression" else {}
    if kind != "single-label" and "class_weights" not in given:
        changes["class_weights"] = False
    return recipe.model_copy(update=changes) if changes else recipe


def read_targets(table: ImageTable, task: str) -> Tensor:
    """One target per row of the table; UNKNOWN where a row has no label, NaN where it has no value.

    Returns:
        classification: [n] int64, positions in `classes`; multi-label: [n, C] int8, 1 where the image has the class;
        regression: [n] float64.
    Raises:
        LofftaError: labels of another kind, a class number that `classes` does not have, or an infinite value.
    """
    choose_task(table, task)
    if table.values is not None:
        _refuse_infinite(table, table.values)
        return torch.tensor(table.values)
    if table.label_sets is None:
        _refuse_out_of_range(table, table.labels)
        return torch.tensor(table.labels)
    return _many_hot(table, table.label_sets)


def labelled_rows(table: ImageTable, rows: NDArray[np.int64], split: str, task: str) -> NDArray[np.int64]:
    """Those of `rows` that have a label: the others are left out of training and of results.

    Raises:
        LofftaError: labels of another kind, or nothing to learn or to measure is left.
    """
    targets = read_targets(table, task)
    found = rows[table.is_labelled()[rows]]
    if not len(found):
        raise LofftaError(
            f"no image of split '{split}' has a label ({len(rows)} have none)",
            where=table.source,
            remedy="choose a split with labels, or keep a part of the training images out with --holdout 0.2; "
            "`loffta predict` needs no labels",
        )
    if table.label_sets is not None and not (targets[found] > 0).any():
        raise LofftaError(
            f"none of the {len(found)} images of split '{split}' has any class",
            where=table.source,
            remedy="choose a split with images of some class: there is nothing to learn or to measure here",
        )
    return found


def refuse_one_class(table: ImageTable, rows: NDArray[np.int64], split: str, way_out: str = "") -> None:
    """Refuses to train on single labels that are all the same: top-1 would be 1.000 whatever is wrong.

    Args:
        way_out: what else the remedy says.
    Raises:
        LofftaError: the class, and where its folders lie deeper than SOURCE says, that.
    """
    present = np.unique(table.labels[rows])
    if table.label_kind != "single-label" or len(present) != 1:
        return
    name = table.classes[present[0]]
    cause = one_folder_down(table.source, [table.keys[row] for row in rows], name)
    raise LofftaError(
        f"all {len(rows)} images of split '{split}' are of one class, '{name}'" + (f": {cause}" if cause else ""),
        where=table.source,
        remedy=("extract that into a new cache" if cause else "look at the labels, or train on more splits") + way_out,
    )


def spread_of(table: ImageTable, rows: NDArray[np.int64], split: str) -> tuple[float, float]:
    """Mean and standard deviation of the values of some rows: what heads learn them in, as scikit-learn's scaler does.

    Raises:
        LofftaError: there is nothing to learn or to measure, for one image or all have one value; or no float64 holds
            the deviation.
    """
    assert table.values is not None
    values = table.values[rows]
    if len(np.unique(values)) == 1:
        alone = f"split '{split}' has one image"
        same = f"all {len(rows)} images of split '{split}' have the value {values[0]:g}"
        raise LofftaError(
            f"{alone if len(rows) == 1 else same}: numbers are learnt, and measured, by how they differ",
            where=table.source,
            remedy="choose a split with several values, or look at the column that they come from",
        )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        mean, deviation = float(values.mean()), float(values.std())
    if not (np.isfinite(mean) and 0 < deviation < np.inf):
        raise LofftaError(
            f"the values of split '{split}' go from {values.min():g} to {values.max():g}: their spread is no float64",
            where=table.source,
            remedy="give them in another unit, or as logarithms",
        )
    return mean, deviation


def _refuse_infinite(table: ImageTable, values: NDArray[np.float64]) -> None:
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise LofftaError(
            f"the value {values[infinite[0]]:g} is no number to learn"
            + (f", nor are {len(infinite) - 1} more" if len(infinite) > 1 else ""),
            where=f"{table.source}, first {table.keys[infinite[0]]}",
            remedy="the table of images is damaged or was not made by loffta: extract into a new cache",
        )


def _many_hot(table: ImageTable, sets: list[tuple[int, ...] | None]) -> Int8[Tensor, "n C"]:
    rows = np.repeat(np.arange(len(sets)), [len(found or ()) for found in sets])
    columns = np.array([c for found in sets for c in found or ()], dtype=np.int64)
    _refuse_out_of_range(table, columns, rows)
    targets = np.zeros((len(sets), len(table.classes)), dtype=np.int8)
    targets[rows, columns] = 1
    targets[[found is None for found in sets]] = UNKNOWN
    return torch.from_numpy(targets)


def _refuse_out_of_range(table: ImageTable, numbers: NDArray[np.int64], rows: NDArray[np.int64] | None = None) -> None:
    lowest = UNKNOWN if rows is None else 0
    wrong = np.flatnonzero((numbers < lowest) | (numbers >= len(table.classes)))
    if len(wrong):
        row = wrong[0] if rows is None else rows[wrong[0]]
        raise LofftaError(
            f"class number {numbers[wrong[0]]} is not among the {len(table.classes)} classes of this image set"
            + (f", nor are {len(wrong) - 1} more" if len(wrong) > 1 else ""),
            where=f"{table.source}, first {table.keys[row]}",
            remedy="the table of images is damaged or was not made by loffta: extract into a new cache",
        )

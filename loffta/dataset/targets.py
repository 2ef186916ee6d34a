"""What a head is to learn of an image set: targets as a tensor, and which rows have one.

In: the table of an image set.   Out: the task that its labels are for, and one target per row. Called by `train` and
`evaluate`, with the table of a cache or a fresh listing.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from jaxtyping import Int8
from numpy.typing import NDArray
from torch import Tensor

from loffta.errors import LofftaError
from loffta.heads.recipe import Recipe
from loffta.store.names import one_folder_down
from loffta.store.table import ImageTable
from loffta.tasks import TASKS, find_task

UNKNOWN = -1  # in every place of the target of an image without a label


def choose_task(table: ImageTable, name: str = "auto") -> str:
    """The name of a task that fits the labels; `auto` lets them decide.

    Raises:
        UsageError: no such task.
        LofftaError: labels that this task, or any, cannot learn.
    """
    if name == "auto":
        fitting = [known for known, task in TASKS.items() if task.label_kind == table.label_kind]
        if fitting:
            return fitting[0]
        raise LofftaError(
            f"the labels of this image set are {table.label_kind}, and no task learns these",
            where=table.source,
            remedy="extract from a table with classes, one or several per image, in its column label or labels",
        )
    task = find_task(name)
    if task.label_kind != table.label_kind:
        others = [known for known, other in TASKS.items() if other.label_kind == table.label_kind]
        raise LofftaError(
            f"the labels of this image set are {table.label_kind}, and {name} needs {task.targets}",
            where=table.source,
            remedy=f"leave --task out, which chooses {others[0]}"
            if others
            else f"extract from a table with {task.targets}",
        )
    return name


def fit_to_task(recipe: Recipe, task: str, given: Collection[str]) -> Recipe:
    """The recipe without class weights where the task has no classes to weigh, unless they were asked for.

    Args:
        given: keys of the recipe that are the user's, not the head's.
    """
    if find_task(task).label_kind == "single-label" or "class_weights" in given:
        return recipe
    return recipe.model_copy(update={"class_weights": False})


def read_targets(table: ImageTable, task: str) -> Tensor:
    """One target per row of the table, whole numbers; UNKNOWN where a row has no label.

    Returns:
        classification: [n] int64, positions in `classes`; multi-label: [n, C] int8, 1 where the image has the class.
    Raises:
        LofftaError: labels of another kind, or a class number that `classes` does not have.
    """
    choose_task(table, task)
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


def refuse_one_class(table: ImageTable, rows: NDArray[np.int64], split: str) -> None:
    """Refuses to train on single labels that are all the same: top-1 would be 1.000 whatever is wrong.

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
        remedy=("extract that into a new cache" if cause else "look at the labels, or train on more splits")
        + "; --one-class trains on one class all the same",
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

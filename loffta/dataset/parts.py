"""Which images of a table make the folds of a cross-validation or the draws of a few labels; what cannot be is refused.

In: a table, rows to train on, options.   Out: folds of rows, by `folds.draw_folds`; or an error that names the class or
the group that stands in the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.config import TrainConfig
from loffta.dataset.folds import draw_folds
from loffta.dataset.splits import OUT_OF_FOLD, name_some
from loffta.errors import LofftaError, UsageError
from loffta.store.table import ImageTable
from loffta.words import first_of, printable

N_DRAWS = 5  # of each size of --shots, unless more are asked for


def choose_parts(config: TrainConfig, table: ImageTable) -> TrainConfig:
    """The configuration with its folds or draws settled: how many draws, and that folds test what they leave out.

    Raises:
        UsageError: options that exclude each other, or one that is for others which are not there.
    """
    for option, alone, needed in (
        ("--group", config.group is not None and config.folds is None, "--folds K"),
        ("--draws", config.draws is not None and not config.shots, "--shots N,N,..."),
    ):
        if alone:
            raise UsageError(f"{option} is for {needed}", where=option, remedy=f"add {needed}, or leave it out")
    if config.folds is None and not config.shots:
        return config
    option = "--shots" if config.shots else "--folds"
    for other, given, why in (
        ("--folds", bool(config.shots) and config.folds is not None, "leave one of them out: make two runs"),
        ("--search", config.search, "search in a run of its own, and give what it finds with --set lr=..."),
        ("--select", config.select, "select in a run of its own, and name its features with --features"),
        ("--online", config.online is not None, "extract first: `loffta extract`, then `loffta train CACHE`"),
        (
            "--holdout",
            config.folds is not None and config.holdout is not None,
            "folds hold out every image in turn: leave it out",
        ),
        (
            "--validate-on",
            config.folds is not None and config.validate_on is not None,
            "`loffta evaluate RUN --split SPLIT` measures on it",
        ),
    ):
        if given:
            raise UsageError(f"{option} and {other} exclude each other", where=f"{option} {other}", remedy=why)
    if config.shots:
        return config.model_copy(update={"draws": config.draws or N_DRAWS})
    if OUT_OF_FOLD in table.split_sizes():
        raise UsageError(
            f"the image set has a split '{OUT_OF_FOLD}' of its own",
            where="--folds",
            remedy="give that split another name",
        )
    if config.test_on not in ("test", OUT_OF_FOLD):
        raise UsageError(
            f"folds test what they leave out of {config.train_on}, not split '{config.test_on}'",
            where="--test-on",
            remedy="leave it out; `loffta evaluate RUN --split SPLIT` measures on another split",
        )
    return config.model_copy(update={"test_on": OUT_OF_FOLD})


def groups_of(table: ImageTable, rows: NDArray[np.int64], column: str) -> list[str]:
    """The group of every row, which `column` is the name of.

    Raises:
        UsageError: the image set has no groups, or has others.
        LofftaError: of a row it is not known: it might be of a group that is elsewhere.
    """
    if table.groups is None or table.group_column != column:
        known = "has no groups" if table.groups is None else f"has groups '{printable(table.group_column or '')}' alone"
        raise UsageError(
            f"the image set {known}, and no '{printable(column)}'",
            where=f"--group {printable(column)}",
            remedy=f"add them: `loffta label CACHE FILE --group {printable(column)}`, and train with its --labels"
            if table.groups is None
            else f"use --group {printable(table.group_column or '')}",
        )
    found = [table.groups[row] for row in rows]
    named = [name for name in found if name is not None]
    if len(named) < len(found):
        first = printable(table.keys[rows[found.index(None)]])
        raise LofftaError(
            f"{len(found) - len(named)} of {len(found)} images have no {printable(column)}",
            where=f"--group {printable(column)}, first {first}",
            remedy="fill the column in, or take these images out of the split: each might belong to any fold",
        )
    return named


def part_rows(
    table: ImageTable,
    rows: NDArray[np.int64],
    n_folds: int,
    groups: Sequence[str] | None,
    group: str | None,
    seed: int,
) -> NDArray[np.int64]:
    """The fold in which each of some labelled rows is tested; every fold can learn every class from the others.

    Of several classes an image counts as one of the rarest that it has.

    Args:
        groups: of the rows, never on both sides; see `groups_of`.
        group: what they are called.
    Raises:
        UsageError: more folds than images, than images of a class or than groups; a class that a fold could not learn.
    """
    labels = _labels_of(table, rows)
    what = "images" if groups is None else f"{printable(group or '')} groups"
    n_units = len(rows) if groups is None else len({*groups})
    if n_folds > n_units:
        raise UsageError(
            f"{n_folds} folds cannot be made of {n_units} {what}",
            where=f"--folds {n_folds}",
            remedy=f"use --folds {n_units}"
            if n_units > 1
            else "there is nothing to part: use --holdout or more images",
        )
    if table.label_kind == "single-label":
        _refuse_rare(table, labels, groups, n_folds)
    folds = draw_folds(labels, groups, n_folds, seed)
    if table.label_kind == "single-label" and groups is not None:
        _refuse_unlearnt(table, labels, folds, n_folds)
    return folds


def check_shots(table: ImageTable, rows: NDArray[np.int64], shots: Sequence[int], option: str = "--shots") -> None:
    """Refuses sizes that cannot be drawn.

    Raises:
        UsageError: the images have no class, or several.
        UsageError: a class has fewer images than are drawn of it.
    """
    if table.label_kind != "single-label":
        raise UsageError(
            f"so many images of every class can be drawn where each has one class; these labels are {table.label_kind}",
            where=option,
            remedy="leave it out",
        )
    classes, counts = np.unique(table.labels[rows], return_counts=True)
    fewest = np.argsort(counts, kind="stable")
    few = [f"{printable(table.classes[classes[i]])} has {counts[i]}" for i in fewest if counts[i] < max(shots)]
    if few:
        n_least = int(counts.min())
        raise UsageError(
            f"there are not {max(shots)} images of every class to draw from: {first_of(few, ', ')}",
            where=f"{option} {','.join(map(str, shots))}",
            remedy=f"draw {n_least} at most, or extract more images of {'it' if len(few) == 1 else 'these classes'}",
        )


def _labels_of(table: ImageTable, rows: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.float64]:
    """What folds are to have alike."""
    if table.values is not None:
        return table.values[rows]
    if table.label_sets is None:
        return table.labels[rows]
    sets = [table.label_sets[row] or () for row in rows]
    often = np.bincount(np.array([c for found in sets for c in found], np.int64), minlength=len(table.classes))
    return np.array([min(found, key=lambda c: (often[c], c), default=-1) for found in sets], np.int64)


def _refuse_rare(table: ImageTable, labels: NDArray[Any], groups: Sequence[str] | None, n_folds: int) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    rare = [printable(table.classes[c]) for c, n in zip(classes, counts, strict=True) if n < n_folds]
    if rare:
        n_least = int(counts.min())
        raise UsageError(
            f"{name_some(rare)}: fewer images than {n_folds} folds (the fewest: {n_least})",
            where=f"--folds {n_folds}",
            remedy=(f"use --folds {n_least}, or " if n_least > 1 else "")
            + "give these classes more images, or no label",
        )
    if groups is None:
        return
    names = np.asarray(groups, dtype=object)
    for label in classes:
        of_class = {*names[labels == label]}
        if len(of_class) == 1:
            raise UsageError(
                f"class {printable(table.classes[label])} is in one group alone, {printable(of_class.pop())}: "
                "whoever is tested on it cannot have learnt it",
                where=f"--folds {n_folds}",
                remedy="give the class images of other groups, or no label",
            )


def _refuse_unlearnt(table: ImageTable, labels: NDArray[Any], folds: NDArray[np.int64], n_folds: int) -> None:
    """Few groups may all lie in one fold."""
    for label in np.unique(labels):
        if len(found := np.unique(folds[labels == label])) == 1:
            raise UsageError(
                f"all groups with class {printable(table.classes[label])} lie in fold {found[0]}, whose head could not "
                "learn it",
                where=f"--folds {n_folds}",
                remedy="use more folds or another --data-seed, or give the class images of other groups",
            )

"""What the labels of an image set come to: one class per image, several, or a number.

In: class names or numbers as a source gives them.   Out: Labels, which make the table. Called by every reader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.images.files import text_fault
from loffta.store.table import ImageTable

SEPARATOR = ";"  # between the classes of one cell of text
_WHOLE = re.compile(r"0|[1-9]\d{0,17}")
_ZEROS = re.compile(r"\.0*$")  # pandas writes 3.0 where a column of numbers has gaps
_NEGATIVE = re.compile(r"-\d+(\.0*)?")


@dataclass(frozen=True)
class Labels:
    """The label columns of a table; what they mean is said there."""

    labels: NDArray[np.int64]
    classes: tuple[str, ...] = ()
    label_sets: list[tuple[int, ...] | None] | None = None
    values: NDArray[np.float64] | None = None

    def table(
        self,
        source: str,
        keys: Sequence[str],
        sizes: Sequence[int],
        splits: Sequence[str],
        targets: dict[str, list[str | None]] | None = None,
    ) -> ImageTable:
        """The image set's table; a target that no image has is left out."""
        return ImageTable(
            source=source,
            keys=list(keys),
            sizes=np.array(sizes, dtype=np.int64),
            splits=list(splits),
            labels=self.labels,
            classes=self.classes,
            label_sets=self.label_sets,
            values=self.values,
            targets={name: paths for name, paths in (targets or {}).items() if any(paths)},
        )


def one_class(names: Sequence[str | None], classes: Sequence[str] | None = None) -> Labels:
    """A class per image, None for none.

    Args:
        classes: every class in its order; None: those that occur, whole numbers by size, other names alphabetically.
    """
    if classes is None:
        classes = _in_order({name for name in names if name is not None})
    place = {name: i for i, name in enumerate(classes)}
    return Labels(np.array([-1 if name is None else place[name] for name in names], dtype=np.int64), tuple(classes))


def many_classes(sets: Sequence[Iterable[str] | None], classes: Sequence[str] | None = None) -> Labels:
    """Any number of classes per image, None where they are unknown; `classes` as in `one_class`."""
    named = [None if found is None else set(found) for found in sets]
    if classes is None:
        classes = _in_order(set().union(*(found for found in named if found is not None)))
    place = {name: i for i, name in enumerate(classes)}
    label_sets = [None if found is None else tuple(sorted(place[name] for name in found)) for found in named]
    return Labels(np.full(len(named), -1, dtype=np.int64), tuple(classes), label_sets=label_sets)


def numbers(values: Sequence[float | None]) -> Labels:
    """A number per image, None where it is unknown."""
    known = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return Labels(np.full(len(known), -1, dtype=np.int64), values=known)


def from_cells(cells: Sequence[Any], places: Sequence[str], faults: list[str]) -> Labels:
    """Labels from cells of unknown type: lists are several classes, fractions are regression, all else is classes.

    Numbers are regression if all labels are numbers and one at least is not whole; whole numbers are classes, for that
    is what they nearly always are.

    Args:
        places: what to call each cell's image in `faults`, which is filled.
    """
    if any(isinstance(cell, list | tuple) for cell in cells):
        return from_lists(cells, places, faults)
    names = [_text(cell) for cell in cells]
    if _are_fractions({name for name in names if name is not None}):
        return from_numbers(cells, places, faults)
    _check_names(([] if name is None else [name] for name in names), places, faults)
    return one_class(_without_zeros(names))


def from_lists(cells: Sequence[Any], places: Sequence[str], faults: list[str]) -> Labels:
    """Several classes per image from lists, or from text with semicolons; `;` alone is an image with none of them."""
    sets: list[list[str] | None] = []
    for cell in cells:
        if isinstance(cell, str):
            cell = cell.split(SEPARATOR) if cell.strip() else None
        if cell is not None and not isinstance(cell, list | tuple):
            cell = [cell]
        sets.append(None if cell is None else [name for part in cell if (name := _text(part)) is not None])
    _check_names(([] if found is None else found for found in sets), places, faults)
    if _are_fractions({name for found in sets if found is not None for name in found}):
        faults.append(f"the lists hold numbers with fractions, from {places[0]} on: they are no classes")
    flat = iter(_without_zeros([name for found in sets if found is not None for name in found]))
    return many_classes([None if found is None else [next(flat) or "" for _ in found] for found in sets])


def from_numbers(cells: Sequence[Any], places: Sequence[str], faults: list[str]) -> Labels:
    """A number per image from numbers or text; empty cells are unknown."""
    values: list[float | None] = []
    for cell, place in zip(cells, places, strict=True):
        text = _text(cell)
        value = None if text is None else _as_float(text)
        if text is not None and (value is None or not math.isfinite(value)):
            faults.append(f"{place}: {text[:40]!r} is no number; an image without one has an empty cell")
            value = None
        values.append(value)
    return numbers(values)


def _check_names(rows: Iterable[list[str]], places: Sequence[str], faults: list[str]) -> None:
    for names, place in zip(rows, places, strict=True):
        for name in names:
            if fault := text_fault(name):
                faults.append(f"{place}: the label {name!r}: {fault}")
            if re.fullmatch(r"\[.*\]", name):
                faults.append(f"{place}: several labels in one text ({name[:40]!r}): write a column labels, `cat;dog`")
            if _NEGATIVE.fullmatch(name):
                faults.append(
                    f"{place}: the label {name} is negative; an image without a label has an empty cell, "
                    "and numbers to learn stand in a column value"
                )


def _in_order(names: set[str]) -> list[str]:
    return sorted(names, key=int if all(_WHOLE.fullmatch(name) for name in names) else None)


def _are_fractions(names: set[str]) -> bool:
    """Whether all are numbers, and one at least is not whole."""
    found = [_as_float(name) for name in names]
    return all(x is not None for x in found) and any(x is not None and x % 1 > 0 for x in found)


def _without_zeros(names: Sequence[str | None]) -> list[str | None]:
    """`3` for `3.0` where all names are whole numbers; else the names as they are."""
    short = [None if name is None else _ZEROS.sub("", name) for name in names]
    return short if all(name is None or _WHOLE.fullmatch(name) for name in short) else list(names)


def _text(cell: Any) -> str | None:
    """The text of one cell, None for an empty one."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return str(cell).strip() or None


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

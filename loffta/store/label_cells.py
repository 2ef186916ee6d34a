"""What the labels of an image set come to: one class per image, several, or a number.

In: class names or numbers as a source gives them.   Out: Labels, which make the table. Called by every reader.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.errors import refuse
from loffta.machine.progress import say
from loffta.store.names import alike, in_order, spelled, split_name, text_fault
from loffta.store.table import ImageTable

SEPARATOR = ";"  # between the classes of one cell of text
# Cells that pandas.read_csv takes for missing (its STR_NA_VALUES), as it and R write them; `none` is a word to both.
# Cells of text alone: a folder, a category or a name of ClassLabel is always a name.
NOTHING = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "N/A", "n/a", "NA", "<NA>", "NULL", "null", "NaN", "-NaN", "nan", "-nan", "None"}
    | {"-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"}
)
_WHOLE = re.compile(r"0|[1-9]\d{0,17}")
_ZEROS = re.compile(r"\.0*$")  # pandas writes 3.0 where a column of numbers has gaps
_COMMA = re.compile(r"[+-]?\d+,\d+")  # a decimal comma beside Excel's semicolons, or two classes
_NEGATIVE = re.compile(r"-\d+(\.0*)?")


@dataclass(frozen=True)
class Labels:
    """The label columns of a table; what they mean is said there."""

    labels: NDArray[np.int64]
    classes: tuple[str, ...] = ()
    label_sets: list[tuple[int, ...] | None] | None = None
    values: NDArray[np.float64] | None = None
    declared: bool = False  # the source lists its classes: `A` and `a` are two because it says so
    nothing: dict[str, int] = field(default_factory=dict)  # cells by the text that means no label

    def table(
        self,
        source: str,
        keys: Sequence[str],
        sizes: Sequence[int],
        splits: Sequence[str],
        targets: dict[str, list[str | None]] | None = None,
        target_classes: Mapping[str, Sequence[str]] | None = None,
    ) -> ImageTable:
        """The image set's table; a target that no image has is left out, and what means no label is said.

        Args:
            target_classes: what the classes of a kind of targets are called.

        Raises:
            UsageError: two images of one key, or names that no table can hold: all of them at once.
        """
        keys, splits = list(keys), [spelled(split) for split in splits]
        kinds = {"class": self.classes, "split": list(dict.fromkeys(splits))}
        faults = [f"two images have the key {key!r}" for key, n in Counter(keys).items() if n > 1]
        faults += [f"the {kind} {n!r}: {f}" for kind, names in kinds.items() for n in names if (f := text_fault(n))]
        faults += [f"two classes {name!r}" for name, n in Counter(self.classes).items() if n > 1]
        refuse(faults, where=f"SOURCE {source}", remedy="name them differently and run the same command again")
        if self.nothing:
            found = ", ".join(f"{text!r} {n}" for text, n in self.nothing.items())
            say(f"{source}: labels that mean nothing: {found}; these images have no label")
        present = {name: paths for name, paths in (targets or {}).items() if any(paths)}
        return ImageTable(
            source=source,
            keys=keys,
            sizes=np.array(sizes, dtype=np.int64),
            splits=splits,
            labels=self.labels,
            classes=self.classes,
            alike=(*(() if self.declared else alike(self.classes)), *alike(kinds["split"])),
            label_sets=self.label_sets,
            values=self.values,
            targets=present,
            target_classes={kind: tuple(names) for kind, names in (target_classes or {}).items() if kind in present},
        )


def one_class(names: Sequence[str | None], classes: Sequence[str] | None = None) -> Labels:
    """A class per image, None for none.

    Args:
        classes: every class in the source's own order; None: those that occur, in the order of `in_order`.
    """
    found = [None if name is None else spelled(name) for name in names]
    order = in_order({name for name in found if name is not None}) if classes is None else list(map(spelled, classes))
    place = {name: i for i, name in enumerate(order)}
    labels = np.array([-1 if name is None else place[name] for name in found], dtype=np.int64)
    return Labels(labels, tuple(order), declared=classes is not None)


def many_classes(sets: Sequence[Iterable[str] | None], classes: Sequence[str] | None = None) -> Labels:
    """Any number of classes per image, None where they are unknown; `classes` as in `one_class`."""
    named = [None if found is None else set(map(spelled, found)) for found in sets]
    if classes is None:
        order = in_order(set().union(*(found for found in named if found is not None)))
    else:
        order = list(map(spelled, classes))
    place = {name: i for i, name in enumerate(order)}
    label_sets = [None if found is None else tuple(sorted(place[name] for name in found)) for found in named]
    none = np.full(len(named), -1, dtype=np.int64)
    return Labels(none, tuple(order), label_sets=label_sets, declared=classes is not None)


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
    nothing: Counter[str] = Counter()
    names = [_named(cell, place, faults, nothing) for cell, place in zip(cells, places, strict=True)]
    if _are_fractions({name for name in names if name is not None}):
        return from_numbers(cells, places, faults)
    _check_names(([] if name is None else [name] for name in names), places, faults)
    return replace(one_class(_without_zeros(names)), nothing=dict(nothing))


def from_lists(cells: Sequence[Any], places: Sequence[str], faults: list[str]) -> Labels:
    """Several classes per image from lists, or from text with semicolons; `;` alone is an image with none of them.

    A list of nothing but missing values is unknown, and so is an empty cell; an empty list is none of the classes.
    """
    nothing: Counter[str] = Counter()
    sets: list[list[str] | None] = []
    for cell, place in zip(cells, places, strict=True):
        if isinstance(cell, bytes | str):
            text = to_text(cell, place, faults)
            parts = [part for part in text.split(SEPARATOR) if part.strip()] if text else None
        else:
            parts = list(cell) if isinstance(cell, list | tuple) else [cell]
        names = [] if parts is None else [_named(part, place, faults, nothing) for part in parts]
        unknown = parts is None or (parts and not any(names))
        sets.append(None if unknown else [name for name in names if name is not None])
    _check_names(([] if found is None else found for found in sets), places, faults)
    if _are_fractions({name for found in sets if found is not None for name in found}):
        faults.append(f"the lists hold numbers with fractions, from {places[0]} on: they are no classes")
    flat = iter(_without_zeros([name for found in sets if found is not None for name in found]))
    found = many_classes([None if found is None else [next(flat) or "" for _ in found] for found in sets])
    return replace(found, nothing=dict(nothing))


def from_numbers(cells: Sequence[Any], places: Sequence[str], faults: list[str]) -> Labels:
    """A number per image from numbers or text; empty cells are unknown."""
    nothing: Counter[str] = Counter()
    values: list[float | None] = []
    for cell, place in zip(cells, places, strict=True):
        text = _named(cell, place, faults, nothing)
        value = None if text is None else _as_float(text)
        if text is not None and (value is None or not math.isfinite(value)):
            faults.append(f"{place}: {text[:40]!r} is no number; an image without one has an empty cell")
            value = None
        values.append(value)
    return replace(numbers(values), nothing=dict(nothing))


def from_splits(
    cells: Sequence[Any], places: Sequence[str], faults: list[str], *, source: str, needed: bool
) -> list[str | None]:
    """A split per image from cells of text, in train, val and test for their other names; that is said.

    Args:
        needed: an empty cell is a fault; else None, of no split.
    """
    given = [to_text(cell, place, faults) for cell, place in zip(cells, places, strict=True)]
    if not needed:
        given = [None if name in NOTHING else name for name in given]
    for name, place in zip(given, places, strict=True):
        if name is None and not needed:
            continue
        if not name or name in NOTHING or "+" in name or text_fault(name):
            fault = f"cannot be {name!r}" if name else "is empty"
            faults.append(f"{place}: the split {fault}; images without one are a split, too: `unlabelled`")
    names = [name for name in dict.fromkeys(given) if name]
    renamed = {name: split for name in names if (split := split_name(name)) and split != name}
    if renamed:
        say(f"{source}: splits: {', '.join(f'{name} is {split}' for name, split in renamed.items())}")
    return [None if name is None else spelled(renamed.get(name, name)) for name in given]


def to_text(cell: Any, place: str, faults: list[str]) -> str | None:
    """The text of one cell, None for an empty one; bytes are UTF-8, which parquet writers leave undeclared."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bytes):
        try:
            cell = cell.decode("utf-8")
        except UnicodeDecodeError:
            faults.append(f"{place}: the bytes {cell[:20]!r} are no text in UTF-8")
            return None
    return str(cell).strip() or None


def _named(cell: Any, place: str, faults: list[str], nothing: Counter[str]) -> str | None:
    """The label of one cell, None for an empty one and for texts that mean nothing, which `nothing` counts."""
    text = to_text(cell, place, faults)
    if text in NOTHING:
        nothing[text] += 1
        return None
    return text


def _check_names(rows: Iterable[list[str]], places: Sequence[str], faults: list[str]) -> None:
    for names, place in zip(rows, places, strict=True):
        for name in names:
            if fault := text_fault(name):
                faults.append(f"{place}: the label {name!r}: {fault}")
            if re.fullmatch(r"\[.*\]", name):
                faults.append(f"{place}: several labels in one text ({name[:40]!r}): write a column labels, `cat;dog`")
            if _COMMA.fullmatch(name):
                faults.append(f"{place}: the label {name}: write a number with a point, several labels as `1;5`")
            if _NEGATIVE.fullmatch(name):
                faults.append(
                    f"{place}: the label {name} is negative; an image without a label has an empty cell, "
                    "and numbers to learn stand in a column value"
                )


def _are_fractions(names: set[str]) -> bool:
    """Whether all are numbers, and one at least is not whole."""
    found = [_as_float(name) for name in names]
    return all(x is not None for x in found) and any(x is not None and x % 1 > 0 for x in found)


def _without_zeros(names: Sequence[str | None]) -> list[str | None]:
    """`3` for `3.0` where all names are whole numbers; else the names as they are."""
    short = [None if name is None else _ZEROS.sub("", name) for name in names]
    return short if all(name is None or _WHOLE.fullmatch(name) for name in short) else list(names)


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

"""A file of labels joined to the images of a cache: by their keys, or by their file names where these are unique.

In: CSV, TSV or parquet as people write it, or as loffta does.   Out: Annotations, and who found whom. Called by
`loffta label`, and by every command that takes `--labels FILE`.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loffta.errors import UsageError, refuse, unknown_name
from loffta.store.columns import SUFFIXES, Columns, read_columns
from loffta.store.label_cells import Labels, from_cells, from_lists, from_numbers, from_splits, to_text
from loffta.store.labels import META, Annotations
from loffta.store.names import alike, text_fault
from loffta.store.table import ImageTable
from loffta.words import brief, first_of, lookalike

_KEYS = ("image", "key")
_PARSERS: dict[str, Callable[[Sequence[Any], Sequence[str], list[str]], Labels]] = {
    "label": from_cells,
    "labels": from_lists,
    "value": from_numbers,
}
_REMEDY = "mend the file (row 1 is the first below the header) and run the same command again"


@dataclass(frozen=True)
class LabelColumns:
    """Which columns of a file say what; None: those of the usual names, where there are any."""

    key: str | None = None  # image, key
    label: str | None = None  # label, labels
    value: str | None = None  # value
    split: str | None = None  # split
    group: str | None = None  # group


@dataclass(frozen=True)
class Joined:
    """What a file says of the images of a cache."""

    said: Annotations
    matched: int  # images
    by_file_name: int  # of these: their folders differ
    strangers: list[str]  # keys in the file that no image has
    unknown: list[str]  # keys of images that the file says nothing of


@dataclass(frozen=True)
class _Chosen:
    """The columns that are read; label by its parser's name."""

    key: str
    label: tuple[str, str] | None
    split: str | None
    group: str | None


def read_label_file(path: Path, table: ImageTable, columns: LabelColumns = LabelColumns()) -> Joined:
    """Reads a file and joins it to the images of `table`.

    Raises:
        UsageError: it cannot be read, lacks a column, or has rows that cannot be used: all of them at once.
        LofftaError: it is a file of loffta's about other images.
        DamageFound: it is one of loffta's, and not as it was written.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        fault = "there is no such file" if path.suffix.lower() in SUFFIXES else "it is neither .csv, .tsv nor .parquet"
        raise UsageError(f"{fault}: {brief(str(path))}", where="labels", remedy="name a table of labels that is there")
    if _is_own(path):
        if any(vars(columns).values()):
            raise UsageError(
                "this file is a set of labels that loffta wrote: its columns are known",
                where=path,
                remedy="leave --key, --label, --value, --split and --group out",
            )
        said = Annotations.read(path, remedy="take another copy of it")
        said.on(table, where=path)
        return Joined(said, len(said.keys), 0, [], list(table.keys[len(said.keys) :]))
    chosen: list[_Chosen] = []
    where = str(path)
    used = {*_KEYS, *_PARSERS, "split", "group", *filter(None, vars(columns).values())}

    def check(names: list[str], _: Mapping[str, pa.DataType]) -> None:
        chosen.append(_choose(names, columns, where))

    cells = read_columns(path, used, check, where=where)
    return _join(cells, chosen[0], table, where)


def _is_own(path: Path) -> bool:
    if path.suffix.lower() != ".parquet":
        return False
    try:
        return META in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False  # `read_columns` says what is wrong


def _choose(names: list[str], columns: LabelColumns, where: str) -> _Chosen:
    for name in filter(None, vars(columns).values()):
        if name not in names:
            raise unknown_name("column", name, names, where=where)
    if columns.label is not None and columns.value is not None:
        raise UsageError("a set has labels or values, not both", where=where, remedy="give --label or --value")
    kinds = [name for name in _PARSERS if name in names]
    label = (columns.label, "labels" if columns.label == "labels" else "label") if columns.label is not None else None
    if columns.value is not None:
        label = columns.value, "value"
    if label is None and len(kinds) > 1:
        raise UsageError(
            f"the file has the columns {' and '.join(kinds)}, and a set has one kind of label",
            where=where,
            remedy="choose one of them: --label COLUMN for classes, --value COLUMN for numbers",
        )
    label = label or ((kinds[0], kinds[0]) if kinds else None)
    key = columns.key or next((name for name in _KEYS if name in names), None)
    split = columns.split or ("split" if "split" in names else None)
    group = columns.group or ("group" if "group" in names else None)
    found = _Chosen(key or "", label, split, group)
    if key is None or not (found.label or found.split or found.group):
        lacking = "image" if key is None else "label"
        raise UsageError(
            f"the file has no column {lacking}; it has: {first_of([repr(n) for n in names], ', ') or 'none'}",
            where=where,
            remedy="name the columns image and label (or labels, value, split, group), or say which they are: "
            "--key COLUMN, --label COLUMN",
        )
    taken = [name for name in (found.key, found.label and found.label[0], found.split, found.group) if name]
    if twice := [name for name in taken if names.count(name) > 1 or taken.count(name) > 1]:
        raise UsageError(f"the column {twice[0]!r} is there twice", where=where, remedy="name each column once")
    return found


@dataclass(frozen=True)
class _Found:
    """The rows of a file that have an image."""

    n_images: int  # of the cache
    lines: list[int]  # in the file
    rows: list[int]  # of the images, in the same order
    places: list[str]  # what to call them

    def take(self, cells: Sequence[Any]) -> list[Any]:
        """Their cells of one column."""
        return [cells[line] for line in self.lines]

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """One value per image of the cache, None where the file has no row."""
        whole: list[Any] = [None] * self.n_images
        for row, value in zip(self.rows, values, strict=True):
            whole[row] = value
        return whole


def _join(cells: Columns, chosen: _Chosen, table: ImageTable, where: str) -> Joined:
    faults: list[str] = []
    places = [f"row {i}" for i in range(1, len(cells[chosen.key]) + 1)]
    if not places:
        raise UsageError("the file has no rows", where=where, remedy="write a row for each image that is labelled")
    keys = [to_text(cell, place, faults) or "" for cell, place in zip(cells[chosen.key], places, strict=True)]
    rows, n_by_name = match_keys(keys, places, table, faults)
    refuse(faults, where=where, remedy=_REMEDY, of="the labels")
    lines = [line for line, row in enumerate(rows) if row >= 0]
    if not lines:
        raise UsageError(
            f"none of the {len(keys)} keys is that of an image: {brief(keys[0])} there, {brief(table.keys[0])} here",
            where=where,
            remedy="is it a file of another image set? Write the keys as `loffta.open_cache(CACHE).table()` has them, "
            "or name their column with --key",
        )
    found = _Found(len(table), lines, [rows[line] for line in lines], [places[line] for line in lines])
    said = _read(cells, chosen, found, table, where)
    _check(said, chosen, table, where)
    known = {*found.rows}
    return Joined(
        Annotations(table.keys, table.identity(range(len(table))), **said),
        len(lines),
        n_by_name,
        [key for key, row in zip(keys, rows, strict=True) if row < 0],
        [table.key_now(row) for row in range(len(table)) if row not in known],
    )


def _read(cells: Columns, chosen: _Chosen, found: _Found, table: ImageTable, where: str) -> dict[str, Any]:
    """What the chosen columns say, as fields of Annotations."""
    faults: list[str] = []
    said: dict[str, Any] = {}
    if chosen.label is not None:
        column, parser = chosen.label
        labels = _PARSERS[parser](found.take(cells[column]), found.places, faults)
        refuse(faults, where=where, remedy=_REMEDY, of="the labels")
        said |= _labels(labels, found, table, where)
    if chosen.split is not None:
        splits = from_splits(found.take(cells[chosen.split]), found.places, faults, source=where, needed=False)
        said["splits"] = found.spread(splits)
    if chosen.group is not None:
        pairs = zip(found.take(cells[chosen.group]), found.places, strict=True)
        groups = [to_text(cell, place, faults) for cell, place in pairs]
        faults += [f"the group {group!r}: {f}" for group in dict.fromkeys(groups) if group and (f := text_fault(group))]
        said |= {"groups": found.spread(groups), "group_column": chosen.group}
    refuse(faults, where=where, remedy=_REMEDY, of="the labels")
    return said


def _labels(labels: Labels, found: _Found, table: ImageTable, where: str) -> dict[str, Any]:
    """Labels in the order of the image set's classes, where these are all among them; else in their own."""
    names, n = {*labels.classes}, len(labels.labels)
    classes = tuple(name for name in table.classes if name in names)
    classes = classes if len(classes) == len(names) else labels.classes
    numbered = labels.table(where, found.places, [0] * n, []).numbered_by(classes)
    said = Annotations.of(numbered)
    return {"kind": said.kind, "classes": classes, "labels": found.spread(said.labels or ())}


def _check(said: Mapping[str, Any], chosen: _Chosen, table: ImageTable, where: str) -> None:
    """Refuses labels that say nothing, and names that nobody tells apart."""
    if chosen.label is not None and all(label is None for label in said["labels"]):
        raise UsageError(
            f"no cell of the column {chosen.label[0]!r} holds a label",
            where=where,
            remedy="name the column with --label or --value; or give a file with --split or --group alone",
        )
    splits = [split for split in dict.fromkeys(said.get("splits", ())) if split]
    known = {*table.classes, *table.splits}
    pairs = [pair for pair in (*alike(said.get("classes", ())), *alike(splits)) if not {*pair} <= known]
    if pairs:
        raise UsageError(
            f"names of classes or splits that look the same: {first_of([f'{a!r} and {b!r}' for a, b in pairs], ', ')}",
            where=where,
            remedy="write one of them in both places; if they are two, let them differ by more than case or spaces",
        )


def match_keys(
    keys: Sequence[str], places: Sequence[str], table: ImageTable, faults: list[str]
) -> tuple[list[int], int]:
    """The row of each key, -1 where no image has it; and how many were found by their file names alone.

    By the key that the image has now; by the one that it had when it was extracted; by its file name, where that is
    unique on both sides. A key that is an image's but for case or form is a fault: nobody meant two images.
    """
    row_of = {key: row for row, key in enumerate(table.keys)} | {table.key_now(r): r for r in range(len(table))}
    rows = [row_of.get(posixpath.normpath(key), -1) if key else -1 for key in keys]
    faults += [f"{place}: the key is empty" for key, place in zip(keys, places, strict=True) if not key]
    n_by_name = 0
    if -1 in rows:
        names = Counter(PurePosixPath(table.key_now(row)).name for row in range(len(table)))
        by_name = {PurePosixPath(key).name: row for key, row in row_of.items() if names[PurePosixPath(key).name] == 1}
        looks = {lookalike(key): key for key in row_of}
        given = Counter(PurePosixPath(key).name for key in keys)
        for i, key in enumerate(keys):
            name = PurePosixPath(key).name
            if rows[i] >= 0 or not key:
                continue
            if name in by_name and (given[name] == 1 or "/" not in key):
                rows[i], n_by_name = by_name[name], n_by_name + 1
            elif lookalike(key) in looks:
                there = looks[lookalike(key)]
                faults.append(f"{places[i]}: {key!r} differs from {there!r} in case or Unicode form alone")
            elif "/" not in key and names[name] > 1:
                faults.append(f"{places[i]}: {names[name]} images have the file name {key!r}: give the whole key")
    first: dict[int, str] = {}
    for row, key, place in zip(rows, keys, places, strict=True):
        if row >= 0 and first.setdefault(row, place) != place:
            faults.append(f"{place}: {key!r} is the image of {first[row]}, too")
    return rows, n_by_name

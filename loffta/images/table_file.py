"""`table:FILE`: images listed in a CSV, TSV or parquet file with the columns image, label and, if wanted, split.

`image` is a path relative to the file's folder, or to another that the user named (`table:FILE#root=DIR`), and so are
`mask`, `depth` and `instances` where they are given.
`label` is a class name or a number, empty for none; `labels` several classes; `value` a number to learn: a table has
one of the three. Without `split` all rows are train. All that is wrong with a table is told at once.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loffta.errors import UsageError
from loffta.images.files import (
    FileList,
    FileRoot,
    Place,
    existing,
    file_fault,
    first_of,
    key_fault,
    refuse,
    say_followed,
    split_name,
    text_fault,
    to_key,
)
from loffta.images.labels import NOTHING, Labels, from_cells, from_lists, from_numbers, to_text
from loffta.machine.progress import say
from loffta.store.table import ImageTable

SUFFIXES = (".csv", ".tsv", ".parquet")
SEPARATORS = {
    ",": "commas",
    ";": "semicolons",
    "\t": "tabs",
}  # between cells; Excel writes `;` where a comma is decimal
LABELS: dict[str, Callable[[Sequence[Any], Sequence[str], list[str]], Labels]] = {
    "label": from_cells,
    "labels": from_lists,
    "value": from_numbers,
}
TARGETS = ("mask", "depth", "instances")
PATHS = ("image", *TARGETS)
USED = (*PATHS, *LABELS, "split")

Columns = dict[str, list[Any]]


class TableFile:
    """The images of one table; keys are the paths in its column `image`."""

    def __init__(self, path: Path, root: Path | None = None, *, follow_links: bool = False) -> None:
        folder = path.parent.resolve()
        self._root = FileRoot(folder if root is None else root, follow_links=follow_links)
        self.read = self._root.read  # of an image or target
        self._moved = None if root is None else folder  # where paths with `..` begin
        self._path = folder / path.name
        named = None if root is None else str(self._root.path)
        self._source = f"table:{Place(str(self._path), named, follow_links)}"

    def listing(self) -> ImageTable:
        """The rows in the table's order; sizes are asked of the file system, no image is opened.

        Raises:
            UsageError: the file cannot be read, a column is missing, or rows cannot be used: all of them at once.
        """
        columns = _read_parquet(self._path) if self._path.suffix.lower() == ".parquet" else _read_text(self._path)
        extra = [repr(name) for name in columns if name not in USED]
        if extra:
            say(f"{self._source}: ignored columns: {first_of(extra, ', ')}")
        images = FileList(self._root)
        faults = images.faults
        places = [f"row {row}" for row in range(1, len(columns["image"]) + 1)]
        for path, place in zip(columns["image"], places, strict=True):
            images.add("" if path is None else self._inside(str(path)), place)
        splits = self._splits(columns, faults)
        column = next(name for name in LABELS if name in columns)
        labels = LABELS[column](columns[column], places, faults)
        targets = {name: self._targets(name, columns[name], faults) for name in TARGETS if name in columns}
        refuse(
            faults,
            where=f"SOURCE {self._source}",
            remedy="mend the table (row 1 is the first below the header) and run the same command again"
            + (
                ""
                if self._moved
                else "; images that lie elsewhere: --image-root DIR; links that lead there: --follow-links"
            ),
        )
        say_followed(self._source, self._root, images.sizes)
        if not images.sizes:
            raise UsageError("the table has no rows", where=f"SOURCE {self._source}", remedy="list an image a row")
        return labels.table(self._source, list(images.sizes), list(images.sizes.values()), splits, targets)

    def _targets(self, name: str, values: list[Any], faults: list[str]) -> list[str | None]:
        """The paths of one column, None where a cell is empty."""
        found: list[str | None] = []
        for row, value in enumerate(values, start=1):
            path = str(value or "").strip()
            path = self._inside(path) if path else path
            fault = key_fault(path) if path else None
            if path and not fault:
                path = to_key(path)
                _, fault = file_fault(self._root, path)
            if fault:
                faults.append(f"row {row}: the {name} {path!r}: {fault}")
            found.append(path or None)
        return found

    def _inside(self, path: str) -> str:
        """A path as it is, but relative to the folder that the user named for images where it leads into that."""
        if self._moved is None or not (path.startswith("/") or ".." in path.split("/")):
            return path
        whole = os.path.normpath(self._moved / path)
        root = f"{self._root.path}/"
        return whole.removeprefix(root) if whole.startswith(root) else path

    def _splits(self, columns: Columns, faults: list[str]) -> list[str]:
        if "split" not in columns:
            return ["train"] * len(columns["image"])
        given = [to_text(value, f"row {row}", faults) or "" for row, value in enumerate(columns["split"], start=1)]
        for row, name in enumerate(given, start=1):
            if not name or name in NOTHING or "+" in name or text_fault(name):
                fault = f"cannot be {name!r}" if name else "is empty"
                faults.append(f"row {row}: the split {fault}; images without one are a split, too: `unlabelled`")
        renamed = {name: split for name in dict.fromkeys(given) if (split := split_name(name)) and split != name}
        if renamed:
            say(f"{self._source}: splits: {', '.join(f'{name} is {split}' for name, split in renamed.items())}")
        return [renamed.get(name, name) for name in given]


def open_table(text: str) -> TableFile:
    """The image set of a table that is there.

    Raises:
        UsageError: there is no such file, or it is neither CSV nor parquet.
    """
    place = Place.parse(text)
    path = existing(place.path, source=f"table:{text}", folder=False)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"'{path.name}' is neither .csv, .tsv nor .parquet",
            where=f"SOURCE table:{text}",
            remedy="save the table as CSV or as parquet, with the columns image, label and split",
        )
    root = None if place.root is None else existing(place.root, source=f"table:{text}", folder=True)
    return TableFile(path, root, follow_links=place.follow_links)


def _read_text(path: Path) -> Columns:
    """Every column as text; the columns and each row's cells are checked. The header says what separates the cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        separator = _separator(text)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error
    if separator != ("\t" if path.suffix.lower() == ".tsv" else ","):
        say(f"table:{path}: the cells are separated by {SEPARATORS[separator]}")
    lines = [line for line in lines if len(line) > 1 or "".join(line).strip()]  # a blank line is no row and no header
    header = [name.strip() for name in lines[0]] if lines else []
    _check_columns(header, path)
    faults = [
        f"row {i}: {len(row)} cells under {len(header)} columns"
        for i, row in enumerate(lines[1:], start=1)
        if len(row) != len(header)
    ]
    refuse(
        faults,
        where=f"SOURCE table:{path}",
        remedy=f"quote cells that hold {SEPARATORS[separator]}, and run the same command again",
    )
    return {name: [row[i] for row in lines[1:]] for i, name in enumerate(header)}


def _separator(text: str) -> str:
    """What separates the header's cells: the sign that makes the most known columns of it; a comma where none does."""
    header = next((line for line in text.splitlines() if line.strip()), "")

    def n_known(separator: str) -> int:
        names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        return len({name.strip() for name in names}.intersection(USED))

    return max(SEPARATORS, key=n_known)  # of equals the first


def _read_parquet(path: Path) -> Columns:
    """The columns that are used; the others by name alone, for they may hold the images themselves."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_columns(schema.names, path)
            for name in PATHS:
                kind = schema.field(name).type if name in schema.names else pa.string()
                if isinstance(kind, pa.DictionaryType):
                    kind = kind.value_type
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                    raise UsageError(
                        f"the column {name} holds {kind}, not paths",
                        where=f"SOURCE table:{path}",
                        remedy="save the images as files and write their paths, relative to the table's folder",
                    )
            table = file.read(columns=[name for name in schema.names if name in USED], use_threads=False)
            return {name: table[name].to_pylist() if name in USED else [] for name in schema.names}
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _check_columns(names: list[str], path: Path) -> None:
    kinds = [name for name in LABELS if name in names]
    missing = [name for name in ("image", kinds[0] if kinds else "label") if name not in names]
    twice = [name for name in USED if names.count(name) > 1]
    if missing or twice:
        problem = f"no column {' and no column '.join(missing)}" if missing else f"two columns {' and '.join(twice)}"
        raise UsageError(
            f"the table has {problem}; it has: {first_of([repr(n) for n in names], ', ') or 'none'}",
            where=f"SOURCE table:{path}",
            remedy="name the columns image, label and, if wanted, split, with commas, semicolons or tabs between them; "
            "a cell of label may be empty",
        )
    if len(kinds) > 1:
        raise UsageError(
            f"the table has the columns {' and '.join(kinds)}, but an image set has one kind of label",
            where=f"SOURCE table:{path}",
            remedy="keep label (one class), labels (several, as cat;dog) or value (a number)",
        )


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"cannot read the table ({type(error).__name__}: {error})",
        where=f"SOURCE table:{path}",
        remedy="save it as CSV in UTF-8, or as parquet",
    )

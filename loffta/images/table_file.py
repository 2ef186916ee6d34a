"""`table:FILE`: images listed in a CSV, TSV or parquet file with the columns image, label and, if wanted, split.

`image` is a path relative to the file's folder, or to another that the user named (`table:FILE#root=DIR`), and so are
`mask`, `depth`, `instances` and `boxes` where they are given; a cell of `boxes` may be the JSON itself.
`label` is a class name or a number, empty for none; `labels` several classes; `value` a number to learn: a table has
one of the three. Without `split` all rows are train. All that is wrong with a table is told at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from loffta.errors import UsageError, refuse
from loffta.images.box_cells import box_classes
from loffta.images.files import FileList, FileRoot, Place, existing, file_fault, key_fault, say_followed, to_key
from loffta.machine.progress import say
from loffta.store.columns import SUFFIXES, read_columns
from loffta.store.label_cells import Labels, from_cells, from_lists, from_numbers, from_splits
from loffta.store.table import ImageTable
from loffta.words import first_of

LABELS: dict[str, Callable[[Sequence[Any], Sequence[str], list[str]], Labels]] = {
    "label": from_cells,
    "labels": from_lists,
    "value": from_numbers,
}
TARGETS = ("mask", "depth", "instances", "boxes")
_INLINE = "["  # so begins JSON of boxes; a file of such a name is written ./[...
PATHS = ("image", *TARGETS)
USED = (*PATHS, *LABELS, "split")


class TableFile:
    """The images of one table; keys are the paths in its column `image`."""

    def __init__(self, path: Path, root: Path | None = None, *, follow_links: bool = False) -> None:
        folder = path.parent.resolve()
        self._root = FileRoot(folder if root is None else root, follow_links=follow_links)
        self._moved = None if root is None else folder  # where paths with `..` begin
        self._path = folder / path.name
        named = None if root is None else str(self._root.path)
        self._source = f"table:{Place(str(self._path), named, follow_links)}"

    def listing(self) -> ImageTable:
        """The rows in the table's order; sizes are asked of the file system, no image is opened.

        Raises:
            UsageError: the file cannot be read, a column is missing, or rows cannot be used: all of them at once.
        """
        columns = read_columns(self._path, USED, self._check, where=f"SOURCE table:{self._path}")
        extra = [repr(name) for name in columns if name not in USED]
        if extra:
            say(f"{self._source}: ignored columns: {first_of(extra, ', ')}")
        images = FileList(self._root)
        faults = images.faults
        places = [f"row {row}" for row in range(1, len(columns["image"]) + 1)]
        for path, place in zip(columns["image"], places, strict=True):
            images.add("" if path is None else self._inside(str(path)), place)
        splits: list[str | None] = ["train"] * len(places)
        if "split" in columns:
            splits = from_splits(columns["split"], places, faults, source=self._source, needed=True)
        column = next(name for name in LABELS if name in columns)
        labels = LABELS[column](columns[column], places, faults)
        targets = {name: self._targets(name, columns[name], faults) for name in TARGETS if name in columns}
        boxes = [(f"row {row}", key) for row, key in enumerate(targets.get("boxes", ()), start=1) if key]
        classes = {"boxes": box_classes(self._readable(boxes, faults), faults)} if not faults else {}
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
        return labels.table(
            self._source,
            list(images.sizes),
            list(images.sizes.values()),
            [split or "" for split in splits],
            targets,
            classes,
        )

    def read(self, key: str) -> bytes:
        """The bytes of an image or target; raises as `FileRoot.read`."""
        return key.encode() if key.startswith(_INLINE) else self._root.read(key)

    def _readable(self, cells: list[tuple[str, str]], faults: list[str]) -> Iterator[tuple[str, bytes]]:
        """(place, JSON) of cells that hold it or name its file."""
        for place, key in cells:
            try:
                yield place, self.read(key)
            except OSError as error:
                faults.append(f"{place}: the boxes {key!r}: {error.strerror or error}")

    def _check(self, names: list[str], kinds: Mapping[str, pa.DataType]) -> None:
        where = f"SOURCE table:{self._path}"
        _check_columns(names, where)
        for name in PATHS:
            kind = kinds.get(name, pa.string())
            if isinstance(kind, pa.DictionaryType):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UsageError(
                    f"the column {name} holds {kind}, not paths",
                    where=where,
                    remedy="save the images as files and write their paths, relative to the table's folder"
                    + "; a cell of boxes may be JSON: [[left, top, right, bottom, class], ...]" * (name == "boxes"),
                )

    def _targets(self, name: str, values: list[Any], faults: list[str]) -> list[str | None]:
        """The paths of one column, None where a cell is empty."""
        found: list[str | None] = []
        for row, value in enumerate(values, start=1):
            path = str(value or "").strip()
            if name == "boxes" and path.startswith(_INLINE):
                found.append(" ".join(path.split()))
                continue
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


def _check_columns(names: list[str], where: str) -> None:
    kinds = [name for name in LABELS if name in names]
    missing = [name for name in ("image", kinds[0] if kinds else "label") if name not in names]
    twice = [name for name in USED if names.count(name) > 1]
    if missing or twice:
        problem = f"no column {' and no column '.join(missing)}" if missing else f"two columns {' and '.join(twice)}"
        raise UsageError(
            f"the table has {problem}; it has: {first_of([repr(n) for n in names], ', ') or 'none'}",
            where=where,
            remedy="name the columns image, label and, if wanted, split, with commas, semicolons or tabs between them; "
            "a cell of label may be empty",
        )
    if len(kinds) > 1:
        raise UsageError(
            f"the table has the columns {' and '.join(kinds)}, but an image set has one kind of label",
            where=where,
            remedy="keep label (one class), labels (several, as cat;dog) or value (a number)",
        )

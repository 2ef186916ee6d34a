"""labels/<name>.parquet: what is said of the images of a cache, beside what they are; a person may change it any time.

Columns: row and key, and any of split, label | labels | value, group, target:<name>, null where it is not known. The
set `source` is what the image set itself says; it also has moved_to and gone. The metadata hold the classes in order,
a digest, and the identity of the images. In: an ImageTable or a file.   Out: Annotations, and a table that says them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loffta.errors import DamageFound, LofftaError, UsageError
from loffta.files.documents import from_json
from loffta.store import FORMAT
from loffta.store.arrow import to_column, to_numbers
from loffta.store.columns import SUFFIXES
from loffta.store.digests import digest_of
from loffta.store.reads import read_file, reason
from loffta.store.table import MAX_BYTES, NO_SPLIT, ImageTable, LabelKind
from loffta.words import brief, file_name, lookalike

SOURCE = "source"
META = b"loffta"
_TARGET = "target:"
_LABELS: dict[LabelKind, tuple[str, pa.DataType]] = {
    "single-label": ("label", pa.int64()),
    "multi-label": ("labels", pa.list_(pa.int64())),
    "regression": ("value", pa.float64()),
}
_TYPES: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "key": pa.string(),
    "split": pa.string(),
    **dict(_LABELS.values()),
    "group": pa.string(),
    "moved_to": pa.string(),
    "gone": pa.bool_(),
}


@dataclass(frozen=True)
class Annotations:
    """What one set says of the first so many images of a cache. A column that is None leaves the image set its own."""

    keys: Sequence[str]
    images: str  # which these are: `ImageTable.identity`
    splits: list[str | None] | None = None  # None: in no split
    kind: LabelKind | None = None  # of the labels; None: it says nothing of labels
    classes: tuple[str, ...] = ()
    labels: list[Any] | None = None  # per image a position in `classes`, rising positions, or a number; None: unknown
    groups: list[str | None] | None = None
    group_column: str | None = None
    targets: dict[str, list[str | None]] | None = None
    moved: dict[int, str] = field(default_factory=dict)  # as in ImageTable; of the set `source`
    gone: frozenset[int] = frozenset()

    @classmethod
    def of(cls, table: ImageTable) -> Annotations:
        """All that a table says of its images."""
        labels: list[Any] = [None if label < 0 else label for label in table.labels.tolist()]
        if table.label_sets is not None:
            labels = list(table.label_sets)
        elif table.values is not None:
            labels = [table.value(row) for row in range(len(table))]
        return cls(
            table.keys,
            table.identity(range(len(table))),
            [split or None for split in table.splits],
            table.label_kind,
            table.classes,
            labels,
            table.groups,
            table.group_column,
            table.targets,
        )

    @cached_property
    def digest(self) -> str:
        """BLAKE2b-128 over all of it."""
        rows: list[Any] = [self.keys, self.images, self.splits, self.kind, list(self.classes), self.labels, self.groups]
        more: list[Any] = [self.group_column, self.targets, sorted(self.moved.items()), sorted(self.gone)]
        return digest_of([*rows, *more])

    def on(self, table: ImageTable, *, where: str | Path, places: bool = False) -> ImageTable:
        """The same images with what is said here; of images that came later it says nothing.

        Args:
            where: these annotations are, for messages.
            places: also where the source has the images now.
        Raises:
            LofftaError: they are of other images.
        """
        n_later = len(table) - len(self.keys)
        if n_later < 0 or table.identity(range(len(self.keys))) != self.images:
            raise self._other_set(table, where)
        later = [None] * n_later
        said: dict[str, Any] = {"moved": self.moved, "gone": self.gone} if places else {}
        if self.splits is not None:
            said["splits"] = [split or NO_SPLIT for split in (*self.splits, *later)]
        if self.kind is not None:
            said |= _label_fields(self.kind, [*(self.labels or ()), *later], self.classes)
        if self.groups is not None:
            said |= {"groups": [*self.groups, *later], "group_column": self.group_column}
        if self.targets is not None:
            said["targets"] = {name: [*paths, *later] for name, paths in self.targets.items()}
        return replace(table, **said)

    def _other_set(self, table: ImageTable, where: str | Path) -> LofftaError:
        pairs = zip(self.keys, table.keys, strict=False)
        row = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        first = f"the first is {self.keys[row]} there and {table.keys[row]} here" if row is not None else ""
        rest = f"{len(self.keys):,} images there and {len(table):,} here, or their sizes in bytes differ"
        return LofftaError(
            f"these labels are of another image set: {first or rest}",
            where=where,
            remedy="take labels of this cache; those of another set as a CSV file with the columns image and label",
        )

    def to_parquet(self) -> bytes:
        """The bytes of the file."""
        meta = {
            "format": FORMAT,
            "images": self.images,
            "label_kind": self.kind,
            "classes": list(self.classes),
            "group_column": self.group_column,
            "targets": None if self.targets is None else list(self.targets),
            "digest": self.digest,
        }
        columns = self._columns()
        schema = pa.schema({name: _TYPES.get(name, pa.string()) for name in columns})
        arrays = [to_column(column, kind.type) for column, kind in zip(columns.values(), schema, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({META: json.dumps(meta).encode()}))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, write_page_checksum=True)
        return buffer.getvalue()

    def _columns(self) -> dict[str, Any]:
        """By name, those that there are."""
        rows = range(len(self.keys))
        columns: dict[str, Any] = {"row": rows, "key": self.keys, "split": self.splits}
        if self.kind is not None:
            columns[_LABELS[self.kind][0]] = self.labels
        columns["group"] = self.groups
        columns |= {_TARGET + name: paths for name, paths in (self.targets or {}).items()}
        if self.moved or self.gone:
            columns["moved_to"] = [self.moved.get(row) for row in rows]
            columns["gone"] = [row in self.gone for row in rows]
        return {name: column for name, column in columns.items() if column is not None}

    @classmethod
    def read(cls, path: Path, *, remedy: str) -> Annotations:
        """Reads a file and checks it against its digest.

        Raises:
            DamageFound: it is not as it was written, or no file of annotations.
        """
        try:
            data = read_file(path, MAX_BYTES)
            with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
                columns = file.read(use_threads=False)  # see `store.table`
            meta = from_json(columns.schema.metadata[META])
            if meta["format"] > FORMAT:
                raise ValueError(f"format {meta['format']} is newer than this loffta knows ({FORMAT})")
            found = cls._from_columns(columns, meta)
            if meta["digest"] != found.digest:
                raise ValueError("it does not match its digest")
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, OverflowError) as error:
            raise DamageFound(
                f"these labels are not as they were written ({type(error).__name__}: {reason(error)})",
                where=path,
                remedy=remedy,
            ) from error
        return found

    @classmethod
    def _from_columns(cls, table: pa.Table, meta: dict[str, Any]) -> Annotations:
        """What the columns say; ValueError, KeyError or TypeError where they are not those of annotations."""
        for name in table.column_names:
            due = _TYPES.get(name) or (pa.string() if name.startswith(_TARGET) else None)
            if due is not None and table.schema.field(name).type != due:
                raise ValueError(f"its column '{name}' is of type {table.schema.field(name).type}")
        kind, classes = meta["label_kind"], tuple(meta["classes"])
        if kind not in (None, *_LABELS) or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"its labels are {brief(kind)}, or its classes no text")
        if table["key"].null_count or not np.array_equal(to_numbers(table["row"]), np.arange(len(table))):
            raise ValueError("its rows are in another order, or have no keys")
        cells: dict[str, list[Any]] = {
            name: table[name].to_pylist() for name in table.column_names if name in _TYPES or _TARGET in name
        }
        labels = cells[_LABELS[kind][0]] if kind is not None else None
        if kind == "multi-label":
            labels = [None if found is None else tuple(found) for found in labels or ()]
        if kind != "regression":
            _check_positions([place for found in labels or () for place in _places(found)], len(classes))
        moved, gone = cells.get("moved_to", []), cells.get("gone", [])
        return cls(
            cells["key"],
            str(meta["images"]),
            cells.get("split"),
            kind,
            classes,
            labels,
            cells.get("group"),
            meta["group_column"],
            None if meta["targets"] is None else {name: cells[_TARGET + name] for name in meta["targets"]},
            {row: key for row, key in enumerate(moved) if key is not None},
            frozenset(row for row, is_gone in enumerate(gone) if is_gone),
        )


def check_name(name: str) -> None:
    """Refuses what cannot be the name of a set that a person makes.

    Raises:
        UsageError: it is no plain file name, is loffta's own, or would be taken for a file.
    """
    fault = None
    if file_name(name) != name:
        fault = "is no plain name: letters, digits and . _ + @ = - are, up to 100"
    elif lookalike(name).partition("@")[0] == SOURCE:
        fault = "is what the image set itself says, and `loffta extract` writes it"
    elif name.lower().endswith(SUFFIXES):
        fault = "would be taken for a file"
    if fault:
        raise UsageError(
            f"the name {brief(name)} {fault}", where="--name", remedy="choose another, as --name corrected"
        )


def _label_fields(kind: LabelKind, labels: list[Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """The fields of an ImageTable that hold labels of one kind."""
    single = [-1 if kind != "single-label" or label is None else label for label in labels]
    return {
        "classes": classes,
        "labels": np.array(single, dtype=np.int64),
        "label_sets": labels if kind == "multi-label" else None,
        "values": np.array(labels, dtype=np.float64) if kind == "regression" else None,  # None becomes NaN
    }


def _places(label: Any) -> tuple[int, ...]:
    return () if label is None else label if isinstance(label, tuple) else (label,)


def _check_positions(places: list[int], n_classes: int) -> None:
    if places and not (min(places) >= 0 and max(places) < n_classes):
        raise ValueError("a label is not among its classes")

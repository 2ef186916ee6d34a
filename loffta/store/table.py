"""images.parquet: the table of an image set, made once from a listing and only ever appended to.

Columns: row, key (unique), size (bytes), split, label; where the set has them also labels (several classes per image),
value (a number per image) and target:<name> (where its mask or depth map is). The metadata hold the classes in order.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loffta.errors import DamageFound, LofftaError, UsageError, unknown_name
from loffta.files.documents import from_json
from loffta.store import FORMAT
from loffta.store.arrow import to_numbers
from loffta.store.digests import columns_digest, digest_of
from loffta.store.reads import read_file, reason
from loffta.store.texts import Names, Texts, to_arrow

_TYPES: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "key": pa.string(),
    "size": pa.int64(),
    "split": pa.string(),
    "label": pa.int64(),
}
_META = b"loffta"
_TARGET = "target:"
_KNOWN = (*_TYPES, "labels", "value")
_SHOWN = 5
NO_SPLIT = ""  # of an image that annotations leave out; no image set has such a name
MAX_BYTES = 8 << 30  # of images.parquet: 100 million images take 1 to 4 GB

LabelKind = Literal["single-label", "multi-label", "regression"]


@dataclass(frozen=True)
class ImageTable:
    """One row per image, in an order that never changes."""

    source: str  # as the user named it
    keys: Sequence[str]
    sizes: NDArray[np.int64]  # bytes of the encoded image
    splits: Sequence[str]
    labels: NDArray[np.int64]  # position in `classes`; -1 where there is none
    classes: tuple[str, ...]
    label_sets: list[tuple[int, ...] | None] | None = None  # multi-label: rising positions in `classes`; None: unknown
    values: NDArray[np.float64] | None = None  # regression; NaN: unknown
    targets: dict[str, list[str | None]] = field(default_factory=dict)  # by name; a source reads them as it does keys
    target_classes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of masks and boxes; in no digest
    groups: list[str | None] | None = None  # who each image is of: a patient, a site; None: unknown
    group_column: str | None = None  # what they are called
    moved: dict[int, str] = field(default_factory=dict)  # by row: what the source reads an image by now, if not its key
    gone: frozenset[int] = frozenset()  # rows whose files the source does not have any more
    alike: tuple[tuple[str, str], ...] = ()  # of a listing alone: classes or splits that look the same
    not_taken: dict[str, int] = field(default_factory=dict)  # files beside, by ending; not in the digest

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def label_kind(self) -> LabelKind:
        """Whether an image has one class, several or a number; single-label where none has any."""
        if self.label_sets is not None:
            return "multi-label"
        return "single-label" if self.values is None else "regression"

    @cached_property
    def digest(self) -> str:
        """BLAKE2b-128 over keys, sizes, splits, labels, classes and the optional columns that are there."""
        rows: list[Any] = [self.keys, self.sizes, self.splits, self.labels, self.classes]
        return digest_of([*rows, *filter(None, [self._optional()])])

    def says_the_same(self, other: ImageTable) -> bool:
        """Whether all that `digest` is over is equal; sooner told than by two digests."""
        ours, theirs = self.split_names, other.split_names
        return (
            (self.classes, ours.known) == (other.classes, theirs.known)
            and np.array_equal(ours.codes, theirs.codes)
            and np.array_equal(self.sizes, other.sizes)
            and np.array_equal(self.labels, other.labels)
            and self.keys == other.keys
            and self._optional() == other._optional()
        )

    @cached_property
    def split_names(self) -> Names:
        """`splits`, as which of few names each is."""
        return Names.of(self.splits)

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Rows of one split, or of several joined by '+'."""
        return self.split_names.rows_of(set(split.split("+")))

    def check_split(self, split: str, *, where: str | Path) -> None:
        """Raises UsageError where the set has no such split, or lacks one of several joined by '+'."""
        known = self.split_sizes()
        for part in split.split("+"):
            if part not in known:
                raise unknown_name("split", part, known, where=where)

    def split_sizes(self) -> dict[str, int]:
        """Rows per split, in order of appearance; those of no split are not among them."""
        return {split: n for split, n in self.split_names.counts().items() if split != NO_SPLIT}

    def key_now(self, row: int) -> str:
        """What the source reads an image by today: its key, or where its file has been moved since."""
        return self.moved.get(row, self.keys[row])

    def class_name(self, row: int) -> str | None:
        """The class of one row, None where it has none or may have several."""
        label = int(self.labels[row])
        return self.classes[label] if label >= 0 else None

    def class_names(self, row: int) -> tuple[str, ...] | None:
        """The classes of one row of a multi-label set in the order of `classes`, None where it is not labelled."""
        found = self.label_sets[row] if self.label_sets is not None else None
        return None if found is None else tuple(self.classes[i] for i in found)

    def numbered_by(self, classes: tuple[str, ...]) -> ImageTable:
        """The same images with labels as positions in other classes, by name; no label where one is not among them."""
        if classes == self.classes:
            return self
        place = {name: i for i, name in enumerate(classes)}
        moved = np.array([*(place.get(name, -1) for name in self.classes), -1], dtype=np.int64)  # -1 stays -1
        sets = self.label_sets
        if sets is not None:
            found = [None if labels is None else sorted(moved[list(labels)].tolist()) for labels in sets]
            sets = [None if labels is None or -1 in labels else tuple(labels) for labels in found]
        return replace(self, classes=classes, labels=moved[self.labels], label_sets=sets)

    def is_labelled(self) -> NDArray[np.bool_]:
        """Per row, whether its class, its classes or its number are known; none of several classes is known."""
        if self.label_sets is not None:
            return np.array([found is not None for found in self.label_sets], bool)
        return self.labels >= 0 if self.values is None else ~np.isnan(self.values)

    def first(self, n_rows: int, classes: tuple[str, ...]) -> ImageTable | None:
        """The table as it was when it had so many rows and these classes; None where these rows have others."""
        numbered, here = self.numbered_by(classes), slice(n_rows)
        sets = zip((numbered.label_sets or ())[here], (self.label_sets or ())[here], strict=True)
        if (numbered.labels[here] < self.labels[here].clip(max=0)).any() or any(a is None is not b for a, b in sets):
            return None
        return replace(
            numbered,
            keys=self.keys[here],
            sizes=self.sizes[here],
            splits=self.splits[here],
            labels=numbered.labels[here],
            label_sets=None if numbered.label_sets is None else numbered.label_sets[here],
            values=None if self.values is None else self.values[here],
            # a column that says nothing of these rows came with later ones
            targets={name: paths[here] for name, paths in self.targets.items() if any(paths[here])},
            groups=None if self.groups is None else self.groups[here],
        )

    def to_parquet(self) -> bytes:
        """The bytes of images.parquet."""
        needed: list[Any] = [np.arange(len(self)), self.keys, self.sizes, self.splits, self.labels]
        columns = dict(zip(_TYPES, needed, strict=True)) | self._optional()
        schema = pa.schema({name: _TYPES.get(name) or _optional_type(name) for name in columns})
        arrays = [to_arrow(column, kind.type) for column, kind in zip(columns.values(), schema, strict=True)]
        meta = {
            "format": FORMAT,
            "source": self.source,
            "label_kind": self.label_kind,
            "classes": list(self.classes),
            "digest": self.digest,
            "columns_digest": self._columns_digest(self.digest, arrays[1]),
        } | ({"not_taken": self.not_taken} if self.not_taken else {})
        table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({_META: json.dumps(meta).encode()}))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, write_page_checksum=True)
        return buffer.getvalue()

    def identity(self, rows: Sequence[int] | NDArray[np.int64]) -> str:
        """BLAKE2b-128 over keys and sizes of rising rows: which images they are, whatever is said of them."""
        first, stop = int(rows[0]), int(rows[-1]) + 1
        if stop - first != len(rows):  # some of a unit: of one array, most often
            return digest_of([[self.keys[row] for row in rows], self.sizes[np.asarray(rows)]])
        if (first, stop) not in self._identities:
            self._identities[first, stop] = digest_of([self.keys[first:stop], self.sizes[first:stop]])
        return self._identities[first, stop]

    @cached_property
    def _identities(self) -> dict[tuple[int, int], str]:
        return {}  # every array of a cache asks for the same units

    @classmethod
    def read(cls, path: Path) -> ImageTable:
        """Reads images.parquet and checks its row numbers and its digest: 0.3 s for a million images.

        Raises:
            LofftaError: the file is gone, no image table, or of a newer format.
            DamageFound: it is not as it was written; another program has sorted or changed it.
        """
        try:
            data = read_file(path, MAX_BYTES)
            with pq.ParquetFile(
                pa.BufferReader(data), page_checksum_verification=True, read_dictionary=["split"]
            ) as file:  # read_table needs pandas
                # a process that ends soon after Arrow began its threads aborts, beside torch, in 4 of 10 cases
                columns = file.read(use_threads=False)
            meta = from_json(columns.schema.metadata[_META])
            if meta["format"] > FORMAT:
                raise ValueError(f"format {meta['format']} is newer than this loffta knows ({FORMAT})")
            table = cls._from_columns(columns, meta)
            is_whole = table._matches(meta, columns["key"])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, OverflowError) as error:
            raise LofftaError(
                f"cannot read the table of images ({type(error).__name__}: {reason(error)})",
                where=path,
                remedy="restore it from a backup, or extract into a new cache",
            ) from error
        if not np.array_equal(to_numbers(columns["row"]), np.arange(len(table))):
            raise DamageFound(
                "the rows of the table of images are in another order: labels would belong to other images' features",
                where=path,
                remedy="sort it by its column 'row' and keep its metadata, or restore it from a backup",
            )
        if not is_whole:
            raise DamageFound(
                "the table of images is not the one that was written: it does not match its digest",
                where=path,
                remedy="restore it from a backup, or extract into a new cache",
            )
        return table

    def _matches(self, meta: Mapping[str, Any], keys: pa.ChunkedArray[Any]) -> bool:
        """Whether these are the columns that the file was written with; older files have one digest of them."""
        said = meta.get("columns_digest")
        if said is None:
            return bool(meta["digest"] == self.digest)
        if said != self._columns_digest(meta["digest"], keys):
            return False
        self.__dict__["digest"] = meta["digest"]  # which the other one vouches for, too
        return True

    def _columns_digest(self, digest: str, keys: pa.Array[Any] | pa.ChunkedArray[Any]) -> str:
        said = [digest, *self.classes]
        return columns_digest(said, keys, (self.sizes, self.labels), self.split_names, self._optional())

    @classmethod
    def _from_columns(cls, table: pa.Table, meta: dict[str, Any]) -> ImageTable:
        """What the file's columns say; ValueError, KeyError or TypeError where they are not those of an image set."""
        for name in table.column_names:
            kind = _TYPES.get(name) or _optional_type(name) if name in _KNOWN or name.startswith(_TARGET) else None
            said = table.schema.field(name).type
            said = said.value_type if isinstance(said, pa.DictionaryType) else said
            if kind is not None and said != kind:
                raise ValueError(f"its column '{name}' is of type {said}")
            if name in _TYPES and table[name].null_count:
                raise ValueError(f"its column '{name}' has nulls")
        if not isinstance(meta["source"], str) or not all(isinstance(name, str) for name in meta["classes"]):
            raise ValueError("its source or classes are no text")
        if len(table) and to_numbers(table["label"]).max() >= len(meta["classes"]):
            raise ValueError("a label is behind the last class")
        columns: dict[str, list[Any]] = {n: table[n].to_pylist() for n in table.column_names if n not in _TYPES}
        return cls(
            meta["source"],
            Texts(table["key"]),
            to_numbers(table["size"]),
            Names.from_arrow(table["split"]),
            to_numbers(table["label"]),
            tuple(meta["classes"]),
            label_sets=_as_tuples(columns["labels"]) if "labels" in columns else None,
            values=np.array(columns["value"], dtype=np.float64) if "value" in columns else None,  # null becomes NaN
            targets={name.removeprefix(_TARGET): paths for name, paths in columns.items() if name.startswith(_TARGET)},
            not_taken=_counts(meta.get("not_taken", {})),
        )

    def refuse_alike(self, known: Container[str] = ()) -> None:
        """Refuses classes and splits that look the same, but for pairs of `known` ones, which a cache already has.

        Raises:
            UsageError: the first pairs, both of each spelled out.
        """
        pairs = [f"{a!r} and {b!r}" for a, b in self.alike if not (a in known and b in known)]
        if pairs:
            more = f" and {len(pairs) - _SHOWN} more pairs" if len(pairs) > _SHOWN else ""
            raise UsageError(
                f"names of classes or splits that look the same: {', '.join(pairs[:_SHOWN])}{more}",
                where=f"SOURCE {self.source}",
                remedy="write one of them in both places; if they are two, let them differ by more than case, spaces "
                "or form ('upper-A', 'lower-a')",
            )

    def value(self, row: int) -> float | None:
        """The number of one row, None where it is unknown."""
        value = math.nan if self.values is None else float(self.values[row])
        return None if math.isnan(value) else value

    def target(self, name: str, row: int) -> str | None:
        """Where one row's mask, depth map or the like is; None where it has none."""
        return self.targets[name][row] if name in self.targets else None

    def _optional(self) -> dict[str, list[Any]]:
        """The columns that not every image set has, by their names in the file."""
        columns: dict[str, list[Any]] = {}
        if self.label_sets is not None:
            columns["labels"] = [None if found is None else list(found) for found in self.label_sets]
        if self.values is not None:
            columns["value"] = [self.value(row) for row in range(len(self))]
        return columns | {_TARGET + name: paths for name, paths in self.targets.items()}


def _optional_type(name: str) -> pa.DataType:
    return {"labels": pa.list_(pa.int64()), "value": pa.float64()}.get(name, pa.string())


def _as_tuples(column: list[list[int] | None]) -> list[tuple[int, ...] | None]:
    return [None if found is None else tuple(found) for found in column]


def _counts(said: Any) -> dict[str, int]:
    if not isinstance(said, dict) or not all(type(n) is int and n > 0 for n in said.values()):
        raise ValueError("the files that were not taken are no numbers by ending")
    return {str(ending): n for ending, n in said.items()}

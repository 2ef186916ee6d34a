"""images.parquet: the table of an image set, made once from a listing and only ever appended to.

Columns: row, key (unique), size (bytes), split, label. Classes and their order are in the file's metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loffta.errors import LofftaError
from loffta.store import FORMAT

_TYPES: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "key": pa.string(),
    "size": pa.int64(),
    "split": pa.string(),
    "label": pa.int64(),
}
_SCHEMA = pa.schema(_TYPES)
_META = b"loffta"
_SHOWN = 5


@dataclass(frozen=True)
class ImageTable:
    """One row per image, in an order that never changes."""

    source: str  # as the user named it
    keys: list[str]
    sizes: NDArray[np.int64]  # bytes of the encoded image
    splits: list[str]
    labels: NDArray[np.int64]  # position in `classes`; -1 where there is none
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def digest(self) -> str:
        """BLAKE2b-128 over keys, sizes, splits, labels and classes."""
        rows = [self.keys, self.sizes.tolist(), self.splits, self.labels.tolist(), list(self.classes)]
        return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Rows of one split, or of several joined by '+'."""
        wanted = set(split.split("+"))
        return np.flatnonzero([s in wanted for s in self.splits])

    def split_sizes(self) -> dict[str, int]:
        """Rows per split, in order of appearance."""
        return {split: self.splits.count(split) for split in dict.fromkeys(self.splits)}

    def to_parquet(self) -> bytes:
        """The bytes of images.parquet."""
        meta = {"format": FORMAT, "source": self.source, "classes": list(self.classes), "digest": self.digest}
        columns: list[Any] = [np.arange(len(self)), self.keys, self.sizes, self.splits, self.labels]
        arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, _SCHEMA, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata({_META: json.dumps(meta).encode()}))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, write_page_checksum=True)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> ImageTable:
        """Reads images.parquet.

        Raises:
            LofftaError: the file is no image table, or of a newer format.
        """
        try:
            table = pq.read_table(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
            meta = json.loads(table.schema.metadata[_META])
            if meta["format"] > FORMAT:
                raise ValueError(f"format {meta['format']} is newer than this loffta knows ({FORMAT})")
            columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in ("key", "split")}
            sizes, labels = (table[name].to_numpy() for name in ("size", "label"))
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise LofftaError(
                f"cannot read the table of images ({type(error).__name__}: {error})",
                where=path,
                remedy="restore it from a backup, or extract into a new cache",
            ) from error
        return cls(meta["source"], columns["key"], sizes, columns["split"], labels, tuple(meta["classes"]))

    def grown_to(self, listing: ImageTable, *, where: Path) -> ImageTable:
        """This table with the new images of `listing` behind the old rows; itself where there are none.

        Raises:
            LofftaError: an old image is gone or altered: that is another image set, not growth.
        """
        place = {key: i for i, key in enumerate(listing.keys)}
        faults = [f"{key}: {fault}" for row, key in enumerate(self.keys) if (fault := self._fault(row, listing, place))]
        if faults:
            more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise LofftaError(
                f"the image set changed: {'; '.join(faults[:_SHOWN])}{more}",
                where=where,
                remedy="bring the old images back (new ones may be added), or extract into a new cache",
            )
        known = set(self.keys)
        new = [i for i, key in enumerate(listing.keys) if key not in known]
        if not new:
            return self
        classes = (*self.classes, *(c for c in listing.classes if c not in self.classes))
        names = [listing.class_name(i) for i in new]
        labels = [classes.index(name) if name is not None else -1 for name in names]
        return ImageTable(
            self.source,
            [*self.keys, *(listing.keys[i] for i in new)],
            np.concatenate([self.sizes, listing.sizes[new]]),
            [*self.splits, *(listing.splits[i] for i in new)],
            np.concatenate([self.labels, np.asarray(labels, dtype=np.int64)]),
            classes,
        )

    def class_name(self, row: int) -> str | None:
        """The class of one row, None where it has none."""
        label = int(self.labels[row])
        return self.classes[label] if label >= 0 else None

    def _fault(self, row: int, listing: ImageTable, place: dict[str, int]) -> str | None:
        i = place.get(self.keys[row])
        if i is None:
            return "gone"
        if listing.sizes[i] != self.sizes[row]:
            return f"{self.sizes[row]} bytes before, {listing.sizes[i]} now"
        if listing.splits[i] != self.splits[row]:
            return f"split {self.splits[row]} before, {listing.splits[i]} now"
        if listing.class_name(i) != self.class_name(row):
            return f"class {self.class_name(row)} before, {listing.class_name(i)} now"
        return None

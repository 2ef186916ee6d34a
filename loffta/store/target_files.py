"""Dense targets that are no array, one parquet file a unit: native ones, and boxes over the square.

The file vouches for itself: it is written under a temporary name and put in place when it is whole, so that what is
there is finished. Small columns can be read without the bytes of the targets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.files.durable import delete_part, make_folder, part_name, put_in_place
from loffta.files.os_words import guard
from loffta.store.arrow import to_numbers
from loffta.store.checks import images_fault
from loffta.store.ledger import forget_set_aside, made_of, rows_fault
from loffta.store.paths import FilePaths
from loffta.store.reads import REPAIR, read_guard, reason
from loffta.store.table import ImageTable

OK, MISSING, BAD = "ok", "missing", "bad"
NOT_GIVEN = "the image set has none"  # why one is missing
NATIVE_TYPES: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "status": pa.string(),
    "reason": pa.string(),
    "height": pa.int32(),
    "width": pa.int32(),
    "hash": pa.string(),
    "n_objects": pa.int32(),
    "largest": pa.int32(),  # class of masks and boxes; -1 where there is none
    "data": pa.binary(),
}
BOX_TYPES: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "status": pa.string(),
    "reason": pa.string(),
    "corners": pa.list_(pa.float32()),  # left, top, right, bottom of each box, fractions of the square
    "classes": pa.list_(pa.int64()),
    "crowd": pa.list_(pa.bool_()),
}
_META = b"loffta"
GROUP_ROWS = 16  # that are compressed and read together: 20 MB of depth maps of 480 x 640
_UNREADABLE = (ValueError, KeyError, TypeError, pa.ArrowException)


class FileWriter:
    """Writes one unit; nothing is visible before `commit`, and no more than a few rows are held."""

    def __init__(
        self, paths: FilePaths, unit: int, unit_images: int, types: Mapping[str, pa.DataType], made: Mapping[str, Any]
    ) -> None:
        """Opens the temporary file; `made` says of what and how, for the file's metadata."""
        self._paths, self._unit, self._unit_images = paths, unit, unit_images
        self._schema = pa.schema(dict(types), metadata={_META: json.dumps(made).encode()})
        self._rows: list[Sequence[Any]] = []
        self._listed: list[int] = []
        make_folder(paths.done_folder)
        final = paths.done(unit)
        self._part = part_name(final)
        with guard(final):
            self._file = self._part.open("x+b")
            try:
                self._writer = pq.ParquetWriter(  # which writes its first bytes
                    self._file,
                    self._schema,
                    compression="zstd",  # of the depths: PNGs stay as long as they are
                    use_dictionary=False,
                    write_statistics=False,  # of targets they are the longest bytes
                    write_page_checksum=True,
                )
            except BaseException:
                delete_part(self._part)
                self._file.close()
                raise

    def add(self, *cells: Any) -> None:
        """One row, its cells in the order of the columns; rows rise."""
        self._rows.append(cells)
        self._listed.append(cells[0])
        if len(self._rows) == GROUP_ROWS:
            self._flush()

    def commit(self) -> bool:
        """Puts the file in place; False where another owner was first: this copy is dropped."""
        self._flush()
        if settles(self._paths, self._unit, self._listed, self._unit_images):
            self.abort()
            return False
        final = self._paths.done(self._unit)
        with guard(final):
            self._writer.close()
            self._file.flush()
        put_in_place(self._file.fileno(), self._part, final)
        self._file.close()
        if self._paths.damaged_folder.exists():
            forget_set_aside(self._paths)
        return True

    def abort(self) -> None:
        """Forgets the unit and deletes its temporary file; harmless after commit."""
        if not self._file.closed:
            delete_part(self._part)
            with suppress(OSError, pa.ArrowException):  # what was written is given up
                self._writer.close()
            self._writer.is_open = False  # else it is closed once more when it is forgotten
            self._file.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(list(column), type=field.type) for column, field in zip(columns, self._schema, strict=True)]
        with guard(self._paths.done(self._unit)):
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


@contextmanager
def open_unit(path: Path) -> Iterator[pq.ParquetFile]:
    """A unit's file, of which columns and groups of rows can be read one by one.

    Raises:
        FileNotFoundError: it is not there.
        DamageFound: it is not as it was written, as far as it is read inside.
    """
    with read_guard(path):
        try:
            with (
                pa.OSFile(os.fspath(path), "r") as file,
                pq.ParquetFile(file, page_checksum_verification=True) as parquet,
            ):
                yield parquet
        except (*_UNREADABLE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the storage's; parquet's have no number
                raise
            raise DamageFound(f"cannot be read ({reason(error)})", where=path, remedy=REPAIR) from error


def read_unit(path: Path, columns: Sequence[str], types: Mapping[str, pa.DataType]) -> tuple[pa.Table, dict[str, Any]]:
    """Some columns of a unit, and how it was made; errors as `open_unit`."""
    with open_unit(path) as file:
        table = file.read(columns=list(columns), use_threads=False).select(list(columns))
        if not table.schema.equals(pa.schema([(name, types[name]) for name in columns])):
            raise ValueError("its columns have other types")
        if any(table[name].null_count for name in columns):
            raise ValueError("it has nulls")
        return table, made_of(file.schema_arrow.metadata)


def read_made(path: Path) -> dict[str, Any]:
    """How a unit was made, by its footer alone; errors as `open_unit`."""
    with open_unit(path) as file:
        return made_of(file.schema_arrow.metadata)


def check_rows(
    path: Path, unit: int, unit_images: int, rows: NDArray[np.int64], made: Mapping[str, Any], images: ImageTable
) -> None:
    """Raises DamageFound where a unit is one of other rows or other images."""
    fault = rows_fault(rows, unit, unit_images) or images_fault(made, rows, images)
    if fault is not None:
        raise DamageFound(fault, where=path, remedy=REPAIR)


def listed_in(paths: FilePaths, unit: int) -> list[int]:
    """Rows that a unit has, none where it is not there or cannot be read."""
    try:
        return [int(row) for row in to_numbers(read_unit(paths.done(unit), ["row"], {"row": pa.int64()})[0]["row"])]
    except (FileNotFoundError, NotADirectoryError, DamageFound):
        return []


def settles(paths: FilePaths, unit: int, rows: Sequence[int], unit_images: int) -> bool:
    """Whether the file of a unit has all of `rows`; of a whole unit the footer alone is read."""
    try:
        with open_unit(paths.done(unit)) as file:
            n_listed = file.metadata.num_rows
    except (FileNotFoundError, NotADirectoryError, DamageFound):
        return False
    if n_listed < len(rows) or n_listed >= unit_images:
        return bool(n_listed >= len(rows))
    return set(rows) <= set(listed_in(paths, unit))


@dataclass(frozen=True)
class UnitFiles:
    """Targets in files of units, asked as arrays are."""

    paths: FilePaths
    unit_images: int
    types: Mapping[str, pa.DataType]
    facts: Mapping[str, Any]  # of every unit, for its metadata

    def has_unit(self, unit: int, rows: Sequence[int]) -> bool:
        """Whether the unit's file has all of `rows`."""
        return settles(self.paths, unit, rows, self.unit_images)

    def listed(self, unit: int) -> list[int]:
        """Rows that the unit's file has, none where there is none."""
        return listed_in(self.paths, unit)

    def open(self, unit: int, images: str) -> FileWriter:
        """Starts a unit; `images` is the identity of those that will be in it."""
        return FileWriter(self.paths, unit, self.unit_images, self.types, {**self.facts, "images": images})

    def cells(self, unit: int) -> Iterator[dict[str, Any]]:
        """A unit that is there row by row, a group of rows in memory at a time; errors as `open_unit`."""
        with open_unit(self.paths.done(unit)) as file:
            for group in range(file.metadata.num_row_groups):
                yield from file.read_row_group(group, use_threads=False).to_pylist()

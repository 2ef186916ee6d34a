"""Done files: one small parquet per finished unit of one array, written after the data it vouches for.

Files on disk prove nothing; a reader trusts the rows listed here and no others.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.store.arrow import to_numbers
from loffta.store.files import replace_file
from loffta.store.paths import ArrayPaths

OK, BAD = "ok", "bad"
_TYPES: dict[str, pa.DataType] = {
    "row": pa.int64(),
    "status": pa.string(),
    "reason": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "blake2b": pa.string(),
    "finite": pa.list_(pa.bool_()),
    "abs_max": pa.list_(pa.float32()),
    "crc32c": pa.list_(pa.uint32()),
}
_SCHEMA = pa.schema(_TYPES)
_SATURATED = pa.field("saturated", pa.list_(pa.uint32()))  # int8 arrays have it
_ALL_TYPES = {**_TYPES, _SATURATED.name: _SATURATED.type}
_META = b"loffta"
_DONE = re.compile(r"u(\d+)\.parquet")
_LISTED = ("row", "status", "reason")
_MERGED = (*_LISTED, _SATURATED.name)  # what a ledger is made of; the lists of checksums are most of a done file
_READ_THREADS = 8  # done files are small: over a network, waiting for them is all the work
# what pyarrow raises over damaged bytes; real trouble of the file system is met before it sees them
_UNREADABLE = (OSError, ValueError, KeyError, pa.ArrowException)


@dataclass(frozen=True)
class ImageStatus:
    """What decoding one image told."""

    row: int
    status: str  # OK, or BAD: quarantined, it has no data in any array
    reason: str = ""
    width: int = 0  # pixels, as displayed
    height: int = 0
    blake2b: str = ""  # BLAKE2b-128 of the encoded bytes, 32 hex digits


@dataclass(frozen=True)
class Audit:
    """What writing one image's data told; empty for a quarantined image."""

    finite: Sequence[bool] = ()  # per tap
    abs_max: Sequence[float] = ()  # per tap
    crc32c: Sequence[int] = ()  # per inner chunk
    saturated: Sequence[int] | None = None  # per tap: values beyond the range of an int8 array; None for others


def write_done(
    paths: ArrayPaths, unit: int, images: Sequence[ImageStatus], audits: Sequence[Audit], run: dict[str, Any]
) -> None:
    """Says that a unit is there: `images` and `audits` row by row, `run` how it was made (batch size, device)."""
    replace_file(paths.done(unit), encode_done(images, audits, run))


def encode_done(images: Sequence[ImageStatus], audits: Sequence[Audit], run: dict[str, Any]) -> bytes:
    """The bytes of a done file; see write_done."""
    columns: list[list[Any]] = [
        [getattr(image, name) for image in images] for name in ("row", "status", "reason", "width", "height", "blake2b")
    ]
    columns += [[list(getattr(audit, name)) for audit in audits] for name in ("finite", "abs_max", "crc32c")]
    schema = _SCHEMA
    if any(audit.saturated is not None for audit in audits):
        schema = _SCHEMA.append(_SATURATED)
        columns.append([list(audit.saturated or ()) for audit in audits])
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({_META: json.dumps(run).encode()}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def read_done(path: Path, columns: Sequence[str] = (*_SCHEMA.names, _SATURATED.name)) -> pa.Table:
    """One done file, or some columns of it, as a table; `saturated` only where it has one.

    Damage in other columns is not seen: `verify` reads all.

    Raises:
        DamageFound: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            table = file.read(columns=list(columns), use_threads=False)
        names = [name for name in columns if name in table.column_names or name != _SATURATED.name]
        table = table.select(names)
        if not table.schema.equals(pa.schema([(name, _ALL_TYPES[name]) for name in names])):
            raise ValueError("its columns have other types")
        return table
    except _UNREADABLE as error:
        raise DamageFound(
            f"done file cannot be read ({error})",
            where=path,
            remedy="delete this file and run the same `loffta extract` again: its unit is written anew",
        ) from error


def scales_of(table: pa.Table) -> str | None:
    """The digest of the scales that an int8 array's unit was written with; None where its done file has none."""
    try:
        digest = json.loads((table.schema.metadata or {})[_META])["scales"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(digest)


def count_done(paths: ArrayPaths, unit: int) -> int:
    """Rows that the done file of `unit` lists, 0 where there is none; reads the footer alone."""
    try:
        data = paths.done(unit).read_bytes()
    except FileNotFoundError:
        return 0
    try:
        return int(pq.read_metadata(pa.BufferReader(data)).num_rows)
    except _UNREADABLE:  # damaged: `verify` names it, extract writes it anew
        return 0


def listed_rows(paths: ArrayPaths, unit: int) -> list[int]:
    """Rows that the done file of `unit` lists, none where there is none or it cannot be read."""
    try:
        return [int(row) for row in to_numbers(read_done(paths.done(unit), ["row"])["row"])]
    except (FileNotFoundError, DamageFound):
        return []


def settles(paths: ArrayPaths, unit: int, rows: Sequence[int], unit_images: int) -> bool:
    """Whether the done file of `unit` lists all of `rows`; one of a whole unit is not opened beyond its footer."""
    n_listed = count_done(paths, unit)
    if n_listed < len(rows) or n_listed >= unit_images:
        return n_listed >= len(rows)
    return set(rows) <= set(listed_rows(paths, unit))


def read_made(paths: ArrayPaths) -> dict[str, Any] | None:
    """How the first unit that is there was made, as given to `write_done`; None where there is none to read."""
    path = min(paths.done_folder.glob("u*.parquet"), default=None)
    try:
        return None if path is None else dict(json.loads(pq.read_schema(path).metadata[_META]))
    except _UNREADABLE:  # damaged: `verify` names it
        return None


@dataclass(frozen=True)
class Ledger:
    """The merged done files of one array."""

    ready: NDArray[np.bool_]  # per row: its data is there
    bad: dict[int, str]  # quarantined rows and why
    units: int  # done files found
    scales: frozenset[str | None] = frozenset()  # digests of the scales that units were written with; None: not said
    saturated: int = 0  # values of int8 arrays that lay beyond their range

    @property
    def listed(self) -> int:
        """Rows that are settled, with data or quarantined."""
        return int(self.ready.sum()) + len(self.bad)


def done_units(paths: ArrayPaths) -> list[int]:
    """Units that have a done file, in order; lists names, opens none."""
    found = paths.done_folder.iterdir() if paths.done_folder.is_dir() else []
    return sorted(int(match[1]) for path in found if (match := _DONE.fullmatch(path.name)))


def read_ledger(paths: ArrayPaths, n_rows: int) -> Ledger:
    """Merges the done files of an array of `n_rows` images.

    Raises:
        DamageFound: a done file cannot be read.
    """
    ready = np.zeros(n_rows, dtype=bool)
    files = [paths.done(unit) for unit in done_units(paths)]
    if not files:
        return Ledger(ready, {}, 0)
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        tables = list(pool.map(partial(read_done, columns=_MERGED), files))
    scales = frozenset(scales_of(table) for table in tables)
    saturated = sum(_count_saturated(table) for table in tables)
    table = pa.concat_tables(table.select(_LISTED) for table in tables)
    rows = to_numbers(table["row"])
    good = np.array([status == OK for status in table["status"].to_pylist()])
    known = rows < n_rows  # another process may have grown the array meanwhile
    ready[rows[good & known]] = True
    others = np.flatnonzero(~good & known).tolist()
    reasons = [table["reason"][i].as_py() for i in others]
    bad = dict(zip(rows[others].tolist(), reasons, strict=True))
    return Ledger(ready, bad, len(files), scales, saturated)


def _count_saturated(table: pa.Table) -> int:
    if _SATURATED.name not in table.column_names:
        return 0
    lists: list[Any] = table[_SATURATED.name].to_pylist()
    return sum(map(sum, lists))

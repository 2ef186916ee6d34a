"""Done files: one small parquet per finished unit of one array, written after the data it vouches for.

Files on disk prove nothing; a reader trusts the rows listed here and no others.
"""

from __future__ import annotations

import io
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.files.documents import from_json
from loffta.files.durable import make_folder, replace_file
from loffta.files.os_words import guard
from loffta.store.arrow import to_numbers
from loffta.store.checks import layout_fault, unit_fault
from loffta.store.metadata import ArrayLayout
from loffta.store.paths import ArrayPaths, UnitPaths, names_in
from loffta.store.reads import REPAIR, read_file, reason
from loffta.store.table import ImageTable

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
_SATURATED = pa.field("saturated", pa.list_(pa.uint32()))  # int8 arrays have it
SEEN: dict[str, pa.DataType] = {"flat": pa.bool_(), "pages": pa.int32()}  # files of older versions do not have them
_OPTIONAL = {**SEEN, _SATURATED.name: _SATURATED.type}
_ALL_TYPES = {**_TYPES, **_OPTIONAL}
_META = b"loffta"
_DONE = re.compile(r"u(\d+)\.parquet")
# what a ledger is made of; the lists of checksums are most of a done file
_MERGED = ("row", "status", "reason", _SATURATED.name)
READ_THREADS = 8  # done files are small: over a network, waiting for them is all the work
_MAX_BYTES = 1 << 30  # of a done file: 256 images of 12 taps take 30 kB
# what pyarrow raises over damaged bytes; trouble of the file system is met before it sees them
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)


@dataclass(frozen=True)
class ImageStatus:
    """What decoding one image told."""

    row: int
    status: str  # OK, or BAD: quarantined, it has no data in any array
    reason: str = ""
    width: int = 0  # pixels, as displayed
    height: int = 0
    blake2b: str = ""  # BLAKE2b-128 of the encoded bytes, 32 hex digits
    flat: bool = False  # all of a single colour, as RGB
    pages: int = 0  # frames or pages of the file, of which the first was taken; 0 of a quarantined image


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
    if paths.damaged_folder.exists():
        forget_set_aside(paths)


def is_done_by(paths: ArrayPaths, unit: int, data: bytes) -> bool:
    """Whether the done file of a unit is the one that holds `data`."""
    try:
        return read_file(paths.done(unit), _MAX_BYTES) == data
    except FileNotFoundError:
        return False


def set_aside(paths: UnitPaths, unit: int) -> None:
    """Takes a damaged unit's done file out of sight: `extract` writes the unit anew, and `verify` remembers it."""
    make_folder(paths.damaged_folder)
    with guard(paths.done(unit)), suppress(FileNotFoundError):
        paths.done(unit).replace(paths.damaged(unit))


def forget_set_aside(paths: UnitPaths) -> None:
    """Deletes the old done files of units that have been written anew."""
    finished = {*done_units(paths)}
    with guard(paths.damaged_folder):
        for unit in _units_in(paths.damaged_folder):
            if unit in finished:
                paths.damaged(unit).unlink(missing_ok=True)
    with suppress(OSError):  # others are left
        paths.damaged_folder.rmdir()


def waiting_units(paths: UnitPaths) -> list[int]:
    """Units that were set aside and are not written anew yet, in order."""
    return sorted({*_units_in(paths.damaged_folder)} - {*done_units(paths)})


def stated_layouts(paths: ArrayPaths, n_rows: int) -> list[ArrayLayout]:
    """Each layout that units of an array say they were written with, for `n_rows` images; older done files say none."""
    said = {}
    for unit in done_units(paths):
        made = _made_in(paths.done(unit))
        if isinstance(made.get("array"), dict):
            said[json.dumps(made["array"], sort_keys=True)] = made["array"]
    layouts = []
    for facts in said.values():
        with suppress(ValueError, KeyError, TypeError):
            layouts.append(ArrayLayout.from_facts(facts, n_rows))
    return layouts


def encode_done(images: Sequence[ImageStatus], audits: Sequence[Audit], run: dict[str, Any]) -> bytes:
    """The bytes of a done file; see write_done."""
    columns: list[list[Any]] = [
        [getattr(image, name) for image in images] for name in ("row", "status", "reason", "width", "height", "blake2b")
    ]
    columns += [[list(getattr(audit, name)) for audit in audits] for name in ("finite", "abs_max", "crc32c")]
    columns += [[getattr(image, name) for image in images] for name in SEEN]
    schema = pa.schema({**_TYPES, **SEEN})
    if any(audit.saturated is not None for audit in audits):
        schema = schema.append(_SATURATED)
        columns.append([list(audit.saturated or ()) for audit in audits])
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({_META: json.dumps(run).encode()}))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def read_done(path: Path, columns: Sequence[str] = tuple(_ALL_TYPES)) -> pa.Table:
    """One done file, or some columns of it, as a table; `saturated`, `flat` and `pages` only where it has them.

    Damage in other columns is not seen: `verify` reads all.

    Raises:
        DamageFound: the file cannot be read.
    """
    return done_table(read_file(path, _MAX_BYTES), columns, path)


def done_table(data: bytes, columns: Sequence[str], path: Path) -> pa.Table:
    """As `read_done`, of the bytes of a done file that was read from `path`."""
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            table = file.read(columns=list(columns), use_threads=False)
        names = [name for name in columns if name in table.column_names or name not in _OPTIONAL]
        table = table.select(names)
        if not table.schema.equals(pa.schema([(name, _ALL_TYPES[name]) for name in names])):
            raise ValueError("its columns have other types")
        if "row" in names and table["row"].null_count:
            raise ValueError("some of its rows have no number")
        return table
    except _UNREADABLE as error:
        raise DamageFound(
            f"done file cannot be read ({reason(error)})",
            where=path,
            remedy="delete this file and run the same `loffta extract` again: its unit is written anew",
        ) from error


def made_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """How a unit was made, from the metadata of its done file; nothing where that cannot be read."""
    try:
        made = from_json((metadata or {})[_META])
    except (ValueError, KeyError):
        return {}
    return made if isinstance(made, dict) else {}


def scales_of(made: Mapping[str, Any]) -> str | None:
    """The digest of the scales that an int8 array's unit was written with; None where its done file has none."""
    return None if made.get("scales") is None else str(made["scales"])


def count_done(paths: ArrayPaths, unit: int) -> int:
    """Rows that the done file of `unit` lists, 0 where there is none; reads the footer alone."""
    try:
        data = read_file(paths.done(unit), _MAX_BYTES)
        return int(pq.read_metadata(pa.BufferReader(data)).num_rows)
    except (FileNotFoundError, DamageFound, *_UNREADABLE):  # damaged: `verify` names it, extract writes it anew
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


def read_made(paths: ArrayPaths) -> dict[str, Any]:
    """How the first unit that is there was made, as given to `write_done`; nothing where there is none to read."""
    if paths.done(0).exists():  # most often: the names of 100,000 others are not asked for
        return _made_in(paths.done(0))
    units = done_units(paths)
    return _made_in(paths.done(units[0])) if units else {}


def _made_in(path: Path) -> dict[str, Any]:
    """As `made_of`, by the footer of a done file alone; nothing where that is damaged: `verify` names it."""
    try:
        return made_of(pq.read_schema(pa.BufferReader(read_file(path, _MAX_BYTES))).metadata)
    except (DamageFound, *_UNREADABLE):
        return {}


def check_made(paths: ArrayPaths, layout: ArrayLayout) -> None:
    """Compares an array's zarr.json with what the first unit that is there says of it: one small file is read.

    Raises:
        DamageFound: one of them is not what it was.
    """
    fault = layout_fault(read_made(paths), layout)
    if fault is not None:
        raise DamageFound(fault, where=paths.metadata, remedy=REPAIR)


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


def done_units(paths: UnitPaths) -> list[int]:
    """Units that have a done file, in order; lists names, opens none."""
    return sorted(_units_in(paths.done_folder))


def unfinished(arrays: Sequence[UnitPaths], units: Collection[int]) -> list[int]:
    """Those of `units`, in order, that one of the arrays has no done file of; lists a folder an array, opens none."""
    done = [{*done_units(paths)} for paths in arrays] if units else []
    return sorted(unit for unit in units if not all(unit in finished for finished in done))


def _units_in(folder: Path) -> Iterator[int]:
    return (int(match[1]) for name in names_in(folder) if (match := _DONE.fullmatch(name)))


def read_ledger(
    paths: ArrayPaths, layout: ArrayLayout, images: ImageTable | None = None, *, only: Collection[int] | None = None
) -> Ledger:
    """Merges the done files of an array and compares them with its layout and the table of images.

    Args:
        only: units to look at; None: all that are there.
    Raises:
        DamageFound: a done file cannot be read, or is one of another array or other images.
    """
    n_rows = layout.shape[0]
    ready = np.zeros(n_rows, dtype=bool)
    units = [unit for unit in done_units(paths) if only is None or unit in only]
    bad: dict[int, str] = {}
    scales: set[str | None] = set()
    saturated = 0
    with ThreadPoolExecutor(READ_THREADS) as pool:
        read = partial(read_done, columns=_MERGED)
        for unit, table in zip(units, _ahead(pool, read, map(paths.done, units)), strict=True):
            listed, made = to_numbers(table["row"]), made_of(table.schema.metadata)
            fault = rows_fault(listed, unit, layout.unit_images) or unit_fault(made, listed, layout, images)
            if fault is not None:
                raise DamageFound(fault, where=paths.done(unit), remedy=REPAIR)
            scales.add(scales_of(made))
            saturated += _count_saturated(table)
            good = np.array([status == OK for status in table["status"].to_pylist()], bool)
            known = (listed >= 0) & (listed < n_rows)  # another process may have grown the array meanwhile
            ready[listed[good & known]] = True
            for i in np.flatnonzero(~good & known).tolist():
                bad[int(listed[i])] = table["reason"][i].as_py()
    return Ledger(ready, bad, len(units), frozenset(scales), saturated)


def _ahead(pool: Executor, read: Callable[[Path], pa.Table], paths: Iterator[Path]) -> Iterator[pa.Table]:
    """What `read` gives of each, in order; a few are read ahead, and never all of 100,000 in memory."""
    waiting = deque(pool.submit(read, path) for path in islice(paths, 4 * READ_THREADS))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(read, path) for path in islice(paths, 1))


def rows_fault(rows: NDArray[np.int64], unit: int, unit_images: int) -> str | None:
    """Whether a done file lists rows of its own unit, each once and rising."""
    first = unit * unit_images
    inside = not len(rows) or (first <= rows[0] and rows[-1] < first + unit_images)
    return None if inside and (rows[1:] > rows[:-1]).all() else "done file lists rows of another unit"


def _count_saturated(table: pa.Table) -> int:
    if _SATURATED.name not in table.column_names:
        return 0
    lists: list[Any] = table[_SATURATED.name].to_pylist()
    return sum(map(sum, lists))

"""Tables that people write, CSV, TSV or parquet, as columns of cells. What the cells mean is said by `label_cells`.

In: a path.   Out: the cells by column. Called by `images.table_file` and `label_file`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from loffta.errors import UsageError, refuse
from loffta.files.documents import read_bytes
from loffta.machine.progress import say

SUFFIXES = (".csv", ".tsv", ".parquet")
SEPARATORS = {
    ",": "commas",
    ";": "semicolons",
    "\t": "tabs",
}  # between cells; Excel writes `;` where a comma is decimal
MAX_BYTES = 8 << 30  # of a table: 14 million paths and labels take about 1 GB

Columns: TypeAlias = dict[str, list[Any]]
Check: TypeAlias = Callable[[list[str], Mapping[str, pa.DataType]], None]  # names, and types where the file says them


def read_columns(path: Path, used: Collection[str], check: Check, *, where: str) -> Columns:
    """The cells of a table. Every column of text; of parquet those that are `used`, the others by name alone.

    Args:
        used: names of columns; what separates the cells of text is told by them.
        check: raises where the columns are not those that are needed, before any cell is looked at.
        where: what to call the table in messages.
    Raises:
        UsageError: it cannot be read, or rows have more or fewer cells than the header.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, used, check, where)
    return _read_text(path, used, check, where)


def _read_text(path: Path, used: Collection[str], check: Check, where: str) -> Columns:
    """Every column as text; the columns and each row's cells are checked. The header says what separates the cells."""
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        separator = _separator(text, used)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(where, error) from error
    if separator != ("\t" if path.suffix.lower() == ".tsv" else ","):
        say(f"{where.removeprefix('SOURCE ')}: the cells are separated by {SEPARATORS[separator]}")
    lines = [line for line in lines if len(line) > 1 or "".join(line).strip()]  # a blank line is no row and no header
    header = [name.strip() for name in lines[0]] if lines else []
    check(header, {})
    faults = [
        f"row {i}: {len(row)} cells under {len(header)} columns"
        for i, row in enumerate(lines[1:], start=1)
        if len(row) != len(header)
    ]
    refuse(
        faults,
        where=where,
        remedy=f"quote cells that hold {SEPARATORS[separator]}, and run the same command again",
    )
    return {name: [row[i] for row in lines[1:]] for i, name in enumerate(header)}


def _separator(text: str, used: Collection[str]) -> str:
    """What separates the header's cells: the sign that makes the most known columns of it; a comma where none does."""
    header = next((line for line in text.splitlines() if line.strip()), "")

    def n_known(separator: str) -> int:
        names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        return len({name.strip() for name in names}.intersection(used))

    return max(SEPARATORS, key=n_known)  # of equals the first


def _read_parquet(path: Path, used: Collection[str], check: Check, where: str) -> Columns:
    """The columns that are used; the others by name alone, for they may hold the images themselves."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            check(schema.names, dict(zip(schema.names, schema.types, strict=True)))
            table = file.read(columns=[name for name in schema.names if name in used], use_threads=False)
            return {name: table[name].to_pylist() if name in used else [] for name in schema.names}
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> UsageError:
    return UsageError(
        f"cannot read the table ({type(error).__name__}: {error})",
        where=where,
        remedy="save it as CSV in UTF-8, or as parquet",
    )

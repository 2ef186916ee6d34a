"""An audit's proposals as a file of labels, for a person to look through and `loffta label` to take.

In: an Audit.   Out: CSV or parquet with a row for every image of the cache: key, label, split as they would be, and why
and how surely where one differs. A wrong label becomes the suggested one; a training image with a copy in another
split leaves its split (an empty cell), so that the other stays a fair test.

Cells of a CSV are opened in spreadsheets, which run what begins like a formula (OWASP, CSV injection). A key gets `./`
in front, which means the same image; a class or split of such a name needs parquet.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from loffta.auditing.found import Audit
from loffta.errors import UsageError
from loffta.files.durable import replace_file
from loffta.store.arrow import to_column
from loffta.store.table import ImageTable
from loffta.words import brief

SUFFIXES = (".csv", ".parquet")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # OWASP's list; a space in front would be lost in reading
_TYPES = {"confidence": pa.float64()}


def check_file(path: Path, option: str) -> None:
    """Raises UsageError where no corrections can be written there; before hours of work."""
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        raise UsageError(
            f"corrections are a file that ends in .csv or .parquet, not {brief(str(path))}",
            where=option,
            remedy="name it fixes.csv",
        )


def refuse_formulas(table: ImageTable, path: Path) -> None:
    """Raises UsageError where a CSV would hold a class or split that a spreadsheet runs."""
    names = (*table.classes, *table.split_sizes()) if path.suffix.lower() == ".csv" else ()
    risky = next((name for name in names if name.startswith(_FORMULA)), None)
    if risky is not None:
        raise UsageError(
            f"a spreadsheet would run the class or split {brief(risky)} as a formula",
            where=path,
            remedy=f"write {path.stem}.parquet, which `loffta label` takes as well",
        )


def write_corrections(audit: Audit, path: Path, train_on: str) -> int:
    """Writes the file, or replaces it; the number of rows that differ from what the cache says.

    Args:
        train_on: the split that is learnt from, or several joined by '+'.
    Raises:
        UsageError: a class or split that a spreadsheet would run, in a CSV.
    """
    refuse_formulas(audit.table, path)
    columns = propose(audit, train_on)
    if path.suffix.lower() == ".csv":
        replace_file(path, _as_csv(columns))
    else:
        table = pa.table({name: to_column(cells, _TYPES.get(name, pa.string())) for name, cells in columns.items()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer, write_page_checksum=True)
        replace_file(path, buffer.getvalue())
    return sum(why is not None for why in columns["why"])


def propose(audit: Audit, train_on: str) -> dict[str, list[Any]]:
    """Columns over all images of the cache; None is an empty cell. No label but one class an image is proposed."""
    table = audit.table
    why: list[list[str]] = [[] for _ in table.keys]
    surely: list[list[float]] = [[] for _ in table.keys]
    labels = [table.class_name(row) for row in range(len(table))]
    splits: list[str | None] = [split or None for split in table.splits]
    for error in audit.label_errors:
        why[error.row].append("probably another class")
        surely[error.row].append(error.chance)
        labels[error.row] = table.classes[error.suggested]
    learnt = set(train_on.split("+"))
    for group in audit.leaks:
        kept = next((row for row in group.rows if table.splits[row] not in learnt), None)
        for row in group.rows if kept is not None else ():
            if table.splits[row] in learnt:
                why[row].append("a copy is in another split")
                surely[row].append(group.similarity)
                splits[row] = None
    columns: dict[str, list[Any]] = {"key": list(table.keys)}
    if any(label is not None for label in labels):
        columns["label"] = labels
    columns["split"] = splits
    columns["why"] = ["; ".join(reasons) or None for reasons in why]
    columns["confidence"] = [min(found, default=None) for found in surely]
    return columns


def _as_csv(columns: dict[str, list[Any]]) -> bytes:
    columns = columns | {"key": [f"./{key}" if key.startswith(_FORMULA) else key for key in columns["key"]]}
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(cell) for cell in row] for row in zip(*columns.values(), strict=True))
    return buffer.getvalue().encode()


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

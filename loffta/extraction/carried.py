"""What an array has of images whose files are gone: carried over when their unit is written anew, since nothing can
make it again.

In: an array, the writer of one of its units, and rows.   Out: their statuses, for the unit's done file. Called by
`extract`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loffta.store.cache import CachedArray
from loffta.store.ledger import BAD, OK, ImageStatus, listed_rows, read_done
from loffta.store.writer import Stored, UnitWriter
from loffta.store.zarr_reader import open_array

GONE = "its file is gone"


def carry_over(
    array: CachedArray, writer: UnitWriter, unit: int, rows: Sequence[int], keys: Sequence[str]
) -> list[ImageStatus]:
    """Writes what the array has of `rows`, as it is; what it does not have is quarantined.

    Args:
        keys: the names of `rows`, for messages.
    Raises:
        DamageFound: the bytes on disk are not those that were written.
    """
    held = {*listed_rows(array.paths, unit)}.intersection(rows)
    if not held:
        return [ImageStatus(row, BAD, GONE) for row in rows]
    done = {entry["row"]: entry for entry in read_done(array.paths.done(unit)).to_pylist()}
    good = [row for row in rows if row in held and done[row]["status"] == OK]
    if good:
        entries = [done[row] for row in good]
        saturated = [entry.get("saturated") for entry in entries]
        stored = Stored(
            open_array(array.paths).read(np.array(good)),
            np.array([entry["finite"] for entry in entries], bool),
            np.array([entry["abs_max"] for entry in entries], np.float32),
            None if None in saturated else np.array(saturated, np.int64),
        )
        names = dict(zip(rows, keys, strict=True))
        writer.append(good, stored, [names[row] for row in good])
    return [_status(done[row]) if row in held else ImageStatus(row, BAD, GONE) for row in rows]


def _status(entry: dict[str, object]) -> ImageStatus:
    """As it was written; older done files do not say all of it."""
    said = {name: entry[name] for name in ImageStatus.__dataclass_fields__ if entry.get(name) is not None}
    return ImageStatus(**said)  # type: ignore[arg-type]

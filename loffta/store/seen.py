"""What decoding told of the images of a cache, added up: flat ones, and pages behind the first.

In: the done files of one array.   Out: Seen, for `extract` and `info`.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from loffta.store.arrow import to_numbers
from loffta.store.ledger import READ_THREADS, SEEN, done_units, read_done
from loffta.store.paths import ArrayPaths


@dataclass(frozen=True)
class Seen:
    """What decoding told of the images of one array, added up."""

    flat: int = 0  # images of a single colour
    pages_ignored: int = 0  # frames or pages behind the first of a file
    several_pages: int = 0  # images of which that is so
    untold: int = 0  # images of units that an older version wrote, of which none of this is known


def read_seen(paths: ArrayPaths, *, only: Collection[int] | None = None) -> Seen:
    """Adds up what the done files of one array say.

    Args:
        only: units to look at; None: all that are there.
    Raises:
        DamageFound: a done file cannot be read.
    """
    files = [paths.done(unit) for unit in done_units(paths) if only is None or unit in only]
    counts = [0, 0, 0, 0]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for here in pool.map(_count, files):
            counts = [a + b for a, b in zip(counts, here, strict=True)]
    return Seen(*counts)


def _count(path: Path) -> tuple[int, int, int, int]:
    """The fields of Seen, of one unit."""
    table = read_done(path, ("row", *SEEN))
    if not set(SEEN) <= set(table.column_names):
        return 0, 0, 0, table.num_rows
    pages = [n for n in to_numbers(table["pages"]).tolist() if n > 1]
    return table["flat"].to_pylist().count(True), sum(pages) - len(pages), len(pages), 0

"""What decoding told of the images of a cache, added up: flat ones, and pages behind the first.

In: the done files of one array.   Out: Seen, for `extract` and `info`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

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


def read_seen(paths: ArrayPaths) -> Seen:
    """Adds up what the done files of one array say.

    Raises:
        DamageFound: a done file cannot be read.
    """
    files = [paths.done(unit) for unit in done_units(paths)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        tables = list(pool.map(partial(read_done, columns=("row", *SEEN)), files))
    counts = [0, 0, 0, 0]
    for table in tables:
        if set(SEEN) <= set(table.column_names):
            pages = [n for n in to_numbers(table["pages"]).tolist() if n > 1]
            here = (table["flat"].to_pylist().count(True), sum(pages) - len(pages), len(pages), 0)
        else:
            here = (0, 0, 0, table.num_rows)
        counts = [a + b for a, b in zip(counts, here, strict=True)]
    return Seen(*counts)

"""What the done files say of the images' bytes: which image a row's features were made from, wherever it lies now.

In: an open cache.   Out: hashes by row. Called by `follow`, and by `extraction.recheck`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from loffta.store.ledger import OK, done_units, read_done
from loffta.targets import TARGET_KINDS

if TYPE_CHECKING:
    from loffta.store.cache import Cache

_COLUMNS = ("row", "status", "blake2b")


def recorded_hashes(cache: Cache, units: Collection[int] | None = None) -> dict[int, dict[str, str]]:
    """Per row that has features, and array: BLAKE2b-128 of the encoded bytes that they were made from.

    Of all arrays: an image that was altered between two backbones agrees with one of them.

    Args:
        units: to look at; None: all.
    """
    found: dict[int, dict[str, str]] = {}
    for array in cache.arrays():
        if array.kind in TARGET_KINDS:
            continue  # made from another file
        for unit in done_units(array.paths):
            if units is not None and unit not in units:
                continue
            columns = read_done(array.paths.done(unit), _COLUMNS).to_pydict()
            for row, status, digest in zip(*columns.values(), strict=True):
                if status == OK:
                    found.setdefault(row, {})[array.paths.name] = digest
    return found

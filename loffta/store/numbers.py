"""Where a new array of a store lies: under the next free number of its kind. Called by `Cache.add_arrays`."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from loffta.files.durable import create_file
from loffta.store.ledger import done_units
from loffta.store.metadata import ArrayLayout
from loffta.store.paths import ArrayPaths

if TYPE_CHECKING:
    from loffta.store.cache import Cache


def place_array(cache: Cache, store: str, layout: ArrayLayout) -> ArrayPaths:
    """Makes an array, or finds that another process made it; a number may be taken by other taps meanwhile."""
    for number in count():
        paths = cache.paths.array(store, f"{layout.attributes['kind']}-{number}")
        if not paths.metadata.exists() and done_units(paths):
            continue  # its zarr.json was lost: these done files vouch for taps that nobody knows any more
        if create_file(paths.metadata, layout.to_json()) or cache.read_array(paths).taps == layout.taps:
            return paths
    raise AssertionError("numbers have no end")

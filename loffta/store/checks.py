"""Whether what a cache's documents say of each other agrees: store and recipe, array and store, done file and array.

In: what was read.   Out: the first contradiction in words, or None. Called when a cache opens, by ledgers and `verify`.
A cache is made of small files that a person can copy, edit or restore one by one; without these checks the labels of
one image set, or the name of one tap, would be given to the features of another, and nothing would look wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.store.metadata import ArrayLayout
from loffta.store.reads import reason
from loffta.store.recipe import StoreInfo, differing_fields
from loffta.store.table import ImageTable
from loffta.tokens import KINDS
from loffta.words import brief


def store_fault(name: str, info: StoreInfo) -> str | None:
    """A recipe is hashed into its folder's name: another recipe is another store."""
    if name == info.name:
        return None
    return f"its recipe is not the one that named the folder: it is that of {brief(info.name)}"


def array_fault(name: str, layout: ArrayLayout, info: StoreInfo, unit_images: int) -> str | None:
    """Whether the zarr.json of `<kind>-<k>` can be one of this store: its kind, unit, taps and their shapes."""
    kind = name.partition("-")[0]
    said = layout.attributes.get("kind")
    if said != kind:
        return f"it is an array of {brief(said)} in a folder of {kind}"
    if layout.unit_images != unit_images:
        return f"its units have {layout.unit_images} images, the cache's have {unit_images}"
    specs = {spec.tap: spec for spec in info.taps}
    if not layout.taps or len(set(layout.taps)) != len(layout.taps) or layout.shape[1] != len(layout.taps):
        return f"it has {brief(layout.attributes.get('taps'))} as taps of an axis of {layout.shape[1]}"
    for tap in layout.taps:
        if tap not in specs:
            return f"its store has no tap {brief(tap)}"
        due = next(specs[tap].shape(known) for known in KINDS if known == kind)
        if layout.shape[2:] != due:
            return f"tap {tap} is {list(due)} in its store, and {list(layout.shape[2:])} here"
    return None


def target_fault(layout: ArrayLayout, due: ArrayLayout) -> str | None:
    """Whether a target's zarr.json is what the cache would write, whatever its number of rows."""
    lines = differing_fields(due.facts, layout.facts)
    return f"it is not what the cache would write: {reason('; '.join(lines))}" if lines else None


def unit_fault(
    made: Mapping[str, Any], rows: NDArray[np.int64], layout: ArrayLayout, table: ImageTable | None
) -> str | None:
    """Whether a unit was written as its array's zarr.json says now, and of the images that the table lists now.

    Args:
        made: what its done file says of how it was made; older ones say neither.
        rows: that it lists.
    """
    return layout_fault(made, layout) or images_fault(made, rows, table)


def images_fault(made: Mapping[str, Any], rows: NDArray[np.int64], table: ImageTable | None) -> str | None:
    """Whether a unit was written of the images that the table lists now."""
    if table is None or made.get("images") is None or not len(rows) or rows[-1] >= len(table):
        return None  # an older file, or a set that has grown since the table was read
    if made["images"] == table.identity(rows):
        return None
    return f"rows {rows[0]} to {rows[-1]} were other images than the table of images lists now"


def layout_fault(made: Mapping[str, Any], layout: ArrayLayout) -> str | None:
    """Whether a unit was written as its array's zarr.json says now."""
    said = made.get("array")
    if said in (None, layout.facts):
        return None
    if not isinstance(said, Mapping):
        return f"its done file says that its array is {brief(said)}"
    lines = differing_fields(said, layout.facts)
    return f"it was written as another array than its zarr.json says: {reason('; '.join(lines))}"

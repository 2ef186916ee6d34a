"""An image set that has grown: new images behind the old rows, or the refusal of one that is another set.

In: the table of a cache, and a listing of the set as it is now.   Out: the longer table. Called by `cache`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from loffta.errors import LofftaError
from loffta.store.names import spelled
from loffta.store.table import ImageTable

_SHOWN = 5


def grow(table: ImageTable, listing: ImageTable, *, where: Path) -> ImageTable:
    """A table with the new images of `listing` behind its rows; itself where there are none.

    Raises:
        LofftaError: an old image is gone or altered: that is another image set, not growth.
    """
    listing.refuse_alike({*table.classes, *table.splits})
    listing = _spelled_as(listing, table)
    place = {key: i for i, key in enumerate(listing.keys)}
    faults = [f"{key}: {fault}" for row, key in enumerate(table.keys) if (fault := _fault(table, row, listing, place))]
    if listing.label_kind != table.label_kind:
        faults = [f"the labels were {table.label_kind}, now {listing.label_kind}"]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise LofftaError(
            f"the image set changed: {'; '.join(faults[:_SHOWN])}{more}",
            where=where,
            remedy="bring the old images back (new ones may be added), or extract into a new cache",
        )
    known = set(table.keys)
    new = [i for i, key in enumerate(listing.keys) if key not in known]
    return _with_rows(table, listing, new) if new else table


def _with_rows(table: ImageTable, listing: ImageTable, new: list[int]) -> ImageTable:
    """A table with some rows of another of the same kind behind it, all numbered by the classes of both."""
    classes = _joined(table.classes, listing.classes)
    old, other = table.numbered_by(classes), listing.numbered_by(classes)
    return ImageTable(
        table.source,
        [*table.keys, *(listing.keys[i] for i in new)],
        np.concatenate([table.sizes, listing.sizes[new]]),
        [*table.splits, *(listing.splits[i] for i in new)],
        np.concatenate([old.labels, other.labels[new]]),
        classes,
        label_sets=[*old.label_sets, *(other.label_sets[i] for i in new)]
        if old.label_sets is not None and other.label_sets is not None
        else None,
        values=np.concatenate([table.values, listing.values[new]])
        if table.values is not None and listing.values is not None
        else None,
        targets={
            name: [*(table.target(name, row) for row in range(len(table))), *(listing.target(name, i) for i in new)]
            for name in dict.fromkeys([*table.targets, *listing.targets])
        },
        not_taken=listing.not_taken,
    )


def _spelled_as(listing: ImageTable, old: ImageTable) -> ImageTable:
    """A listing in the old table's spelling: caches made before names had one spelling keep theirs."""
    there = {*old.classes, *old.splits}
    known = {spelled(name): name for name in there if spelled(name) not in there}
    if not known:
        return listing
    classes = tuple(known.get(name, name) for name in listing.classes)
    return replace(listing, classes=classes, splits=[known.get(split, split) for split in listing.splits])


def _fault(table: ImageTable, row: int, listing: ImageTable, place: dict[str, int]) -> str | None:
    """How an old row differs from the listing's row of its key, None where it does not."""
    i = place.get(table.keys[row])
    if i is None:
        return "gone"
    if listing.sizes[i] != table.sizes[row]:
        return f"{table.sizes[row]} bytes before, {listing.sizes[i]} now"
    if listing.splits[i] != table.splits[row]:
        return f"split {table.splits[row]} before, {listing.splits[i]} now"
    if listing.class_name(i) != table.class_name(row):
        return f"class {table.class_name(row)} before, {listing.class_name(i)} now"
    before, now = table.class_names(row), listing.class_names(i)
    if (before is None) != (now is None) or set(before or ()) != set(now or ()):  # by name: positions may differ
        return f"classes {_listed(before)} before, {_listed(now)} now"
    if table.value(row) != listing.value(i):
        return f"value {table.value(row)} before, {listing.value(i)} now"
    for name in dict.fromkeys([*table.targets, *listing.targets]):
        if table.target(name, row) != listing.target(name, i):
            return f"{name} {table.target(name, row)} before, {listing.target(name, i)} now"
    return None


def _joined(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a grown set: in the listing's order, as a fresh cache has them, where it is the old one's, too.

    Else, in a cache made by another order, the old ones stay as they are and the new ones come behind them.
    """
    known = set(old)
    if [name for name in new if name in known] == list(old):
        return new
    return (*old, *(name for name in new if name not in known))


def _listed(names: tuple[str, ...] | None) -> str:
    return "unknown" if names is None else ", ".join(names) or "none"

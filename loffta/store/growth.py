"""An image set as it is now beside the table of a cache: which old image is which, which are new, what is said of them.

In: the table of a cache, and a listing of the set.   Out: the longer table, and the annotations that the listing makes.
Called by `follow`. Labels and splits may change at will; an image that is gone or altered is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from loffta.errors import LofftaError
from loffta.store.labels import Annotations
from loffta.store.names import spelled
from loffta.store.table import ImageTable
from loffta.words import first_of, plural

Gone: TypeAlias = Literal["keep", "drop"]
FindMoved: TypeAlias = Callable[[Sequence[int], Sequence[int]], Mapping[int, int]]  # rows and places of a listing

_WORDS = {"single-label": "class", "multi-label": "classes", "regression": "value"}


@dataclass(frozen=True)
class Match:
    """Where the images of a cache are in a listing."""

    listing: ImageTable  # in the spelling of the cache
    places: list[int]  # per old row, -1: its file is gone
    new: list[int]  # places of images that the cache does not have


def match_images(
    table: ImageTable,
    listing: ImageTable,
    *,
    where: Path,
    find_moved: FindMoved | None = None,
    gone: Gone | None = None,
) -> Match:
    """Finds every old image in a listing, by its key, or by its content where its file was moved.

    Args:
        find_moved: which of some rows are which of some places of the listing, by the images' content; None: none.
        gone: what becomes of rows whose files are gone; None: an error, but where it was decided before.
    Raises:
        LofftaError: an image is gone or altered.
    """
    listing.refuse_alike({*table.classes, *table.splits})
    listing = _spelled_as(listing, table)
    place_of = {key: i for i, key in enumerate(listing.keys)}
    places = [place_of.get(table.key_now(row), -1) for row in range(len(table))]
    altered = {row: i for row, i in enumerate(places) if i >= 0 and listing.sizes[i] != table.sizes[row]}
    lost = [row for row, i in enumerate(places) if i < 0 or row in altered]
    found = {i for row, i in enumerate(places) if row not in altered}
    free = [i for i in range(len(listing)) if i not in found]
    moved = find_moved(lost, free) if lost and find_moved is not None else {}
    found |= {*moved.values()}
    faults = []
    for row in lost:
        places[row] = moved.get(row, -1)
        i = altered.get(row, -1)
        if i >= 0 and i not in found and row not in moved:
            faults.append(f"{table.key_now(row)}: {table.sizes[row]} bytes before, {listing.sizes[i]} now")
            found.add(i)
        elif row not in moved and gone is None and row not in table.gone:
            faults.append(f"{table.key_now(row)}: gone")
    new = [i for i in range(len(listing)) if i not in found]
    taken = {*table.keys}
    faults += [
        f"{listing.keys[i]}: a new image under the name of one that was moved" for i in new if listing.keys[i] in taken
    ]
    if faults:
        raise LofftaError(
            f"the image set changed: {first_of(faults)}",
            where=where,
            remedy="bring the old images back (new ones may be added), say what becomes of rows whose files are gone "
            "with --gone keep or --gone drop, or extract into a new cache",
        )
    return Match(listing, places, new)


def grow(images: ImageTable, match: Match) -> ImageTable:
    """The table with the new images of a listing behind its rows; itself where there are none."""
    listing, new = match.listing, match.new
    if not new:
        return images
    classes = _joined(images.classes, listing.classes)
    old, other = images.numbered_by(classes), listing.numbered_by(classes)
    labelled = images.label_kind == listing.label_kind  # else the annotations alone can hold the new labels
    return ImageTable(
        images.source,
        [*images.keys, *(listing.keys[i] for i in new)],
        np.concatenate([images.sizes, listing.sizes[new]]),
        [*images.splits, *(listing.splits[i] for i in new)],
        np.concatenate([old.labels, other.labels[new]]),
        classes,
        label_sets=None
        if old.label_sets is None
        else [*old.label_sets, *(other.label_sets[i] if labelled and other.label_sets else None for i in new)],
        values=None
        if images.values is None
        else np.concatenate([images.values, [_or_nan(listing.value(i)) for i in new]]),
        targets={
            name: [*(images.target(name, row) for row in range(len(images))), *(listing.target(name, i) for i in new)]
            for name in dict.fromkeys([*images.targets, *listing.targets])
        },
        not_taken=listing.not_taken,
    )


def say_source(images: ImageTable, table: ImageTable, match: Match, gone: Gone | None) -> tuple[Annotations, str]:
    """What a listing says of all images of a grown table, and in words how that differs from what was said before.

    Args:
        images: the grown table.
        table: of the cache, as it was said before.
        gone: as in `match_images`.
    Returns:
        The words are empty where nothing differs.
    """
    listing = match.listing
    classes = tuple(dict.fromkeys((*listing.classes, *table.classes)))  # the listing's keep their places
    before, now = Annotations.of(table.numbered_by(classes)), Annotations.of(listing.numbered_by(classes))
    lost = [row for row, i in enumerate(match.places) if i < 0]
    places = [*match.places, *match.new]
    keys_now = {row: listing.keys[i] for row, i in enumerate(match.places) if i >= 0}

    def merged(new: Sequence[Any] | None, old: Sequence[Any] | None) -> list[Any]:
        """The listing's word on every image, the older one on those that are gone."""
        return [(new[i] if new else None) if i >= 0 else (old[row] if old else None) for row, i in enumerate(places)]

    targets = {
        name: merged(listing.targets.get(name), table.targets.get(name))
        for name in dict.fromkeys([*table.targets, *listing.targets])
    }
    same_kind = table.label_kind == listing.label_kind
    said = Annotations(
        images.keys,
        images.identity(range(len(images))),
        merged(now.splits, before.splits),
        listing.label_kind,
        classes if lost and same_kind else listing.classes,
        merged(now.labels, before.labels if same_kind else None),
        targets={name: paths for name, paths in targets.items() if any(paths)},
        moved={row: key for row, key in keys_now.items() if key != images.keys[row]},
        gone=frozenset(lost),
    )
    for row in lost if gone is not None else ():
        assert said.splits is not None
        said.splits[row] = None if gone == "drop" else table.splits[row] or images.splits[row]
    return said, _differences(table, before, said)


def _differences(table: ImageTable, before: Annotations, said: Annotations) -> str:
    """In words: how many old images are called otherwise, by what; empty where none is."""
    counts = {
        "split": _n_other(before.splits, said.splits),
        _WORDS[said.kind or "single-label"]: _n_other(before.labels, said.labels)
        if before.kind == said.kind
        else len(table),
    }
    for name in dict.fromkeys([*(before.targets or ()), *(said.targets or ())]):
        counts[name] = _n_other(
            *(one.get(name) or [None] * len(table) for one in (before.targets or {}, said.targets or {}))
        )
    parts = [f"{name} of {n:,}" for name, n in counts.items() if n]
    words = [f"of the {len(table):,} old images {' and '.join(parts)} differ"] if parts else []
    n_moved = sum(key != table.key_now(row) for row, key in said.moved.items())
    n_moved += len({*table.moved} - {*said.moved} - said.gone)  # moved back
    words += [f"{n_moved:,} {plural(n_moved, 'file was', 'files were')} moved"] if n_moved else []
    n_gone = len(said.gone - table.gone)
    words += [f"the {plural(n_gone, 'file')} of {n_gone:,} {plural(n_gone, 'is', 'are')} gone"] if n_gone else []
    n_back = len(table.gone - said.gone)
    words += [f"the {plural(n_back, 'file')} of {n_back:,} {plural(n_back, 'is', 'are')} there again"] if n_back else []
    return "; ".join(words)


def _n_other(before: Sequence[Any] | None, now: Sequence[Any] | None) -> int:
    return sum(a != b for a, b in zip(before or (), now or (), strict=False))  # the new images have no `before`


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _spelled_as(listing: ImageTable, old: ImageTable) -> ImageTable:
    """A listing in the old table's spelling: caches made before names had one spelling keep theirs."""
    there = {*old.classes, *old.splits}
    known = {spelled(name): name for name in there if spelled(name) not in there}
    if not known:
        return listing
    classes = tuple(known.get(name, name) for name in listing.classes)
    return replace(listing, classes=classes, splits=[known.get(split, split) for split in listing.splits])


def _joined(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a grown set: in the listing's order, as a fresh cache has them, where it is the old one's, too.

    Else, in a cache made by another order, the old ones stay as they are and the new ones come behind them.
    """
    known = set(old)
    if [name for name in new if name in known] == list(old):
        return new
    return (*old, *(name for name in new if name not in known))

"""Which images an extraction is asked for, and which rows of a unit it therefore writes.

In: an open cache and `--splits`, `--limit`.   Out: rows by unit. Called by `begin`, `extract` and `space`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import done_units
from loffta.store.target_files import UnitFiles
from loffta.store.texts import Names

_RUNS = 16  # stretches of rows that a limited split is taken from: its classes are sorted, and a stretch is a batch


def asked_rows(cache: Cache, splits: str | None, limit: int | None) -> dict[int, Sequence[int]]:
    """Rows by unit of all images, or of some: those of `splits` (joined by +), and `limit` of these.

    Raises:
        UsageError: no such split.
    """
    if splits is None and (limit is None or limit >= len(cache.table)):
        return {unit: cache.rows_of_unit(unit) for unit in range(cache.n_units)}
    if splits is not None:
        cache.table.check_split(splits, where="--splits")
    rows = np.arange(len(cache.table)) if splits is None else cache.table.rows_of(splits)
    if limit is not None and limit < len(rows):
        rows = rows[limited_rows(cache.table.split_names.take(rows), limit)]
    units, starts = np.unique(rows // cache.unit_images, return_index=True)
    parts = np.split(rows, starts[1:])
    return {unit: _listed(part) for unit, part in zip(units.tolist(), parts, strict=True)}


def _listed(rows: NDArray[np.int64]) -> Sequence[int]:
    """The same rows; neighbours, as those of a whole unit are, without an object a row."""
    first, stop = int(rows[0]), int(rows[-1]) + 1
    return range(first, stop) if stop - first == len(rows) else rows.tolist()


@dataclass(frozen=True)
class Lack:
    """What is still to be written of a unit, as of one look."""

    rows: Sequence[int]  # asked for, and what the arrays hold that lack some of them: it is written anew
    names: frozenset[str]  # of these arrays


def look_at(
    arrays: Iterable[CachedArray | UnitFiles],
    unit: int,
    rows: Sequence[int],
    seen: Mapping[str, Collection[int]] | None = None,
) -> Lack:
    """Looks whether arrays have `rows` of a unit: opens a done file of each, or those alone that `seen` knows of.

    Args:
        seen: by array the units that have a done file, as of a listing; see `list_done`.
    """
    held: set[int] = set()
    names: set[str] = set()
    for array in arrays:
        name, listed = array.paths.name, set[int]()
        if seen is None or unit in seen[name]:
            if seen is not None and array.has_unit(unit, rows):  # most of them: by the footer alone
                continue
            listed = {*array.listed(unit)}
        if not listed.issuperset(rows):
            names.add(name)
            held |= listed
    return Lack(rows if held.issubset(rows) else sorted(held.union(rows)), frozenset(names))


def list_done(arrays: Iterable[CachedArray | UnitFiles]) -> dict[str, set[int]]:
    """By array the units that have a done file: a listing each."""
    return {array.paths.name: {*done_units(array.paths)} for array in arrays}


def rows_due(arrays: Iterable[CachedArray | UnitFiles], unit: int, rows: Sequence[int]) -> Sequence[int]:
    """Rows to write of a unit, as `look_at` finds them."""
    return look_at(arrays, unit, rows).rows


def limited_rows(splits: Sequence[str], limit: int) -> NDArray[np.int64]:
    """Rows of the `limit` images that stand for a set, rising: a share of every split, spread over it.

    Shares are proportional, by largest remainders, and one image at least while the limit lasts. Each is taken from up
    to _RUNS stretches of neighbours: the first rows would be one split, and in it one class.

    Args:
        splits: of every image.
    """
    names = Names.of(splits)
    rows_of_split = [names.rows_of({name}) for name in names.known]
    sizes = np.array([len(rows) for rows in rows_of_split])
    exact = limit * sizes / sizes.sum()
    shares = np.minimum(np.maximum(np.floor(exact).astype(np.int64), 1), sizes)
    while shares.sum() > limit:
        shares[np.argmax(shares - exact + (limit + 1) * (shares > 1))] -= 1  # the last image of a split goes last
    while shares.sum() < min(limit, sizes.sum()):
        shares[np.argmax(np.where(shares < sizes, exact - shares, -np.inf))] += 1
    found = [_spread(rows, int(share)) for rows, share in zip(rows_of_split, shares, strict=True)]
    return np.sort(np.concatenate(found))


def _spread(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The first rows of each of up to _RUNS equal parts, `n` in all."""
    n_runs = max(1, min(n, _RUNS))
    parts = np.array_split(rows, n_runs)
    return np.concatenate([part[: n // n_runs + (i < n % n_runs)] for i, part in enumerate(parts)])

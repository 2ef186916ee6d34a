"""What happens in a cache right now, and what nobody needs any more: for `loffta info`, and for who helps others.

In: an open cache.   Out: writers, rates and orphans, from the names, sizes and times of files. Opens none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loffta.files.durable import Part, find_parts
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import done_units
from loffta.store.paths import TARGETS, ArrayPaths, names_in

WINDOW_S = 600.0  # units that were finished in these last seconds make the rate
CLOCKS_S = 900.0  # by which the clocks of machines may differ


@dataclass(frozen=True)
class Writer:
    """A process that writes."""

    host: str
    pid: int
    files: int  # that it has open
    bytes: int  # written to them so far
    age_s: float  # since it last wrote


@dataclass(frozen=True)
class Orphan:
    """Something that takes space and serves nobody."""

    what: str
    path: Path
    bytes: int


def find_writers(parts: Iterable[Part]) -> list[Writer]:
    """Living processes, by their temporary files."""
    owned: dict[tuple[str, int], list[Part]] = {}
    for part in parts:
        if not part.stale:
            owned.setdefault((part.host, part.pid), []).append(part)
    return [
        Writer(host, pid, len(held), sum(p.bytes for p in held), min(p.age_s for p in held))
        for (host, pid), held in sorted(owned.items())
    ]


def units_at_work(arrays: Iterable[ArrayPaths]) -> dict[int, int]:
    """How many other processes write a unit now, by the names of their shards' temporary files.

    A process that was killed on another host counts for a day: nobody can ask for it.
    """
    owners: dict[int, set[tuple[str, int]]] = {}
    for paths in arrays:
        for part in find_parts(paths.folder):
            unit = paths.unit_of_part(part.path.name)
            if unit is not None and not part.stale and not part.is_mine:
                owners.setdefault(unit, set()).add((part.host, part.pid))
    return {unit: len(found) for unit, found in owners.items()}


def images_per_s(cache: Cache, arrays: Sequence[CachedArray]) -> float | None:
    """Rate at which units of a store were finished of late; None where fewer than two were.

    A unit is finished when the last of its arrays' done files is. Their times are of other clocks than ours: they are
    compared with ours only as far as clocks agree.
    """
    now = time.time()
    finished: dict[int, float] = {}
    for array in arrays:
        for unit in done_units(array.paths):
            try:
                stamp = array.paths.done(unit).stat().st_mtime
            except FileNotFoundError:  # dropped meanwhile
                continue
            finished[unit] = max(finished.get(unit, 0.0), stamp)
    newest = max(finished.values(), default=0.0)
    if newest > now or WINDOW_S < now - newest <= WINDOW_S + CLOCKS_S:
        now = newest
    recent = sorted((stamp, unit) for unit, stamp in finished.items() if now - stamp <= WINDOW_S)
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    n_images = sum(len(cache.rows_of_unit(unit)) for _, unit in recent[1:])
    return n_images / (recent[-1][0] - recent[0][0])


def find_orphans(cache: Cache, arrays: Iterable[CachedArray], parts: Iterable[Part]) -> list[Orphan]:
    """Shards without a done file, arrays without zarr.json, done files without an array, what killed processes left.

    Args:
        arrays: those that can be read; of others nothing is said, for it is not known whom they serve.
    """
    orphans = []
    for array in arrays:
        shards = array.paths.shard_sizes()  # before the done files that come later
        vouched = {array.paths.shard(unit, array.layout.ndim).name for unit in done_units(array.paths)}
        orphans += [
            Orphan("a shard without done file", array.paths.folder / name, shards[name])
            for name in sorted({*shards} - vouched)
        ]
    for folder in sorted(path for path in map(cache.paths.store, names_in(cache.paths.stores)) if path.is_dir()):
        if not cache.paths.store_metadata(folder.name).exists():
            orphans.append(_orphan("a store without zarr.json", folder))
            continue
        bare = [
            f for f in folder.iterdir() if f.is_dir() and not cache.paths.array(folder.name, f.name).metadata.exists()
        ]
        orphans += [_orphan("an array without zarr.json", path) for path in sorted(bare)]
    done = [paths for paths in cache.paths.done_arrays() if names_in(paths.done_folder)]
    orphans += [_orphan("done files without array", paths.done_folder) for paths in done if not _is_there(cache, paths)]
    return orphans + [Orphan("left by a killed process", part.path, part.bytes) for part in parts if part.stale]


def _is_there(cache: Cache, paths: ArrayPaths) -> bool:
    """Whether there is an array, and its store."""
    owner = paths.name.partition("/")[0]
    return paths.metadata.exists() and (owner == TARGETS or cache.paths.store_metadata(owner).exists())


def _orphan(what: str, folder: Path) -> Orphan:
    return Orphan(what, folder, sum(_size(file) for file in folder.rglob("*") if not file.is_dir()))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

"""Shards that are gone though their done files are there: scratch file systems delete what nobody read for weeks.

Noticed at the start of every command by listing names, a folder at a time: no file is opened, none is asked for its
size. Called by `features` (training stops), `extract` (the units are written anew) and `inventory`. Who acts upon it
asks `still_missing` and `still_lost`: over a network file system a shard of another node may show later than its done
file, and a done file would be deleted, or a training refused, for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from loffta.files.os_words import guard
from loffta.machine.late import Sleep, look_again, pause
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import done_units, waiting_units
from loffta.store.paths import TARGETS, ArrayPaths, names_in
from loffta.targets import TARGET_KINDS


def missing_shards(array: CachedArray) -> list[int]:
    """Finished units whose shard is not there, in order."""
    units = done_units(array.paths)  # first: a writer puts the shard in place before its done file
    names = set(names_in(array.paths.folder))  # none where the folder is gone, too
    return [unit for unit in units if array.paths.shard(unit, array.layout.ndim).name not in names]


def all_missing_shards(arrays: Iterable[CachedArray]) -> dict[str, list[int]]:
    """Missing units by array; arrays that have all their shards are left out."""
    return {array.paths.name: units for array in arrays if (units := missing_shards(array))}


def still_missing(cache: Cache, arrays: Sequence[CachedArray], sleep: Sleep = pause) -> dict[str, list[int]]:
    """`all_missing_shards`, looked for again where files may show late."""
    return look_again(lambda: all_missing_shards(arrays), cache.paths.root, "shards of finished units", sleep)


def still_lost(cache: Cache, sleep: Sleep = pause) -> list[str]:
    """`lost_metadata`, looked for again where files may show late."""
    return look_again(lambda: lost_metadata(cache), cache.paths.root, "the zarr.json of finished units", sleep)


def missing_natives(cache: Cache) -> dict[str, list[int]]:
    """By name the units of dense targets whose squares are there, and which are not there at their own size."""
    found: dict[str, list[int]] = {}
    for kind in TARGET_KINDS:
        names = [name for name in cache.paths.training_names() if name.startswith(f"{kind}-")]
        paths = [cache.paths.units(f"{TARGETS}/{name}") for name in names]
        native = cache.paths.native(kind)
        gone = {unit for one in paths for unit in done_units(one)} - {*done_units(native)} - {*waiting_units(native)}
        if gone:
            found[native.name] = sorted(gone)
    return found


def describe_missing(missing: Mapping[str, Sequence[int]]) -> str:
    """All that is gone, an array a line: `net-0a1b2c3d/grid-0: units 0-3, 7`."""
    lines = [f"{name}: units {_spans(units)}" for name, units in missing.items()]
    n_shards = sum(map(len, missing.values()))
    gone = "1 shard of a finished unit is gone:" if n_shards == 1 else f"{n_shards} shards of finished units are gone:"
    return "\n    ".join([gone, *lines])


def lost_metadata(cache: Cache) -> list[str]:
    """Stores and arrays that have done files but no zarr.json any more: `<store>`, `<store>/<kind>-<k>`, `targets/...`.

    Nothing else shows that they were there: commands would go on with fewer backbones or taps than there are.
    """
    lost = []
    for paths in cache.paths.done_arrays():
        if done_units(paths):
            owner = paths.name.partition("/")[0]
            if owner != TARGETS and not cache.paths.store_metadata(owner).exists():
                lost.append(owner)
            if not paths.metadata.exists():
                lost.append(paths.name)
    return list(dict.fromkeys(lost))


def describe_lost(lost: Sequence[str]) -> str:
    """All of `lost_metadata`, one a line."""
    return "\n    ".join(["the zarr.json is gone of", *lost])


def forget_missing(cache: Cache, sleep: Sleep = pause) -> tuple[list[str], dict[str, list[int]]]:
    """Deletes the done files of all units whose shard is gone, so that `extract` writes exactly these anew.

    Those of an array without its zarr.json go too: nobody knows of which taps they speak.

    Returns:
        What had lost its zarr.json; units that were missing, by array.
    """
    lost = still_lost(cache, sleep)
    for name in lost:
        paths = cache.paths.named(name)
        for unit in done_units(paths):  # a lost store has none of its own
            _forget(paths, unit)
    arrays = [*cache.arrays()]
    missing = still_missing(cache, arrays, sleep)
    for array in arrays:
        for unit in missing.get(array.paths.name, []):
            if not array.paths.shard(unit, array.layout.ndim).exists():  # else another process has just written it
                _forget(array.paths, unit)
    natives = look_again(lambda: missing_natives(cache), cache.paths.root, "targets of finished units", sleep)
    return lost, missing | natives


def _forget(paths: ArrayPaths, unit: int) -> None:
    with guard(paths.done(unit)):
        paths.done(unit).unlink(missing_ok=True)


def _spans(units: Sequence[int]) -> str:
    """[0, 1, 2, 7] -> '0-2, 7'."""
    spans: list[list[int]] = []
    for unit in units:
        if spans and unit == spans[-1][1] + 1:
            spans[-1][1] = unit
        else:
            spans.append([unit, unit])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)

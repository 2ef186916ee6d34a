"""Copies a cache in another form: packed, for tape, a quota or a colleague; or unpacked, as extraction wrote it.

In: an open cache, a folder, a codec or none.   Out: a cache there, whose done files are those of the original byte for
byte: they hold the crc32c of every plain chunk, so each copy proves itself against what was extracted.

The order is extraction's: a unit's shard, then its done file; cache.json comes last, so a copy that was stopped is no
cache yet, and the same call goes on where it ended. What a folder has already stays as it is, but labels and targets
of a packed copy follow the original.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loffta.errors import DamageFound, LofftaError, UsageError, unknown_name
from loffta.files.documents import from_json
from loffta.files.durable import create_file, make_folder, sweep_tree
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.machine.quota import free_room, user_quota
from loffta.store.array_copy import ArrayCopy, plain_bytes
from loffta.store.beside import copy_beside
from loffta.store.cache import Cache, CachedArray
from loffta.store.codecs import codec_name
from loffta.store.ledger import done_units
from loffta.store.paths import CachePaths
from loffta.store.purge import describe_lost, describe_missing, still_lost, still_missing
from loffta.store.reads import REPAIR, read_file
from loffta.store.space import shortages
from loffta.store.table import MAX_BYTES

_GOES_ON = "units that are finished stay: the same command goes on with the others"


@dataclass(frozen=True)
class CopiedArray:
    """What a copy has of one array."""

    array: str  # <store>/<kind>-<k>
    codec: str | None  # None: plain
    images: int  # settled by done files; of a store that is not finished they are fewer than the cache has
    bytes: int  # of its shards
    plain_bytes: int  # of its shards where it is not packed


@dataclass(frozen=True)
class CopyReport:
    """What a call did, and what the copy has now."""

    cache: str  # the folder of the copy
    images: int  # of the set
    arrays: list[CopiedArray]
    units: int  # written by this call
    seconds: float

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(array.bytes for array in self.arrays)

    @property
    def plain_bytes(self) -> int:
        """Of all shards where none is packed."""
        return sum(array.plain_bytes for array in self.arrays)


def copy_cache(
    cache: Cache, out: Path, *, codec: str | None, store: str | None = None, stop: process.StopFlag
) -> CopyReport:
    """Copies stores with the images, labels and targets that belong to them.

    Args:
        codec: of CODECS; None: plain, as extraction writes it. Arrays that a codec makes larger stay plain.
        store: one alone, by its name; None: all.
    Raises:
        UsageError: no such store or codec, or `out` lies inside the cache.
        LofftaError: the folder holds something else, there is no room, a codec is not installed.
        DamageFound: a chunk is not the one that was extracted.
        Stopped: a signal came.
    """
    start = time.perf_counter()
    names = cache.paths.store_names()
    if store is not None and store not in names:
        raise unknown_name("store", store, names, where=cache.paths.stores)
    arrays = [a for name in ([store] if store else names) for a in cache.store(name).arrays]
    if lost := still_lost(cache):
        raise DamageFound(describe_lost(lost), where=cache.paths.root, remedy=REPAIR)
    if missing := still_missing(cache, arrays):
        raise DamageFound(describe_missing(missing), where=cache.paths.root, remedy=REPAIR)
    copy = CachePaths(out)
    _check_place(cache, copy)
    n_threads = process.available_cpus()
    with ThreadPoolExecutor(n_threads, "loffta-pack") as pool:
        copies = [ArrayCopy(array, copy.named(array.paths.name), codec, pool, n_threads) for array in arrays]
        make_folder(out)
        sweep_tree(out)
        if codec is None:
            _check_room(out, copies)
        create_file(copy.images, read_file(cache.paths.images, MAX_BYTES))
        units = sum(len(target.units) for target in copies)
        try:
            with Progress("unpack" if codec is None else "pack", units, "units") as progress:
                for target in copies:
                    target.create(cache)
                    for unit in target.units:
                        stop.check("copying")
                        target.copy_unit(unit)
                        progress.advance(1)
            copy_beside(cache.paths, copy, refresh=codec is not None or not copy.config.exists())
        except LofftaError as error:
            error.add_note(_GOES_ON)
            raise
    create_file(copy.config, read_file(cache.paths.config))
    made = Cache.open(out)
    copied = [_describe(made, array) for array in arrays]
    return CopyReport(str(out), len(cache.table), copied, units, time.perf_counter() - start)


def _check_place(cache: Cache, copy: CachePaths) -> None:
    """Refuses a folder inside the cache, and one that is not a copy of it, finished or begun."""
    root, out = cache.paths.root.resolve(), copy.root.resolve()
    if out.is_relative_to(root):
        raise UsageError("a copy inside the cache itself", where=copy.root, remedy="give another folder as --out")
    begun = copy.images.is_file()
    if not begun and copy.is_foreign():
        raise LofftaError("this folder holds something else", where=copy.root, remedy="choose an empty or new folder")
    pairs = [(copy.images, cache.paths.images), (copy.config, cache.paths.config)]
    for theirs, ours in pairs:
        if theirs.is_file() and _said(theirs) != _said(ours):
            raise LofftaError(
                "this folder holds a cache of other images, or of another unit size",
                where=theirs,
                remedy="choose an empty or new folder; one that holds fewer images than the cache has now cannot grow",
            )


def _said(path: Path) -> Any:
    """What a document of a cache says, however it is spaced."""
    data = read_file(path, MAX_BYTES)
    return from_json(data) if path.suffix == ".json" else data


def _check_room(out: Path, targets: Iterable[ArrayCopy]) -> None:
    """Plain shards are as long as is known beforehand; of packed ones the disk tells."""
    work = [*targets]
    n_files = 2 * sum(len(target.units) for target in work)
    short = shortages(sum(target.bytes for target in work), n_files, free_room(out), user_quota(out))
    if short:
        raise LofftaError("; ".join(short), where=out, remedy="unpack to another disk, or make room on this one")


def _describe(made: Cache, original: CachedArray) -> CopiedArray:
    """DamageFound where the copy's documents contradict each other."""
    store, _, name = original.paths.name.partition("/")
    array = made.array(store, name, made.store_info(store))
    held = sum(array.paths.shard_sizes().values())
    plain = sum(plain_bytes(array, unit) for unit in done_units(array.paths))
    return CopiedArray(array.paths.name, codec_name(array.layout), array.ledger.listed, held, plain)

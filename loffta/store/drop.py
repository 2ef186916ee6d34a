"""Gives space back: removes a store or one of its arrays, so that a kill at any moment leaves nothing that lies.

Done files go first: from then on no reader trusts the data. The store's own zarr.json goes last: until then the same
command finds what is left and finishes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from loffta.errors import LofftaError, unknown_name
from loffta.os_words import guard
from loffta.store.cache import Cache, CachedArray, Store
from loffta.store.files import remove_folder, sweep_parts, sync_folder


def find_target(cache: Cache, target: str) -> tuple[Store, list[CachedArray]]:
    """What `STORE` or `STORE:ARRAY` names.

    Raises:
        UsageError: no such store or array; near names are given.
    """
    name, colon, wanted = target.partition(":")
    stores = {store.name: store for store in cache.stores()}
    if name not in stores:
        raise unknown_name("store", name, stores, where=cache.paths.stores)
    arrays = {array.paths.folder.name: array for array in stores[name].arrays}
    if colon and wanted not in arrays:
        raise unknown_name("array", wanted, arrays, where=cache.paths.store(name))
    return stores[name], [arrays[wanted]] if colon else list(arrays.values())


def count_bytes(cache: Cache, store: Store, arrays: list[CachedArray]) -> int:
    """Bytes of data and done files that dropping would free."""
    folders = [folder for a in arrays for folder in (a.paths.folder, a.paths.scales, a.paths.done_folder)]
    if len(arrays) == len(store.arrays):
        folders = [cache.paths.store(store.name), cache.paths.done_store(store.name)]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def drop(cache: Cache, store: Store, arrays: list[CachedArray]) -> None:
    """Removes the arrays; with the last one, the store.

    Raises:
        LofftaError: another process is writing there.
    """
    whole = len(arrays) == len(store.arrays)
    for array in arrays:
        _refuse_writers(array)
    for folder in [cache.paths.done_store(store.name)] if whole else [array.paths.done_folder for array in arrays]:
        _remove(folder)
    for array in arrays:
        with guard(array.paths.metadata):
            remove_folder(array.paths.scales)  # before zarr.json: the next array of this name must not find them
            array.paths.metadata.unlink(missing_ok=True)
        _remove(array.paths.folder)
    if whole:
        for folder in (path for path in cache.paths.store(store.name).iterdir() if path.is_dir()):
            _remove(folder)  # what a killed drop left
        _remove(cache.paths.store(store.name))


def _refuse_writers(array: CachedArray) -> None:
    """A temporary file whose process is dead is swept; one that stays belongs to a living writer."""
    sweep_parts(array.paths.folder)
    for part in array.paths.folder.glob(".*.part"):
        raise LofftaError(
            "another process is writing here", where=part, remedy="wait until that `loffta extract` has ended"
        )


def _remove(folder: Path) -> None:
    if folder.is_dir():
        with guard(folder):
            shutil.rmtree(folder)
        sync_folder(folder.parent)

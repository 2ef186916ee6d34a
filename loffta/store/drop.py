"""Gives space back: removes stores, arrays or dense targets, so that a kill at any moment leaves nothing that lies.

Done files go first: from then on no reader trusts the data. The folder that bears the name goes last: until then the
same command finds what is left, whatever can still be read of it, and finishes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loffta.errors import LofftaError, UsageError, unknown_name
from loffta.files.durable import remove_folder, sweep_parts, sync_folder
from loffta.files.os_words import guard
from loffta.store.cache import Cache
from loffta.store.label_sets import find_set
from loffta.store.labels import SOURCE
from loffta.store.paths import LABELS, TARGETS, ArrayPaths, is_own
from loffta.targets import TARGET_KINDS


@dataclass(frozen=True)
class Target:
    """What is to be dropped."""

    store: str
    arrays: list[ArrayPaths]
    folders: list[Path]  # all that goes, in this order

    @property
    def links(self) -> list[Path]:
        """Symbolic links in it: an array that was moved to another disk."""
        return [path for folder in self.folders for path in _walk(folder) if path.is_symlink()]

    def count_bytes(self) -> int:
        """Bytes that dropping frees; what links lead to counts, for it goes, too."""
        places = {place for folder in self.folders for path in _walk(folder) for place in _walk(path.resolve())}
        return sum(place.stat().st_size for place in places if place.is_file() and not place.is_symlink())


def find_target(cache: Cache, target: str) -> Target:
    """What `STORE`, `STORE:ARRAY`, `labels:NAME` or `targets[:KIND]` names, also where it is damaged or half dropped.

    Raises:
        UsageError: no such store or array; near names are given.
        LofftaError: a link in it leads to what no extraction wrote there.
    """
    name, colon, wanted = target.partition(":")
    if name == LABELS and colon:
        if wanted == SOURCE:
            raise UsageError(
                "'source' is what the image set itself says, and where its files were moved to",
                where="drop",
                remedy="run its `loffta extract`, which brings it up to date",
            )
        return Target(name, [], [find_set(cache, wanted)])
    if name == TARGETS:
        return _dense(cache, wanted if colon else None)
    known = cache.paths.remains()
    if name not in known:
        raise unknown_name("store", name, known, where=cache.paths.stores)
    if colon and wanted not in known[name] and known[name]:
        raise unknown_name("array", wanted, known[name], where=cache.paths.store(name))
    chosen = [array for array in known[name] if not colon or array == wanted]
    arrays = [cache.paths.array(name, array) for array in chosen]
    folders = [folder for array in arrays for folder in (array.done_folder, array.scales, array.folder)]
    if len(chosen) == len(known[name]):
        folders = [cache.paths.done_store(name), *folders, cache.paths.store(name)]
    found = Target(name, arrays, folders)
    for link in found.links:
        _refuse_strangers(link, cache.paths.root.resolve())
    return found


def _dense(cache: Cache, wanted: str | None) -> Target:
    """All dense targets, one kind of them, or its squares of one geometry; never the thumbnails, or a feature."""
    names, paths = cache.paths.training_names(), cache.paths
    kinds = [kind for kind in TARGET_KINDS if paths.native(kind).done_folder.exists() or _of_kind(names, kind)]
    if wanted is not None and wanted not in (*kinds, *names):
        raise unknown_name("kind of targets", wanted, [*kinds, *names], where=cache.paths.root / TARGETS)
    gone = [kind for kind in kinds if wanted in (None, kind)]
    chosen = [name for name in names if name == wanted or any(_of_kind([name], kind) for kind in gone)]
    arrays = [paths.target(name) for name in chosen]
    folders = [folder for array in arrays for folder in (array.done_folder, array.folder)]
    folders += [paths.native(kind).done_folder for kind in gone]  # last: squares can be made of them
    found = Target(TARGETS, [*arrays], [folder for folder in folders if os.path.lexists(folder)])
    for link in found.links:
        _refuse_strangers(link, cache.paths.root.resolve())
    return found


def _of_kind(names: Sequence[str], kind: str) -> list[str]:
    return [name for name in names if name.startswith(f"{kind}-")]


def drop(target: Target) -> None:
    """Removes the arrays; with the last one, the store.

    Raises:
        LofftaError: another process is writing there.
    """
    places = [place for array in target.arrays for place in (array.folder, array.folder.parent)]
    for folder in dict.fromkeys([*places, *(folder for folder in target.folders if folder.is_dir())]):
        _refuse_writers(folder)
    scales = [array.scales for array in target.arrays]
    for folder in target.folders:
        if folder in scales and not folder.is_symlink():
            remove_folder(folder)  # at once: `extract` must not find half of them
        else:
            _remove(folder)


def _refuse_strangers(link: Path, root: Path) -> None:
    """What a link leads to is removed, too: it must hold what extractions write, outside the cache, nothing else."""
    place = link.resolve()
    if place.is_relative_to(root) or root.is_relative_to(place):
        stranger: Path | None = place
    else:
        stranger = next((path for path in _walk(place) if path != place and not is_own(path)), None)
    if stranger is not None:
        raise LofftaError(
            f"this link leads to what is not its alone: {stranger}",
            where=link,
            remedy="delete the link, which leaves what it leads to as it is; then the same command drops the rest",
        )


def _refuse_writers(folder: Path) -> None:
    """A temporary file whose process is dead is swept; one that stays belongs to a living writer."""
    sweep_parts(folder)
    for part in folder.glob(".*.part"):
        raise LofftaError(
            "another process is writing here",
            where=part,
            remedy="wait until that `loffta extract` has ended; if there is none any more, delete this file",
        )


def _remove(folder: Path) -> None:
    """Deletes a folder: its zarr.json, so that nobody opens it any more, what links in it lead to, at last itself."""
    with guard(folder):
        if folder.is_dir():
            (folder / "zarr.json").unlink(missing_ok=True)
        for link in [path for path in _walk(folder) if path.is_symlink()]:
            _delete(link.resolve())
        if os.path.lexists(folder):
            _delete(folder)
            sync_folder(folder.parent)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _walk(path: Path) -> Iterator[Path]:
    """A path and all below it, without following links."""
    yield path
    if not path.is_symlink():
        yield from path.rglob("*")

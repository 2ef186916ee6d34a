"""`--stage-dir`: what a job reads in bulk is copied to the node's own disk first, and read from there.

In: features and rows.   Out: the same features, whose shards are read from their copies; and what was done, in a line
and for results.json. Whatever goes wrong, the job goes on with the cache itself and says so once: what it computes is
the same. Called by `training`, `evaluation` and `scanning`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.dataset.features import Feature
from loffta.errors import DamageFound, LofftaError, Stopped
from loffta.feed.sources import group_by_array, union_taps
from loffta.files.durable import delete_part
from loffta.machine import process
from loffta.machine.progress import Progress, say
from loffta.machine.quota import free_room, lies_in_memory
from loffta.store.cache import CachedArray
from loffta.store.near import Near
from loffta.store.reader import chunk_positions
from loffta.store.staging import Copy, drop_older, open_folder, plan_copies
from loffta.words import human_size, human_time, plural

SHARE = 0.9  # of the free room that copies may take: other jobs and the system write there, too
_THREADS = 8  # units that are copied at the same time: a file server wants several requests
_POLL_S = 0.2  # between two looks for a signal
_DOING = "copying to --stage-dir"

Needs = Sequence[tuple[Sequence[Feature], NDArray[np.int64]]]  # features, and rows that are read of them


class Stage:
    """The copies of one job."""

    def __init__(self, folder: str | None, stop: process.StopFlag | None = None) -> None:
        """`folder` as the user typed it, perhaps with variables; None: nothing is copied."""
        self._folder, self._stop = folder, stop or process.StopFlag()
        self._near: dict[Path, Near] = {}  # by the array's folder
        self._sizes: dict[Path, int] = {}  # of the copies in use
        self._copied_bytes, self._seconds = 0, 0.0
        self._why_not: str | None = None  # the cache itself is read
        self._lock = Lock()

    @property
    def waits(self) -> bool:
        """Whether there is a folder, and nothing has been brought there yet."""
        return self._folder is not None and self._why_not is None and not self._sizes

    def bring(self, needs: Needs) -> None:
        """Copies all that is needed and not there yet, or nothing where it does not fit; and says so.

        Raises:
            Stopped: a signal came; finished copies stay for the next start.
        """
        if self._folder is None or self._why_not is not None:
            return
        start = time.monotonic()
        try:
            root = open_folder(self._folder)
            with ThreadPoolExecutor(_THREADS) as pool:
                copies = [copy for wanted in _merged(needs) for copy in wanted.plan(root, pool)]
                is_new = any(copy.path not in self._sizes for copy in copies)
                told = self._make(root, copies, pool)
        except Stopped:
            raise
        except (LofftaError, OSError) as error:
            self._give_up(error.what if isinstance(error, LofftaError) else error.strerror or type(error).__name__)
            return
        taken_s = time.monotonic() - start
        self._seconds += taken_s
        if is_new:
            say(f"--stage-dir: {told} in {human_time(taken_s)}, to be read from {root}")

    def use(self, features: Sequence[Feature]) -> list[Feature]:
        """The features; their shards are read from the copies that were brought."""
        found = [(f, self._near.get(f.array.paths.folder)) for f in features]
        return [replace(f, near=near, views=tuple(self.use(f.views))) for f, near in found]

    @property
    def told(self) -> dict[str, Any]:
        """What results say of it; nothing without a folder."""
        if self._folder is None:
            return {}
        size = {"shards": len(self._sizes), "bytes": sum(self._sizes.values()), "copied_bytes": self._copied_bytes}
        return {"staging": {"folder": self._folder, **size, "seconds": self._seconds, "given_up": self._why_not}}

    def _make(self, root: Path, copies: Sequence[Copy], pool: ThreadPoolExecutor) -> str:
        """Copies what is not there, and notes where all is; what was done in words."""
        missing = [copy for copy in copies if copy.size() is None]
        check_room(root, sum(copy.bytes for copy in missing), len(missing))
        made: dict[Path, int] = {}  # bytes
        damaged: list[DamageFound] = []
        try:
            self._copy(missing, pool, made, damaged)
        except (LofftaError, OSError) as error:
            if not isinstance(error, Stopped):
                for path in made:  # what is of no use must not fill a disk that others write to
                    delete_part(path)
            raise
        sizes = {copy: size for copy in copies if (size := copy.size()) is not None}
        for copy in sizes:
            near = self._near.setdefault(copy.array.paths.folder, Near(self._give_up))
            near.add({copy.unit: copy.path})
        drop_older(copies)
        self._sizes |= {copy.path: size for copy, size in sizes.items()}
        self._copied_bytes += (n_made := sum(made.values()))
        found = [f"{human_size(n_made)} copied ({len(made)} {plural(len(made), 'shard')})"]
        n_there = sum(sizes.values()) - n_made
        found += [f"{human_size(n_there)} there already"] if n_there else []
        if damaged:
            found.append(f"{len(damaged)} left where they are ({damaged[0].what}: {damaged[0].where})")
        return ", ".join(found)

    def _copy(
        self, missing: Sequence[Copy], pool: ThreadPoolExecutor, made: dict[Path, int], damaged: list[DamageFound]
    ) -> None:
        """Fills `made` with what is copied here, and `damaged` with why an original could not be."""
        halt = Event()
        first = os.getpid() % max(1, len(missing))  # so that jobs that begin at once share the work
        ordered = [*missing[first:], *missing[:first]]
        running: dict[Future[int], Copy] = {pool.submit(copy.make, halt): copy for copy in ordered}
        try:
            with Progress("copy to --stage-dir", len(missing), "shards") as progress:
                while running:
                    self._stop.check(_DOING)
                    for future in wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED).done:
                        copy = running.pop(future)
                        try:
                            if n_bytes := future.result():
                                made[copy.path] = n_bytes
                        except DamageFound as damage:
                            damaged.append(damage)
                        progress.advance(1)
        finally:
            halt.set()
            for future in running:
                future.cancel()
            for future in wait(running).done:
                if not future.cancelled() and future.exception() is None and (n_bytes := future.result()):
                    made[running[future].path] = n_bytes

    def _give_up(self, why: str) -> None:
        """From now on the cache itself is read."""
        with self._lock:  # threads of a feed may meet the same trouble at once
            if self._why_not is not None:
                return
            self._why_not = why
        say(f"--stage-dir {self._folder or repr('')}: {why}; the cache is read where it is")
        for near in self._near.values():
            near.give_up(why)


@dataclass
class _Wanted:
    """What is read of one array."""

    array: CachedArray
    positions: NDArray[np.int64]  # chunks of each image, rising
    units: set[int]

    def plan(self, root: Path, pool: ThreadPoolExecutor) -> list[Copy]:
        return plan_copies(root, self.array, self.positions, sorted(self.units), pool)


def _merged(needs: Needs) -> list[_Wanted]:
    """What is read of each array by all needs together; each view of the images is an array of its own."""
    found: dict[Path, _Wanted] = {}
    for features, rows in needs:
        for members in group_by_array(features):
            first = features[members[0]]
            taps = union_taps([features[i] for i in members])
            for array in (first.array, *(view.array for view in first.views)):
                units = {*np.unique(rows // array.layout.unit_images).tolist()}
                positions = chunk_positions(array.layout, taps, array.paths.name)
                wanted = found.setdefault(array.paths.folder, _Wanted(array, positions, set()))
                wanted.positions = np.union1d(wanted.positions, positions)
                wanted.units |= units
    return list(found.values())


def check_room(root: Path, n_bytes: int, n_files: int) -> None:
    """Raises LofftaError where so much does not fit, with room to spare."""
    room, where = free_room(root), "free there"
    free = room.bytes
    if lies_in_memory(root) and process.free_memory_bytes() < free:
        free, where = process.free_memory_bytes(), "left of the memory, in which that folder lies"
    what = None
    if n_bytes > SHARE * free:
        what = f"{human_size(n_bytes)} do not fit: {human_size(free)} are {where}"
    elif n_files and room.files is not None and n_files > SHARE * room.files:
        what = f"{n_files} files do not fit: {room.files} more can be made there"
    if what is not None:
        raise LofftaError(what, where=root, remedy="free some, or stage fewer taps or stores with --features")

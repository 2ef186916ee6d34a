"""Many members on many ranks, and nothing exchanged: seeds, folds, draws and settings of a search are dealt out.

In: a Session, packages of members.   Out: every package trained, by whichever rank came to it first. A package is the
training that one process makes of these members, to the bit, with a folder, a claim and a checkpoint of its own: files
are all that is shared, and the number of ranks may be another when the same command goes on. A rank that has done its
own takes what nobody is at: of one that is slow, or that has died.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loffta.files.durable import create_file
from loffta.heads.recipe import Recipe
from loffta.machine.process import StopFlag
from loffta.machine.ranks import Rank
from loffta.runs.claims import AtWork, claimed
from loffta.runs.records import Dealt, Ordering
from loffta.runs.run import RunLog, RunPaths, read_json
from loffta.training.fit import Session
from loffta.training.supply import TrainingFeed

LOOK_S = 2.0  # between two looks at what others have done
TRY_S = 30.0  # between two looks at whether they live: each writes a file


@dataclass(frozen=True)
class Package:
    """Members that train side by side."""

    paths: RunPaths  # of its checkpoint, its claim and its log
    is_done: Callable[[], bool]
    work: Callable[[Session], None]


def open_deal(paths: RunPaths, rank: Rank) -> int:
    """Into how many packages the members of this run are dealt: as many as ranks were there when it began."""
    create_file(paths.deal, json.dumps(Dealt(ranks=rank.of).model_dump()).encode())
    return read_json(paths.deal, Dealt).ranks


def deal(session: Session, packages: Sequence[Package]) -> None:
    """Returns when all packages are done, by this rank or by others.

    Raises:
        LofftaError: as the training of a package.
        Stopped: a signal came.
    """
    own = session.rank.number % len(packages)
    order = [*packages[own:], *packages[:own]]
    while left := _open(order):
        if not any(_try(session, package) for package in left):
            n_left = len(left)
            wait(session.stop, lambda: len(_open(order)) < n_left, TRY_S)  # noqa: B023  it is called in here alone


def _open(packages: Sequence[Package]) -> list[Package]:
    return [package for package in packages if not package.is_done()]


def _try(session: Session, package: Package) -> bool:
    """Does a package, if no other rank is at it."""
    try:
        with claimed(package.paths) as claim:
            if not package.is_done():
                own = replace(session, paths=package.paths, claim=claim, log=RunLog(package.paths.log))
                package.work(own)
                package.paths.checkpoint.unlink(missing_ok=True)
    except AtWork:
        return False
    return True


def wait(stop: StopFlag, condition: Callable[[], bool], seconds: float) -> bool:
    """Until others have brought something about; False where they have not for so long.

    Raises:
        Stopped: a signal came.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        stop.check("waiting for other ranks")
        time.sleep(LOOK_S)
    return True


def open_feed(session: Session, rows: Any, recipe: Recipe, path: Path) -> TrainingFeed:
    """The feed of a package, in the order that its first one took: of itself it depends on each node's free memory.

    Args:
        path: says the order; the first one to come writes it.
    """
    feed = session.feed(rows, recipe, _read_order(path))
    create_file(path, json.dumps(Ordering(order=feed.ordering).model_dump()).encode())
    if (first := _read_order(path)) == feed.ordering:
        return feed
    with feed:
        return session.feed(rows, recipe, first)


def _read_order(path: Path) -> dict[str, Any] | None:
    return read_json(path, Ordering).order if path.exists() else None

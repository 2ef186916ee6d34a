"""What a cache should have and does not show: it is looked for again where files may show late, and then refused.

In: a cache, arrays and rows.   Out: nothing, or an error that says what to do. Called by `features`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.machine.late import is_job, look_again
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import unfinished
from loffta.store.paths import TARGETS
from loffta.store.purge import describe_lost, describe_missing, still_missing


def refuse_lost(cache: Cache, lost: Sequence[str]) -> None:
    """A set of taps or stores must not silently mean fewer than were extracted."""
    lost = [name for name in lost if not name.startswith(TARGETS)]
    if lost:
        raise DamageFound(
            describe_lost(lost),
            where=cache.paths.root,
            remedy="was the file system purged? Run the `loffta extract` that made them again, or name with --features "
            "STORE:TAPS what is still there",
        )


def refuse_missing_shards(cache: Cache, arrays: Sequence[CachedArray]) -> None:
    """Shards of finished units that are gone."""
    missing = still_missing(cache, arrays)
    if missing:
        raise DamageFound(
            describe_missing(missing),
            where=cache.paths.root,
            remedy="was the file system purged? Write exactly these units anew with\n      "
            + shlex.join(["loffta", "verify", str(cache.paths.root), "--repair"]),
        )


def await_units(cache: Cache, arrays: Sequence[CachedArray], rows: NDArray[np.int64]) -> None:
    """In a job: waits for units that are not there, for the job that wrote them may have just ended on another node."""
    lacking = [array for array in arrays if not settled_rows(array, len(cache.table))[1][rows].all()]
    if lacking and is_job():
        units = {*(rows // cache.unit_images).tolist()}
        paths = [array.paths for array in lacking]
        look_again(lambda: unfinished(paths, units), cache.paths.root, "some units of the features")
        for array in lacking:
            array.forget_ledger()


def settled_rows(array: CachedArray, n_rows: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per row of the table: has data, and has data or is quarantined.

    A store not yet grown has only old rows, and a table of old rows only (a run's) fewer than the store.
    """
    here = array.ledger.ready[:n_rows]
    ready = np.zeros(n_rows, dtype=bool)
    ready[: len(here)] = here
    settled = ready.copy()
    settled[[row for row in array.ledger.bad if row < n_rows]] = True
    return ready, settled

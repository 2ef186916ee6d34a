"""What became of dense targets: how many there are, which are missing or bad, and which the source has otherwise now.

In: a cache and what was asked for.   Out: a TargetReport per kind; notes on stderr; TooManyBadImages.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from loffta.errors import TooManyBadImages
from loffta.extraction.targets import Dense
from loffta.images.sources import ImageSource
from loffta.machine.progress import say
from loffta.store.cache import Cache, CachedArray
from loffta.store.target_files import BAD, MISSING, NOT_GIVEN, OK
from loffta.targets import TargetKind
from loffta.words import plural

LOOK_AT = 256  # targets of a kind that `extract` compares with the source when it finds them in the cache
_N_THREADS = 8


@dataclass
class TargetReport:
    """One kind of dense targets as it is now, of the images asked for."""

    kind: TargetKind
    classes: int
    px: int | None  # side of its squares; None: boxes
    ok: int = 0
    missing: int = 0
    bad: dict[str, str] = field(default_factory=dict)  # images whose target cannot be used, and why
    objects: int = 0  # instances, or boxes


def report_targets(cache: Cache, dense: Sequence[Dense], asked: Mapping[int, Sequence[int]]) -> list[TargetReport]:
    """What there is of each kind, written by whichever process."""
    rows = np.array([row for found in asked.values() for row in found], np.int64)
    reports = []
    for one in dense:
        px = next((s.geometry.image_px for s in one.squares if isinstance(s.form, CachedArray)), None)
        report = TargetReport(one.info.kind, len(one.info.classes), px)
        if one.info.kind in cache.target_kinds():
            native = cache.native(one.info.kind)
            report.classes = len(native.classes)
            status = native.status[rows]
            report.ok, report.missing = int((status == OK).sum()), int((status == MISSING).sum())
            report.bad = {cache.table.keys[row]: native.reasons[row] for row in rows[status == BAD].tolist()}
            report.objects = int(native.n_objects[rows].sum())
        reports.append(report)
    return reports


def judge_targets(cache: Cache, reports: Sequence[TargetReport], max_bad_frac: float) -> None:
    """Raises TooManyBadImages where more targets of a kind than allowed cannot be used."""
    for report in reports:
        n_given = report.ok + len(report.bad)
        if len(report.bad) > max_bad_frac * n_given:
            key, reason = next(iter(report.bad.items()))
            raise TooManyBadImages(
                f"{len(report.bad)} of {n_given} targets '{report.kind}' cannot be used; the first: {key}: {reason}",
                where=cache.paths.root,
                remedy=f"mend them, then {_drop(cache, report.kind)} and the same command again, which touches no "
                "feature; or accept them with --max-bad-frac",
            )


def look_again(cache: Cache, dense: Sequence[Dense], source: ImageSource) -> None:
    """Says which targets the source has otherwise than they were cached, as far as a look at some of them tells, and
    how many images have one now that had none.
    """
    for kind in [one.info.kind for one in dense if one.info.kind in cache.target_kinds()]:
        native, keys = cache.native(kind), cache.table.keys
        rows = [row for row in np.flatnonzero(native.status == OK).tolist() if row not in cache.table.gone]
        looked_at = rows[:: -(-len(rows) // LOOK_AT) or 1]
        again = f"To take them as they are now: {_drop(cache, kind)}, then the same command"
        if altered := changed_targets(cache, source, kind, looked_at):
            of = f"{len(altered):,} of the {len(looked_at):,} targets '{kind}' that were looked at"
            differ = plural(len(altered), "is not what was", "are not what were")
            say(f"{of} {differ} cached, the first of {keys[altered[0]]}; the cached ones stay. {again}")
        without = [row for row, reason in native.reasons.items() if reason == NOT_GIVEN]
        if new := [row for row in without if cache.table.target(kind, row) is not None]:
            have = plural(len(new), "image that had no target", "images that had no target")
            say(f"{len(new):,} {have} '{kind}' {plural(len(new), 'has', 'have')} one now, {keys[new[0]]}. {again}")


def changed_targets(cache: Cache, source: ImageSource, kind: TargetKind, rows: Sequence[int]) -> list[int]:
    """Which of these rows, that have a target, have other bytes at the source now, or none that can be read."""
    hashes = cache.native(kind).hashes(rows)

    def is_changed(row: int) -> bool:
        path = cache.table.target(kind, row)
        try:
            return path is None or hashlib.blake2b(source.read(path), digest_size=16).hexdigest() != hashes[row]
        except OSError:
            return True

    with ThreadPoolExecutor(_N_THREADS) as pool:
        return [row for row, changed in zip(rows, pool.map(is_changed, rows), strict=True) if changed]


def say_altered(cache: Cache, altered: Mapping[TargetKind, int]) -> None:
    """Of units that were written anew, since the set has grown."""
    for kind, n in altered.items():
        if n:
            say(
                f"{n:,} {plural(n, 'target', 'targets')} '{kind}' of units that were written anew changed at the "
                f"source and are as they are now; those of other units stay. To take all anew: {_drop(cache, kind)}, "
                "then the same command"
            )


def _drop(cache: Cache, kind: TargetKind) -> str:
    return shlex.join(["loffta", "drop", str(cache.paths.root), f"targets:{kind}"])

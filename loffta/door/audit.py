"""`loffta.audit`: copies, leaks, wrong labels and outliers of an image set, by its features alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loffta.auditing.audit import audit as find
from loffta.auditing.copies import NEAR
from loffta.auditing.corrections import check_file, refuse_formulas, write_corrections
from loffta.auditing.found import Audit
from loffta.auditing.vectors import Pooling
from loffta.door.options import PathLike, many
from loffta.machine.borrowed import borrowed
from loffta.machine.process import StopFlag
from loffta.reporting.audit_page import check_page, write_audit
from loffta.reporting.audit_text import format_audit
from loffta.store.cache import Cache


@dataclass(frozen=True)
class Audited:
    """What was found, and what was written; `str` of it is what the command prints."""

    found: Audit
    out: Path | None
    fix: Path | None
    corrections: int | None  # rows of `fix` that differ from what the cache says
    show: int = field(repr=False)

    def text(self, width: int = 120) -> str:
        """Counts, and the worst of every kind, as wide as `width`."""
        return format_audit(self.found, self.show, width)

    def as_json(self) -> dict[str, Any]:
        """For programs: everything that was found."""
        return {
            **self.found.as_json(),
            "out": None if self.out is None else str(self.out),
            "fix": None if self.fix is None else str(self.fix),
            "corrections": self.corrections,
        }

    def __str__(self) -> str:
        return self.text()


def audit(
    cache: PathLike,
    *,
    features: str | Sequence[str] | None = None,
    pooling: Pooling = "mean",
    labels: PathLike | None = None,
    train_on: str = "train",
    near: float | int = NEAR,
    folds: int = 5,
    seed: int = 0,
    out: PathLike | None = None,
    fix: PathLike | None = None,
    show: int = 5,
    partial: bool = False,
    device: str = "auto",
    progress: bool = True,
    stop: StopFlag | None = None,
) -> Audited:
    """Looks for faults of the image set of a cache, in all its splits; nothing of the cache changes.

    >>> audited = loffta.audit("cache", fix="fixes.csv", device="cpu")
    >>> audited.found.n_judged, audited.found.leaks, audited.corrections == len(audited.found.label_errors)
    (150, (), True)

    Args:
        features: STORE[:TAPS] as `loffta train` takes them; TAPS: last where they are left out. None: all stores.
        pooling: of the taps: mean, or class (the class token).
        labels: of a set of annotations of the cache, or a file; None: the cache's own.
        train_on: for `fix`: images of this split that have a copy in another leave it.
        near: copies are nearer than this fraction of the median distance to the nearest image.
        folds: that labels are judged by; `seed` draws them.
        out: an HTML page with pictures.
        fix: corrections for `loffta label`, a .csv or .parquet file.
        show: how many of each kind are shown; the page shows four times as many.
        partial: take what is there, though units are missing.
        progress: tell on stderr what is done.
        stop: listened to; for commands.
    Returns:
        All that was found, the worst first.
    Raises:
        UsageError: an option, name or value that cannot be used.
        LofftaError: features are not in the cache, or of fewer than two images.
        DamageFound: finished units are gone.
    """
    page, file = None if out is None else Path(out), None if fix is None else Path(fix)
    if page is not None:
        check_page(page)
    if file is not None:
        check_file(file, "--fix")
    with borrowed(progress=progress):
        opened = Cache.open(Path(cache))
        if labels is not None:
            opened = opened.with_labels(str(labels))
        if file is not None:
            opened.table.check_split(train_on, where="--train-on")
            refuse_formulas(opened.table, file)
        options: dict[str, Any] = {"near": float(near), "folds": folds, "seed": seed, "partial": partial}
        with (stop or StopFlag()).at_once("auditing; nothing was written"):
            found = find(opened, many(features), pooling=pooling, device=device, **options)
        if page is not None:
            write_audit(found, opened, page, 4 * show)
        n_corrected = None if file is None else write_corrections(found, file, train_on)
        return Audited(found, page, file, n_corrected, show)

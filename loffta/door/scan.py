"""`loffta.scan`: which backbone, which layer, by heads that need no training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loffta.config import HeadName, Pooling, ScanConfig, parse
from loffta.door.options import PathLike, given, many
from loffta.machine.borrowed import borrowed
from loffta.machine.process import StopFlag
from loffta.reporting.scan_page import check_ending, write_scan
from loffta.scanning.results import Scan
from loffta.scanning.scan import scan as measure


def scan(
    cache: PathLike,
    *,
    features: str | Sequence[str] = (),
    labels: PathLike | None = None,
    heads: str | Sequence[HeadName] | None = None,
    pooling: str | Sequence[Pooling] = "mean",
    train_on: str = "train",
    validate_on: str | None = None,
    holdout: float | None = None,
    test_on: str = "test",
    folds: int | None = None,
    group: str | None = None,
    shots: int | str | Sequence[int] | None = None,
    draws: int = 5,
    k: int | None = None,
    temperature: float | int = 0.07,
    standardise: bool = False,
    data_seed: int = 0,
    device: str = "auto",
    partial: bool = False,
    stage_dir: PathLike | None = None,
    out: PathLike | None = None,
    progress: bool = True,
    stop: StopFlag | None = None,
) -> Scan:
    """Measures every layer of `cache` with every head, and ranks them.

    >>> found = loffta.scan("cache", heads="knn,ridge", device="cpu")
    >>> len(found.rows), found.best.tied, found.metric
    (12, True, 'top1')

    Args:
        features: STORE[:TAPS], or several; none: all stores, all that they hold.
        labels: a set of annotations of the cache, or a file; None: what the image set says.
        heads: of knn, ncm, ridge, logreg; none: knn, ncm and ridge.
        pooling: mean, cls, cls+mean, or several: what a layer's vector is.
        holdout: keep so much of `train_on` out, as split `holdout`; strengths are chosen on it, or heads tested.
        folds: test all images of `train_on`, each by heads that were trained on other folds.
        group: what the groups are called that are never on both sides of a fold.
        shots: train on so many images of each class; several numbers, several tables.
        k: neighbours; none: 20, or all of fewer images.
        stage_dir: a folder on this machine's own disk that features are copied to before they are read.
        out: a file, of the kind that its ending says: .csv, .md, .tex, .json, .html.
        progress: show progress and notes on stderr.
        stop: listened to; for commands.
    Returns:
        The rows, the best first: scores as fractions from 0 to 1.
    Raises:
        UsageError: an option, name or value that cannot be used.
        LofftaError: the cache lacks features, there is too little to learn from, or memory ran out.
    """
    config = make_config(locals())
    if out is not None:
        check_ending(Path(out))
    with borrowed(progress=progress):
        found = measure(config, stop or StopFlag())
        if out is not None:
            write_scan(found, Path(out))
    return found


def make_config(arguments: dict[str, Any]) -> ScanConfig:
    """From the arguments of `scan`."""
    values = given(arguments)
    for name in ("out", "progress", "stop"):
        values.pop(name, None)
    values["features"] = many(values["features"])
    values |= {name: str(values[name]) for name in ("labels", "stage_dir") if name in values}
    for name in ("heads", "pooling", "shots"):
        if name in values:
            values[name] = _listed(values[name])
    return parse(ScanConfig, values, where="loffta scan")


def _listed(value: Any) -> tuple[Any, ...]:
    """`knn,ridge` or a list, as several."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else many(value)

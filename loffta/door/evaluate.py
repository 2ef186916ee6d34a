"""`loffta.evaluate`: measures trained heads on a split, of their cache or of images that no cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

from loffta.door.options import PathLike, many, open_up
from loffta.errors import NotSaved, UsageError
from loffta.machine import process
from loffta.machine.borrowed import borrowed
from loffta.runs.results_text import Results


class _Options(TypedDict, total=False):
    split: str | None
    cache: PathLike | None
    labels: PathLike | None
    output_px: int | None
    windows: str | None
    online: PathLike | None
    batch_size: int | None
    max_bad_frac: float | None
    image_root: PathLike | None
    follow_links: bool
    stage_dir: PathLike | None
    device: str
    progress: bool
    stop: process.StopFlag | None


@overload
def evaluate(runs: PathLike, **options: Unpack[_Options]) -> Results: ...  # type: ignore[overload-overlap]
@overload
def evaluate(runs: Sequence[PathLike], **options: Unpack[_Options]) -> list[Results]: ...
def evaluate(
    runs: PathLike | Sequence[PathLike],
    *,
    split: str | None = None,
    cache: PathLike | None = None,
    labels: PathLike | None = None,
    output_px: int | None = None,
    online: PathLike | None = None,
    windows: str | None = None,
    batch_size: int | None = None,
    max_bad_frac: float | int | None = None,
    image_root: PathLike | None = None,
    follow_links: bool = False,
    stage_dir: PathLike | None = None,
    device: str = "auto",
    progress: bool = True,
    stop: process.StopFlag | None = None,
) -> Results | list[Results]:
    """Measures the trained heads of `runs` on a split; results and predictions are written into each run.

    >>> results = loffta.evaluate("runs/linear", split="train", device="cpu")
    >>> results.split, results.n, results.metrics["top1"].ci95[0] <= results.metrics["top1"].mean
    ('train', 100, True)

    Args:
        runs: the folder of a run, or several.
        split: or several joined by +. None: the run's own; with `online`: test.
        cache: where the cache is now. None: where it was, or lay beside the run.
        labels: a set of annotations of the cache, or a file, instead of the run's own; the results are then those of
            split "SPLIT@LABELS".
        output_px: of dense heads: side of the outputs, whatever it was in training. None: as trained.
        online: images that are not cached; several runs share one pass over them, and no cache is needed.
        windows: with `online`, of dense heads: slide windows of SIDE/STRIDE px over each image, "512/341". None: see it
            as the features were made.
        batch_size: with `online`: images, or windows, per pass. None: 32.
        max_bad_frac: with `online`: a share; more bad images are an error. None: 0.01.
        stage_dir: a folder on this machine's own disk that features are copied to before they are read.
        progress: show progress and notes on stderr.
        stop: looked at while the heads predict; the command line's.
    Returns:
        The results of the run, for several a list: metrics as fractions from 0 to 1.
    Raises:
        UsageError: an option, name or value that cannot be used.
        LofftaError: no run, no trained head, or a cache that lacks its features.
        NotSaved: measured, but a run could not be written to; the error has the results of all.
        TooManyBadImages: over `max_bad_frac`; the results are written.
    """
    roots = [Path(run) for run in many(runs)]
    options: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    options |= {} if max_bad_frac is None else {"max_bad_frac": float(max_bad_frac)}
    options |= {} if windows is None else {"windows": windows}
    if online is None and (options or image_root or follow_links):
        name = next(iter(options), "image_root" if image_root else "follow_links").replace("_", "-")
        raise UsageError(f"--{name} is for --online SOURCE", where=f"--{name}", remedy="add --online, or leave it out")
    if online is not None and labels is not None:
        raise UsageError("images that are not cached bring their own labels", where="--labels", remedy="leave it out")
    if online is not None and stage_dir is not None:
        raise UsageError(
            "images that are not cached are read where they are", where="--stage-dir", remedy="leave it out"
        )
    cache_root = None if cache is None else Path(cache)
    stop = stop or process.StopFlag()
    with borrowed(progress=progress):
        if online is not None:
            source = open_up(online, image_root, follow_links)
            options |= {"output_px": output_px, "cache_root": cache_root, "stop": stop}
            found = _on_images(roots, source, split or "test", device, **options)
        else:
            from loffta.feed.staged import Stage

            stage = Stage(None if stage_dir is None else str(stage_dir), stop)
            how = {"labels": None if labels is None else str(labels), "output_px": output_px, "stage": stage}
            found = _one_by_one(roots, split, cache_root=cache_root, device=device, stop=stop, **how)
    results = [Results.model_validate(one) for one in found]
    return results if isinstance(runs, Sequence) and not isinstance(runs, str) else results[0]


def _one_by_one(roots: Sequence[Path], split: str | None, **how: Any) -> list[dict[str, Any]]:
    """A run that cannot be written to does not keep the others from it."""
    found: list[Any] = []
    unsaved: NotSaved | None = None
    for root in roots:
        try:
            found.append(_on_cache(root, split, **how))
        except NotSaved as error:
            found += error.runs
            unsaved = unsaved or error
    if unsaved is not None:
        raise unsaved.together(found)
    return found


def _on_cache(root: Path, split: str | None, **how: Any) -> dict[str, Any]:
    from loffta.evaluation.evaluate import evaluate as evaluate_cached
    from loffta.runs.run import open_run, read_results

    paths, config = open_run(root)
    split = split or config.test_on
    if config.online is None:
        return evaluate_cached(root, split, **how)
    for name in ("labels", "output_px"):
        if how[name] is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError("this run was trained online, without a cache", where=option, remedy="leave it out")
    if split != config.test_on and not paths.results(split).exists():
        raise UsageError(
            f"this run was trained online, and measured on split '{config.test_on}' at its end",
            where=f"--split {split}",
            remedy=f"use --split {config.test_on}, or train with --test-on {split} and another --out",
        )
    return read_results(paths.results(split))


def _on_images(
    roots: Sequence[Path],
    source: str,
    split: str,
    device: str,
    *,
    output_px: int | None,
    windows: str | None = None,
    **options: Any,
) -> list[Any]:
    from loffta.extraction.begin import backbone_loader
    from loffta.images.sources import open_source
    from loffta.online.dense_evaluate import evaluate_dense_online
    from loffta.online.evaluate import evaluate_online
    from loffta.online.windows import parse_windows
    from loffta.runs.run import open_run
    from loffta.tasks.dense import DENSE_TASKS

    are_dense = {open_run(root)[1].task in DENSE_TASKS for root in roots}
    if len(are_dense) > 1:
        raise UsageError(
            "some of these runs are measured by targets of pixels or objects, others by labels of whole images",
            where="loffta evaluate --online",
            remedy="name the two kinds in two commands",
        )
    process.cap_threads()
    target = process.resolve_device(device)
    load = backbone_loader(target)
    if are_dense == {True}:
        options.pop("cache_root")  # dense runs know where their features come from
        options |= {"output_px": output_px, "windows": None if windows is None else parse_windows(windows)}
        return [*evaluate_dense_online(roots, open_source(source), split, load, device=target, **options)]
    for option, value in (("--output-px", output_px), ("--windows", windows)):
        if value is not None:
            raise UsageError("these runs give no maps, whose size could be chosen", where=option, remedy="leave it out")
    return [*evaluate_online(roots, open_source(source), split, load, device=target, **options)]

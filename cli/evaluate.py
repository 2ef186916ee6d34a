"""`loffta evaluate`: options in, one call of loffta.evaluation.evaluate or of its online twin, a summary out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import emit, json_option, opened_source, opening_options, show, take_opened
from .train import print_results

if TYPE_CHECKING:
    from loffta.machine.process import StopFlag


@click.command("evaluate")
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN...")
@click.option("--split", help="Split, or several joined by +.  [the run's --test-on; with --online: test]")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Where the cache is now.  [where it was, or lay beside the run]"
)
@click.option("--online", metavar="SOURCE", help="Images that are not cached: features are made and forgotten.")
@click.option("--batch-size", type=click.IntRange(1, 1 << 20), help="With --online: images per pass.  [32]")
@click.option("--max-bad-frac", type=click.FloatRange(0, 1), help="With --online: more are exit code 3.  [0.01]")
@opening_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    runs: tuple[Path, ...],
    split: str | None,
    cache: Path | None,
    online: str | None,
    device: str,
    as_json: bool,
    **online_options: Any,
) -> None:
    """Measure the trained heads of RUNs on a split; results and predictions are written into each RUN.

    Where a RUN cannot be written to, its results are shown, and the exit code is 1. With --online the split is one of
    SOURCE, whose classes are matched with the run's by name; several runs share one pass over the images, and no cache
    is needed.
    """
    from loffta.errors import NotSaved
    from loffta.machine.process import StopFlag

    opened = take_opened(online_options)
    given = {name: value for name, value in online_options.items() if value is not None}
    if online is not None:
        online = opened_source(online, opened)
    elif given or opened:
        option = next(iter(given | opened)).replace("_", "-")
        raise click.UsageError(f"--{option} is for --online SOURCE", ctx)
    stop = StopFlag().listen()
    found: list[Any] = []
    unsaved: NotSaved | None = None
    for group in [runs] if online is not None else [(run,) for run in runs]:
        try:
            if online is not None:
                found += _evaluate_online(group, online, split or "test", device, stop, cache_root=cache, **given)
            else:
                found.append(_evaluate(group[0], split, cache, device, stop))
        except NotSaved as error:
            found += error.runs
            unsaved = unsaved or error
    for run, results in zip(runs, found, strict=True):
        if len(runs) > 1:
            show(f"{run}:")
        print_results(results)
    emit(found[0] if len(runs) == 1 else {"runs": found}, as_json)
    if unsaved is not None:
        raise unsaved


def _evaluate(run: Path, split: str | None, cache: Path | None, device: str, stop: StopFlag) -> dict[str, Any]:
    from loffta.errors import UsageError
    from loffta.evaluation.evaluate import evaluate
    from loffta.runs.run import open_run, read_results

    paths, config = open_run(run)
    split = split or config.test_on
    if config.online is None:
        return evaluate(run, split, cache_root=cache, device=device, stop=stop)
    if split != config.test_on and not paths.results(split).exists():
        raise UsageError(
            f"this run was trained online, and measured on split '{config.test_on}' at its end",
            where=f"--split {split}",
            remedy=f"use --split {config.test_on}, or train with --test-on {split} and another --out",
        )
    return read_results(paths.results(split))


def _evaluate_online(
    runs: tuple[Path, ...], online: str, split: str, device: str, stop: StopFlag, **options: Any
) -> list[Mapping[str, Any]]:
    from loffta.extraction.begin import backbone_loader
    from loffta.images.sources import open_source
    from loffta.machine import process
    from loffta.online.evaluate import evaluate_online

    process.cap_threads()
    target = process.resolve_device(device)
    source = open_source(online)
    return evaluate_online(runs, source, split, backbone_loader(target), device=target, stop=stop, **options)

"""From run directories to plain rows.

In: runs as `train` and `evaluate` leave them, and their caches where they still are.   Out: LoadedRun with its RunRow,
one per run, for all that reports show; and the runs that cannot be shown.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loffta.config import TrainConfig, parse
from loffta.dataset.features import choose_features
from loffta.errors import LofftaError, UsageError
from loffta.heads import find_head, head_label
from loffta.reporting.text import count
from loffta.runs.known_images import CacheFinder, growth, read_known
from loffta.runs.run import RunPaths, open_run, read_results
from loffta.store.cache import Cache
from loffta.tasks import find_task
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.figures import metric_name, show_interval, show_spread


@dataclass(frozen=True)
class StageCost:
    """What one stage of the work took, as whoever ran it measured it."""

    name: str
    command: str
    seconds: float | int
    bytes: int | None = None  # that it added to the cache; None: not known


@dataclass(frozen=True)
class Measure:
    """One metric over the seeds of a run, as results.json keeps it."""

    name: str
    mean: float
    std: float | int | None  # over seeds; None for one seed
    per_seed: tuple[float, ...]
    ci95: tuple[float, float]  # over images

    def __str__(self) -> str:
        """With its spread, without the unit, as tables print it."""
        return show_spread(self.name, self.mean, self.std)

    @property
    def interval(self) -> str:
        """The interval over images, printed likewise."""
        return show_interval(self.name, self.ci95)


@dataclass(frozen=True)
class RunRow:
    """One finished run."""

    name: str  # its folder, relative to the parent that all runs of the report share
    head: str
    taps: dict[str, tuple[str, ...]]  # by backbone label, in depth order
    headline: str  # the metric that its task is ranked by
    metrics: dict[str, Measure]
    split: str
    n_images: int  # tested on
    n_folds: int  # whose heads all meet these images; 1: heads differ by their seeds alone
    epochs: int | None
    grid: int | None
    train_seconds: float | int | None
    image_bytes: dict[str, int] | None  # read from the cache per image, by backbone label; None: the cache is gone
    tap_bytes: dict[tuple[str, str], int] | None  # the same by backbone label and tap
    backbone_bytes: dict[str, int] | None  # stored of the taps it used, over all images that have them; as above
    protocol: str | None = None  # of a dense task: what its figures may be compared with

    @property
    def main(self) -> Measure:
        """The headline metric."""
        return self.metrics[self.headline]

    @property
    def headline_name(self) -> str:
        """In words, to begin a heading."""
        return metric_name(self.headline, first=True)

    @property
    def further(self) -> dict[str, Measure]:
        """The other metrics."""
        return {name: measure for name, measure in self.metrics.items() if name != self.headline}

    @property
    def features(self) -> str:
        """The features in words."""
        return " + ".join(f"{label} {_in_words(taps)}" for label, taps in self.taps.items())

    @property
    def n_taps(self) -> int:
        """Taps over all backbones."""
        return sum(len(taps) for taps in self.taps.values())

    @property
    def n_seeds(self) -> int:
        """Heads trained."""
        return len(self.main.per_seed)

    @property
    def heads(self) -> str:
        """How many, in words: `3 seeds`, `5 folds`, `5 folds x 3 seeds`."""
        n_seeds = self.n_seeds // self.n_folds
        seeds = count(n_seeds, "seed")
        if self.n_folds == 1:
            return seeds
        return count(self.n_folds, "fold") + (f" x {seeds}" if n_seeds > 1 else "")

    @property
    def heads_short(self) -> str:
        """For a column of seeds: a number, or with the folds."""
        return str(self.n_seeds) if self.n_folds == 1 else self.heads

    @property
    def bytes_per_image(self) -> int | None:
        """Bytes read per image, over all backbones."""
        return None if self.image_bytes is None else sum(self.image_bytes.values())

    @property
    def stored_bytes(self) -> int | None:
        """Bytes of the taps it used, over all backbones and images."""
        return None if self.backbone_bytes is None else sum(self.backbone_bytes.values())


@dataclass(frozen=True)
class LoadedRun:
    """A run with all that reports say about it."""

    paths: RunPaths
    config: TrainConfig
    results: dict[str, Any]
    cache: Cache | None  # None: it is not where it was in training
    row: RunRow

    @property
    def grown(self) -> str | None:
        """What to say of a cache that has grown since the training; None where it has not."""
        known = read_known(self.paths)
        found = known.growth_in(self.cache) if known and self.cache else {}
        return growth(**found) if found else None


@dataclass(frozen=True)
class LeftOut:
    """A run that cannot be shown, and why."""

    root: Path
    error: LofftaError

    @property
    def why(self) -> str:
        """In one line."""
        where = "" if self.error.where == str(self.root) else f" ({self.error.where})"
        return f"{self.root}: {self.error.what}{where}"


def read_good_runs(
    roots: Sequence[Path], split: str | None = None, elsewhere: Sequence[Path] = ()
) -> tuple[list[LoadedRun], list[LeftOut]]:
    """Reads finished runs in the order given, and tells which could not be read: one bad run ends no report on ten.

    The scoring run of a --select follows its run.

    Args:
        split: whose results are read; None: each run's own test split.
        elsewhere: where caches are that were moved.
    Raises:
        UsageError: no runs at all.
        LofftaError: none of them can be read; of the first.
    """
    if not roots:
        raise UsageError("there is nothing to report", where="report", remedy="name one or more runs")
    found = [path for root in roots for path in (root.resolve(), RunPaths(root.resolve()).scoring)]
    asked = {root.resolve(): root for root in reversed(roots)}
    shown = split or "test"
    folders = [path for path in dict.fromkeys(found) if path in asked or RunPaths(path).results(shown).exists()]
    parent = os.path.commonpath([path.parent for path in folders])
    caches = CacheFinder(elsewhere)
    runs: list[LoadedRun] = []
    left_out: list[LeftOut] = []
    for folder in folders:
        try:
            runs.append(_load(folder, folder.relative_to(parent).as_posix(), caches, split))
        except LofftaError as error:
            left_out.append(LeftOut(asked.get(folder, folder), error))
        except OSError as error:
            told = LofftaError(
                f"it cannot be read ({error.strerror})",
                where=error.filename or folder,
                remedy="look at its permissions",
            )
            left_out.append(LeftOut(asked.get(folder, folder), told))
    if not runs:
        raise left_out[0].error
    return runs, left_out


def read_runs(roots: Sequence[Path]) -> list[LoadedRun]:
    """The same where all of them are to be shown.

    Raises:
        LofftaError: one of them cannot be read.
    """
    runs, left_out = read_good_runs(roots)
    if left_out:
        raise left_out[0].error
    return runs


def _open_run(folder: Path) -> tuple[RunPaths, TrainConfig]:
    """As `open_run`; of a folder that only holds runs the error says so."""
    is_run = RunPaths(folder).config.exists()
    if not is_run and RunPaths(RunPaths(folder).scoring).config.exists():  # --select scores before it trains
        raise LofftaError(
            "its backbones are scored, but there are no results yet",
            where=folder,
            remedy="run its `loffta train` again until it is done",
        )
    if not is_run and folder.is_dir() and any(RunPaths(inner).config.exists() for inner in folder.iterdir()):
        raise UsageError(
            "there is no run here, but there are in its subfolders",
            where=folder,
            remedy=f"name them: `loffta report {shlex.quote(str(folder))}/*`",
        )
    return open_run(folder)


def _load(folder: Path, name: str, caches: CacheFinder, split: str | None) -> LoadedRun:
    paths, config = _open_run(folder)
    results = read_results(paths.results(split or config.test_on))
    cache = caches.find(paths, config)  # none: deleted since, or moved; the results stand without it
    counted = _count_bytes(cache, config) if cache else None
    row = _row(name, results, counted)
    return LoadedRun(paths, config, results, cache, row)


def _row(name: str, results: Mapping[str, Any], counted: _Counted | None) -> RunRow:
    name_of_task, recipe = results.get("task", "classification"), results.get("recipe", {})
    task = DENSE_TASKS.get(name_of_task) or find_task(name_of_task)
    metrics = {name: _measure(name, found) for name, found in results["metrics"].items()}
    taps: dict[str, tuple[str, ...]] = {}
    for feature in results["features"]:
        label = feature.get("label", feature["store"])
        taps[label] = tuple(dict.fromkeys((*taps.get(label, ()), *feature["taps"])))  # a tap may be there as two kinds
    return RunRow(
        name=name,
        head=head_label(results["head"]),
        taps=taps,
        headline=task.headline,
        metrics=metrics,
        split=results["split"],
        n_images=results["n"],
        n_folds=results.get("heads", {}).get("folds", 1),
        epochs=results.get("training", recipe).get("epochs"),
        grid=recipe.get("grid"),
        train_seconds=results.get("train_seconds"),
        image_bytes=counted.image_bytes if counted else None,
        tap_bytes=counted.tap_bytes if counted else None,
        backbone_bytes=counted.backbone_bytes if counted else None,
        protocol=_protocol(results),
    )


def _protocol(results: Mapping[str, Any]) -> str | None:
    """Its name, and the size that outputs have and labels are measured at: all three move figures."""
    if "dense" not in results:
        return None
    size, outputs = results["dense"]["settings"].get("eval_px"), results["dense"]["output_px"]
    name = "no protocol named" if results.get("protocol") is None else f"protocol {results['protocol']}"
    return f"{name}, {outputs} px, at {f'{size} px' if size else 'own size'}"


def _measure(name: str, found: Mapping[str, Any]) -> Measure:
    return Measure(name, found["mean"], found["std"], tuple(found["per_seed"]), tuple(found["ci95"]))


@dataclass(frozen=True)
class _Counted:
    """Bytes as `evaluate` reads them, checksums aside."""

    image_bytes: dict[str, int]
    tap_bytes: dict[tuple[str, str], int]
    backbone_bytes: dict[str, int]


def _count_bytes(cache: Cache, config: TrainConfig) -> _Counted | None:
    try:
        recipe = parse(find_head(config.head).recipe, config.recipe, where="recipe")
        features = choose_features(cache, config.features, recipe.kinds(), default_taps="all")
    except LofftaError:  # a store was dropped since
        return None
    per_image: dict[str, int] = {}
    per_tap: dict[tuple[str, str], int] = {}
    stored: dict[str, int] = {}
    for feature in features:
        layout = feature.array.layout
        n_chunks = layout.chunks_per_image if feature.raw_taps is None else len(feature.raw_taps)
        label = feature.spec.backbone
        per_image[label] = per_image.get(label, 0) + n_chunks * layout.chunk_bytes
        for tap in feature.spec.taps:  # taps that share a chunk share its bytes
            part = n_chunks * layout.chunk_bytes // len(feature.spec.taps)
            per_tap[label, tap] = per_tap.get((label, tap), 0) + part
        stored[label] = stored.get(label, 0) + n_chunks * layout.chunk_bytes * int(feature.array.ledger.ready.sum())
    return _Counted(per_image, per_tap, stored)


def _in_words(taps: Sequence[str]) -> str:
    """('blocks.0', 'blocks.1', 'blocks.2') -> 'blocks.0-2'; anything less regular as it is."""
    stems = {tap.rpartition(".")[0] for tap in taps}
    numbers = [tap.rpartition(".")[2] for tap in taps]
    if len(taps) < 3 or len(stems) != 1 or not all(number.isdecimal() for number in numbers):
        return ", ".join(taps)
    first = int(numbers[0])
    if [int(number) for number in numbers] != list(range(first, first + len(taps))):
        return ", ".join(taps)
    return f"{taps[0]}\N{EN DASH}{numbers[-1]}"

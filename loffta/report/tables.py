"""From run directories to plain rows, and the rows as a text table for the terminal.

In: runs as `train` and `evaluate` leave them, and their caches where they still are.   Out: RunRow, one per run, for
`facts`, `plots`, `page` and `loffta report`.
"""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.cells import cell_len, chop_cells, set_cell_size

from loffta.config import TrainConfig, parse
from loffta.errors import LofftaError, UsageError
from loffta.features import choose_features
from loffta.heads import find_head, head_label
from loffta.known_images import CacheFinder, growth, read_known
from loffta.report.text import NONE, human_bytes, human_seconds, interval, metric_name, percent
from loffta.runs import RunPaths, open_run, read_results
from loffta.store.cache import Cache
from loffta.tasks import find_task
from loffta.words import printable


@dataclass(frozen=True)
class StageCost:
    """What one stage of the work took, as whoever ran it measured it."""

    name: str
    command: str
    seconds: float | int
    bytes: int | None = None  # that it added to the cache; None: not known


@dataclass(frozen=True)
class Measure:
    """One metric over the seeds of a run, fractions 0-1."""

    mean: float
    std: float | int | None  # over seeds; None for one seed
    per_seed: tuple[float, ...]
    ci95: tuple[float, float]  # over images

    def __str__(self) -> str:
        """In percent, as tables print it."""
        spread = "" if self.std is None else f" ± {percent(self.std, 2)}"
        return f"{percent(self.mean, 2)}{spread}"

    def overlaps(self, other: Measure) -> bool:
        """Whether the two intervals have a value in common."""
        return self.ci95[0] <= other.ci95[1] and other.ci95[0] <= self.ci95[1]


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
    epochs: int | None
    grid: int | None
    train_seconds: float | int | None
    image_bytes: dict[str, int] | None  # read from the cache per image, by backbone label; None: the cache is gone
    tap_bytes: dict[tuple[str, str], int] | None  # the same by backbone label and tap
    backbone_bytes: dict[str, int] | None  # stored of the taps it used, over all images that have them; as above

    @property
    def main(self) -> Measure:
        """The headline metric."""
        return self.metrics[self.headline]

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


def part_runs(roots: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Parts runs into those that have results and those whose training failed or still goes on.

    Raises:
        LofftaError: one of them is no run.
    """
    finished: list[Path] = []
    unfinished: list[Path] = []
    for root in roots:
        (finished if _is_finished(root) else unfinished).append(root)
    return finished, unfinished


def read_runs(roots: Sequence[Path], split: str | None = None, elsewhere: Sequence[Path] = ()) -> list[LoadedRun]:
    """Reads finished runs in the order given; the scoring run of a --select follows its run.

    Args:
        split: whose results are read; None: each run's own test split.
        elsewhere: where caches are that were moved.

    Raises:
        UsageError: no runs at all.
        LofftaError: one of them is no run, or has no results yet.
    """
    if not roots:
        raise UsageError("there is nothing to report", where="report", remedy="name one or more runs")
    found = [path for root in roots for path in (root.resolve(), RunPaths(root.resolve()).scoring)]
    wanted = {root.resolve() for root in roots}
    shown = split or "test"
    folders = [path for path in dict.fromkeys(found) if path in wanted or RunPaths(path).results(shown).exists()]
    parent = os.path.commonpath([path.parent for path in folders])
    caches = CacheFinder(elsewhere)
    return [_load(folder, folder.relative_to(parent).as_posix(), caches, split) for folder in folders]


def read_rows(roots: Sequence[Path]) -> list[RunRow]:
    """The rows of finished runs; raises what `read_runs` raises."""
    return [run.row for run in read_runs(roots)]


def format_table(rows: Sequence[RunRow], width: int = 100) -> str:
    """A table for the terminal: figures per run, its features and further metrics below them.

    Names of runs and heads wrap to keep it within `width`; it is wider where the figures leave less than 16 for both.
    """
    metrics = {row.headline for row in rows}
    score = f"{metric_name(min(metrics))} %" if len(metrics) == 1 else "score %"
    heads = ("run", "head", "taps", score, "95 % CI", "seeds", "epochs", "grid", "train", "read/image")
    cells = [
        (
            printable(row.name),
            printable(row.head),
            str(row.n_taps),
            str(row.main),
            interval(row.main.ci95),
            str(row.n_seeds),
            _or_none(row.epochs),
            _or_none(row.grid),
            human_seconds(row.train_seconds),
            human_bytes(row.bytes_per_image),
        )
        for row in rows
    ]
    widths = [max(cell_len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    widths[:2] = _name_widths(cells, widths, width)
    lines = [_aligned(heads, widths), "  ".join("-" * w for w in widths)]
    for row, line in zip(rows, cells, strict=True):
        names = [_wrapped(name, w) for name, w in zip(line[:2], widths[:2], strict=True)]
        lines += [
            _aligned([*pair, *(line[2:] if i == 0 else [""] * len(line[2:]))], widths)
            for i, pair in enumerate(zip_longest(*names, fillvalue=""))
        ]
        below = [row.features, ", ".join(f"{metric_name(name)} {found}" for name, found in row.further.items())]
        if len(metrics) > 1:
            below[1] = "; ".join(filter(None, [f"score: {metric_name(row.headline)}", below[1]]))
        indent = "    "
        for text in below:
            lines += textwrap.wrap(printable(text), width, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(line.rstrip() for line in lines)


def _is_finished(root: Path) -> bool:
    paths = RunPaths(root)
    if not paths.config.exists() and RunPaths(paths.scoring).config.exists():  # --select scores before it trains
        return False
    return paths.results(_open_run(root)[1].test_on).exists()


def _open_run(folder: Path) -> tuple[RunPaths, TrainConfig]:
    """As `open_run`; of a folder that only holds runs the error says so."""
    is_run = RunPaths(folder).config.exists()
    if not is_run and folder.is_dir() and any(RunPaths(inner).config.exists() for inner in folder.iterdir()):
        raise UsageError(
            "there is no run here, but there are in its subfolders",
            where=folder,
            remedy=f"name them: `loffta report {shlex.quote(str(folder))}/*`",
        )
    return open_run(folder)


def _load(folder: Path, name: str, caches: CacheFinder, split: str | None) -> LoadedRun:
    paths, config = _open_run(folder)
    where = paths.results(split or config.test_on)
    results = read_results(where)
    cache = caches.find(paths, config)  # none: deleted since, or moved; the results stand without it
    counted = _count_bytes(cache, config) if cache else None
    try:
        row = _row(name, results, counted)
    except (KeyError, TypeError, ValueError) as error:
        raise LofftaError(
            f"these results cannot be reported ({type(error).__name__}: {error})",
            where=where,
            remedy="was the run made by this version? `loffta evaluate RUN` writes them anew",
        ) from error
    return LoadedRun(paths, config, results, cache, row)


def _row(name: str, results: Mapping[str, Any], counted: _Counted | None) -> RunRow:
    headline, recipe = find_task(results.get("task", "classification")).headline, results.get("recipe", {})
    metrics = {name: _measure(found) for name, found in results["metrics"].items()}
    if headline not in metrics:
        raise KeyError(headline)
    taps: dict[str, tuple[str, ...]] = {}
    for feature in results["features"]:
        label = feature.get("label", feature["store"])
        taps[label] = tuple(dict.fromkeys((*taps.get(label, ()), *feature["taps"])))  # a tap may be there as two kinds
    return RunRow(
        name=name,
        head=head_label(results["head"]),
        taps=taps,
        headline=headline,
        metrics=metrics,
        split=results["split"],
        n_images=results["n"],
        epochs=results.get("training", recipe).get("epochs"),
        grid=recipe.get("grid"),
        train_seconds=results.get("train_seconds"),
        image_bytes=counted.image_bytes if counted else None,
        tap_bytes=counted.tap_bytes if counted else None,
        backbone_bytes=counted.backbone_bytes if counted else None,
    )


def _measure(found: Mapping[str, Any]) -> Measure:
    low, high = found["ci95"]
    return Measure(float(found["mean"]), found["std"], tuple(map(float, found["per_seed"])), (float(low), float(high)))


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


def _or_none(value: int | None) -> str:
    return NONE if value is None else str(value)


def _name_widths(cells: Sequence[Sequence[str]], widths: Sequence[int], width: int) -> tuple[int, int]:
    """Of the first two columns: a head's name keeps its words whole if it can, the run's takes the rest; 8 at least."""
    free = width - sum(widths[2:]) - 2 * (len(widths) - 1)
    longest_word = max(cell_len(word) for line in cells for word in line[1].split())
    run = max(8, widths[0])
    head = min(widths[1], max(8, free - run, min(longest_word, free - 8)))
    return max(8, min(run, free - head)), head


def _wrapped(name: str, width: int) -> list[str]:
    if cell_len(name) <= width:
        return [name]
    return [part for line in textwrap.wrap(name, width) for part in chop_cells(line, width)]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right."""
    padded = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        free = width - cell_len(cell)
        padded.append(set_cell_size(cell, width) if i < 2 or free < 0 else " " * free + cell)
    return "  ".join(padded)

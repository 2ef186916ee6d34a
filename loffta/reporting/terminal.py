"""Runs as a text table for the terminal, and which of them are better than which.

In: rows of runs, their Comparisons.   Out: text no wider than asked for; names wrap, and nothing is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len

from loffta.machine.terminal import GAP, aligned
from loffta.reporting.comparisons import Comparisons
from loffta.reporting.facts import against_baseline, best_against_others, in_points
from loffta.reporting.places import HOW_RANKED, TIED, Place, Places
from loffta.reporting.tables import LoadedRun, RunRow
from loffta.reporting.text import NONE, count, human_bytes, human_seconds, wrap
from loffta.reporting.worth import in_figures, judge_backbones
from loffta.tasks.figures import end_of_scale, in_words, metric_head, metric_name, points
from loffta.words import printable

_INDENT = "    "


def format_table(rows: Sequence[RunRow], width: int = 80, places: Places | None = None) -> str:
    """Figures per run, its features and further metrics below them.

    Args:
        places: by name of the run, of those that can be ranked; none: no such column.

    Names of runs and heads wrap to keep it within `width`; it is wider where the figures leave less than 16 for both.
    """
    metrics = {row.headline for row in rows}
    score = metric_head(min(metrics)) if len(metrics) == 1 else "score"
    places = places or {}
    ranked = any(row.name in places for row in rows)
    heads = ("run", "head", *(["rank"] if ranked else []), score, "95 % CI", "seeds", "train", "read/image")
    cells = [
        (
            printable(row.name),
            printable(row.head),
            *([_rank(places.get(row.name))] if ranked else []),
            str(row.main),
            row.main.interval,
            row.heads_short,
            human_seconds(row.train_seconds),
            human_bytes(row.bytes_per_image),
        )
        for row in rows
    ]
    widths = [max(cell_len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    widths[:2] = _name_widths(cells, widths, width)
    figures = range(2, len(heads))
    lines = [aligned(line, widths, figures) for line in (heads, ["-" * w for w in widths])]
    for row, line in zip(rows, cells, strict=True):
        names = [wrap(name, w) for name, w in zip(line[:2], widths[:2], strict=True)]
        lines += [
            aligned([*pair, *(line[2:] if i == 0 else [""] * len(figures))], widths, figures)
            for i, pair in enumerate(zip_longest(*names, fillvalue=""))
        ]
        further = [in_words(name, {"mean": m.mean, "std": m.std}) for name, m in row.further.items()]
        if len(metrics) > 1:
            further.insert(0, f"score: {metric_name(row.headline)}")
        for text in (_what_it_took(row), ", ".join(further)):
            lines += _paragraph(text, width)
    lines += wrap(f"{TIED} tied with the best. {HOW_RANKED}", width) if ranked else []
    return "\n".join(line.rstrip() for line in lines)


def _rank(place: Place | None) -> str:
    """'1-2*'; of a run that is not tied a space in its place, so that figures stand below each other."""
    return NONE if place is None else f"{place}{TIED if place.tied_with_best else ' '}"


def format_baseline(runs: Sequence[LoadedRun], comparisons: Comparisons, baseline: LoadedRun, width: int = 80) -> str:
    """What every other run has gained over the one that was named."""
    counted = " in points" if points(baseline.row.headline) else ""
    lines = wrap(f"Gain over {baseline.row.name}{counted}, with 95 % interval, paired over the same images:", width)
    for run, found in against_baseline(runs, comparisons, baseline):
        told = f"not known: {found}" if isinstance(found, str) else in_points(run.row.headline, found)
        lines += _paragraph(f"{run.row.name}: {told}", width)
    return "\n".join(lines)


def format_comparison(runs: Sequence[LoadedRun], comparisons: Comparisons, width: int = 80) -> str:
    """The best run of each metric against every other; empty where there is one run."""
    lines: list[str] = []
    for best, others in best_against_others(runs, comparisons):
        lead = f"lead{' in points' if points(best.row.headline) else ''}"
        lines += wrap(
            f"{best.row.name} has the {end_of_scale(best.row.headline)} {metric_name(best.row.headline)}, chosen on "
            f"split {best.row.split} itself. Its {lead}, with 95 % interval, paired over the same images:",
            width,
        )
        for other, found in others:
            told = f"not known: {found}" if isinstance(found, str) else in_points(best.row.headline, found)
            lines += _paragraph(f"{other.row.name}: {told}", width)
    return "\n".join(lines)


def format_worth(runs: Sequence[LoadedRun], comparisons: Comparisons, width: int = 80) -> str:
    """A line per backbone of every run with relevance scores; empty where there is none."""
    lines = []
    for run in runs:
        worths = judge_backbones(run, runs, comparisons)
        if worths:
            lines += wrap(f"relevance in {run.row.name}:", width)
        for worth in worths:
            lines += _paragraph(f"{worth.score:.2f}  {worth.backbone}: {in_figures(worth, run.row.headline)}", width)
    return "\n".join(lines)


def _what_it_took(row: RunRow) -> str:
    parts = [count(row.n_taps, "tap")]
    parts += [] if row.epochs is None else [count(row.epochs, "epoch")]
    parts += [] if row.grid is None else [f"grid {row.grid}"]
    parts += [] if row.protocol is None else [row.protocol]
    return f"{row.features} ({', '.join(parts)})"


def _paragraph(text: str, width: int) -> list[str]:
    return [f"{_INDENT}{line}" for line in wrap(text, width - len(_INDENT))] if text else []


def _name_widths(cells: Sequence[Sequence[str]], widths: Sequence[int], width: int) -> tuple[int, int]:
    """Of the first two columns: a head's name keeps its words whole if it can, the run's takes the rest; 8 at least."""
    free = width - sum(widths[2:]) - GAP * (len(widths) - 1)
    longest_word = max(cell_len(word) for line in cells for word in line[1].split())
    run = max(8, widths[0])
    head = min(widths[1], max(8, free - run, min(longest_word, free - 8)))
    return max(8, min(run, free - head)), head

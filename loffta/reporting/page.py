"""One self-contained HTML file about finished runs: no request leaves it, so it can be mailed, archived and printed.

In: loaded runs, how they compare, what the stages cost if somebody measured it.   Out: the file. Called by `loffta
report` and `loffta demo`. The same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loffta.errors import UsageError
from loffta.files.durable import replace_file
from loffta.reporting.augmented import best_augmented
from loffta.reporting.calibration import calibration_section
from loffta.reporting.classes import classes_section
from loffta.reporting.comparisons import Comparisons
from loffta.reporting.dense import dense_sections
from loffta.reporting.facts import headline_facts, is_random, rank
from loffta.reporting.front import front_section
from loffta.reporting.layers import layer_sections
from loffta.reporting.markup import document, figure, table
from loffta.reporting.pictures import images_section
from loffta.reporting.places import HOW_RANKED, Place, Places, find_places
from loffta.reporting.plots import Bar, bar_chart, percent_ticks, round_ticks
from loffta.reporting.provenance import provenance_section
from loffta.reporting.relevance import relevance_section
from loffta.reporting.tables import LoadedRun, Measure, RunRow, StageCost
from loffta.reporting.text import NONE, count, escape, human_bytes, human_seconds
from loffta.reporting.turns import curves_section, folds_section
from loffta.reporting.values import values_section
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.figures import end_of_scale, metric_head, metric_name, points, show, show_difference, unit
from loffta.tasks.paired import Difference

_HEADLINES = {"Top-1": "Top-1 accuracy", "Mean AP": "Mean average precision"}
_ZOOM_BELOW = 0.5  # the axis starts above zero where all intervals together span less than this
_HOW_COMPARED = (
    "the difference with its 95 % interval, paired over the same test images and over the seeds of both; where it "
    "holds zero the difference is open."
)
_CHOSEN = (
    " The best run was chosen by its score on these very images, and looks a little better than it is; so does its "
    "lead."
)


def write_report(
    runs: Sequence[LoadedRun],
    out: Path,
    comparisons: Comparisons | None = None,
    *,
    stages: Sequence[StageCost] = (),
    baseline: LoadedRun | None = None,
) -> None:
    """Writes the report of one or more finished runs.

    Args:
        out: the HTML file; replaced where it is there.
        comparisons: of these runs, where they are made already.
        stages: what each stage of the work took, in order.
        baseline: one of the runs, whose others' gains are shown in place of what they are behind the best.
    Raises:
        UsageError: `out` is a folder.
    """
    if out.is_dir():
        raise UsageError("a report is one file, and this is a folder", where=out, remedy=f"name {out / 'report.html'}")
    replace_file(out, render(runs, comparisons or Comparisons(runs), stages, baseline).encode())


def render(
    runs: Sequence[LoadedRun],
    comparisons: Comparisons,
    stages: Sequence[StageCost] = (),
    baseline: LoadedRun | None = None,
) -> str:
    """The page as text."""
    places = find_places(comparisons)
    groups: dict[str, list[LoadedRun]] = {}  # by what they are ranked by
    for run in sorted(runs, key=rank):
        groups.setdefault(run.row.headline, []).append(run)
    title = "Frozen features, small heads"
    body = [
        _introduction(title, runs, comparisons),
        *[
            _scores(ranked, comparisons, places, baseline) + front_section(ranked, comparisons)
            for ranked in groups.values()
        ],
        folds_section(runs),
        curves_section(runs),
        *[calibration_section(ranked) for ranked in groups.values()],
        layer_sections(runs),
        *[relevance_section(run, runs, comparisons) for run in runs if run.results.get("relevance")],
        _costs(stages),
        *[part for ranked in groups.values() for part in _by_image(ranked)],
        best_augmented([run for ranked in groups.values() for run in ranked]),
        provenance_section(runs),
    ]
    return document(f"{title} - loffta report", body)


def _by_image(ranked: Sequence[LoadedRun]) -> tuple[str, ...]:
    """What the best run made of which images; of runs of one metric, the best first."""
    if ranked[0].results.get("task") in DENSE_TASKS:
        return (dense_sections(ranked),)
    if ranked[0].results.get("task") == "regression":
        return (values_section(ranked[0]),)
    return classes_section(ranked[0]), images_section(ranked)


def _introduction(title: str, runs: Sequence[LoadedRun], comparisons: Comparisons) -> str:
    sources = dict.fromkeys(run.cache.table.source if run.cache else str(run.config.cache) for run in runs)
    facts = "".join(
        f"<li><b>{escape(fact.figure)}</b><strong>{escape(fact.title)}</strong><span>{_unbroken(fact.text)}</span></li>"
        for fact in headline_facts(runs, comparisons)
    )
    return (
        f'<header><h1>{title}</h1><p class="sub">{escape(", ".join(sources))} · {count(len(runs), "run")}</p></header>'
        "<p>Each backbone ran once over the images, frozen, and its features were cached layer by layer (a layer that "
        "is kept is called a tap). Every run below trained a small head on that cache. "
        f'{_test_note(runs)}</p><ul class="facts">{facts}</ul>'
    )


def _unbroken(text: str) -> str:
    """Escaped text whose numbers keep their percent signs."""
    return escape(text.replace(" %", "\N{NO-BREAK SPACE}%"))


def _test_note(runs: Sequence[LoadedRun]) -> str:
    """Whether the scores are of images that the heads had not seen."""
    seen = [run.row.name for run in runs if {*run.config.train_on.split("+")} & {*run.row.split.split("+")}]
    if seen:
        return f"<strong>Tested on images that were trained on, too: {escape(', '.join(seen))}.</strong>"
    return "Scores are those on test images that no head was trained on."


def _scores(ranked: Sequence[LoadedRun], comparisons: Comparisons, places: Places, baseline: LoadedRun | None) -> str:
    metric = ranked[0].row.headline
    name = metric_name(metric, first=True)
    bars = [
        Bar(
            label=run.row.name,
            value=run.row.main.mean,
            text=f"{show(metric, run.row.main.mean)}{unit(metric)}",
            detail=_what_it_read(run.row),
            dots=run.row.main.per_seed,
            whisker=run.row.main.ci95,
        )
        for run in ranked
    ]
    caption, low, high, ticks = _axis(ranked)
    chart = bar_chart(bars, title=name, low=low, high=high, ticks=ticks)
    several = len(ranked) > 1
    against = baseline if baseline is not None and baseline in ranked else ranked[0]
    column = "Behind the best" if against is ranked[0] else f"Gain over {against.row.name}"
    told = f"{column}: {_HOW_COMPARED}{_CHOSEN if against is ranked[0] else ''} {HOW_RANKED}"
    counted = "In percent" if points(metric) else f"The {end_of_scale(metric)} is the best"
    return (
        f"<h2>{_HEADLINES.get(name, name)}</h2><p>{counted}. Bars and upright strokes: mean over seeds. "
        "Circles: single seeds. Whiskers: 95 % bootstrap intervals over the test images"
        + (
            f", each run for itself: whether two runs differ is told by the column {escape(column)}."
            if several
            else "."
        )
        + f'</p><div class="charts">{figure(caption, chart)}</div>'
        + _runs_table(ranked, comparisons, places, against, column)
        + (f'<p class="note">{escape(told)}</p>' if several else "")
        + f'<p class="note">{name}: mean and standard deviation over seeds, below it the 95 % interval. Read per '
        "image: what an epoch reads of the cache for each image, without checksums; stored: the same taps of all "
        "images.</p>" + _further_metrics(ranked)
    )


def _axis(ranked: Sequence[LoadedRun]) -> tuple[str, float, float, list[tuple[float, str]]]:
    """Caption, ends and ticks of the axis that the scores lie on."""
    metric = ranked[0].row.headline
    low, high = min(run.row.main.ci95[0] for run in ranked), max(run.row.main.ci95[1] for run in ranked)
    if not points(metric):
        ticks = round_ticks(min(low, 0.0), max(high, 0.0))
        return "From zero", ticks[0], ticks[-1], [(tick, f"{tick:g}") for tick in ticks]
    low, high = int(low * 50) / 50, min(1.0, -(-high * 50 // 1) / 50)  # to the next 2 %
    if 0 < low < high < low + _ZOOM_BELOW:
        return f"The axis does not start at zero, but at {100 * low:.0f} %", low, high, percent_ticks(low, high)
    return "From zero", 0.0, 1.0, percent_ticks(0.0, 1.0)


def _further_metrics(runs: Sequence[LoadedRun]) -> str:
    """What else was measured, a column per metric; and what the labels of the split leave out."""
    names = list(dict.fromkeys(name for run in runs for name in run.row.further))
    if not names:
        return ""
    lines = [
        [f"<b>{escape(run.row.name)}</b>{_protocol(run.row)}", *(_cell(run.row.further.get(name)) for name in names)]
        for run in runs
    ]
    columns = [("Run", False), *((metric_head(name, first=True), True) for name in names)]
    notes: dict[str, list[str]] = {}
    for run in runs:
        for name, note in run.results.get("notes", {}).items():
            notes.setdefault(f"{metric_name(name, first=True)}: {note}", []).append(run.row.name)
    listed = "".join(f'<p class="note">{escape(note)} ({escape(", ".join(of))}).</p>' for note, of in notes.items())
    return f"<h3>Further metrics</h3>{table(columns, lines)}{listed}"


def _protocol(row: RunRow) -> str:
    """Stands beside every figure of a dense run."""
    return "" if row.protocol is None else f"<small>{escape(row.protocol)}</small>"


def _cell(found: Measure | None) -> str:
    return NONE if found is None else f"{escape(found)}<small>{found.interval}</small>"


def _what_it_read(row: RunRow) -> str:
    """A line that fits below a bar; all features stand in the table."""
    if len(row.taps) == 1:
        return f"{row.head} on {row.features}"
    n_random = sum(map(is_random, row.taps))
    note = f", {n_random} with random weights" if n_random else ""
    return f"{row.head} on {row.n_taps} taps of {len(row.taps)} backbones{note}"


def _runs_table(
    ranked: Sequence[LoadedRun], comparisons: Comparisons, places: Places, against: LoadedRun, column: str
) -> str:
    best, *others = ranked
    heads = ["Taps", metric_head(best.row.headline, first=True)]
    heads += ["Rank", f"{column}{',' * bool(points(best.row.headline))}{points(best.row.headline)}"] if others else []
    heads += ["Seeds", "Epochs", "Grid", "Training", "Read per image"]
    lines = []
    for run in ranked:
        row = run.row
        stored = "" if row.stored_bytes is None else f"<small>of {human_bytes(row.stored_bytes)} stored</small>"
        cells = [
            f"<b>{escape(row.name)}</b><small>{escape(row.features)}</small>",
            escape(row.head),
            f"{row.n_taps}",
            f"{escape(row.main)}<small>{row.main.interval}</small>{_protocol(row)}",
        ]
        if others:
            cells.append(_rank(places.get(row.name)))
            cells.append(NONE if run is against else _behind(run, comparisons.difference(run, against)))
        lines.append(
            [
                *cells,
                row.heads_short,
                escape(NONE if row.epochs is None else row.epochs),
                escape(NONE if row.grid is None else row.grid),
                human_seconds(row.train_seconds),
                human_bytes(row.bytes_per_image) + stored,
            ]
        )
    columns = [("Run", False), ("Head", False), *((head, True) for head in heads)]
    return table(columns, lines, best=bool(others) and comparisons.same_images(ranked))


def _rank(place: Place | None) -> str:
    if place is None:
        return "not known"
    return f"{place}<small>tied with the best</small>" if place.tied_with_best else f"{place}"


def _behind(run: LoadedRun, found: Difference | str) -> str:
    if isinstance(found, str):
        return "not known"
    low, high = (show_difference(run.row.headline, bound) for bound in found.ci95)
    verdict = {"worse": "", "open": "open", "better": "ahead"}[found.verdict]
    return f"{show_difference(run.row.headline, found.mean)}<small>{low} to {high}</small><small>{verdict}</small>"


def _costs(stages: Sequence[StageCost]) -> str:
    if not stages:
        return ""
    lines = [
        [
            escape(stage.name),
            f"<code>{escape(stage.command)}</code>",
            human_seconds(stage.seconds),
            human_bytes(stage.bytes),
        ]
        for stage in stages
    ]
    total = human_seconds(sum(stage.seconds for stage in stages))
    columns = [("Stage", False), ("Command", False), ("Time", True), ("Added to the cache", True)]
    return f"<h2>Time and space</h2><p>{total} in all.</p>{table(columns, lines)}"

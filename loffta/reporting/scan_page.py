"""A scan as one HTML page: which layer is the best, each backbone layer by layer, and all rows; and as any other file.

In: a Scan.   Out: a file, of the kind that its ending says. Called by `loffta scan --out`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from loffta.config import HeadName, Pooling
from loffta.errors import UsageError
from loffta.files.durable import replace_file
from loffta.reporting.depth import Series, depth_chart
from loffta.reporting.markup import document, figure, table
from loffta.reporting.plots import percent_ticks
from loffta.reporting.scan_text import as_csv, as_latex, as_markdown, cells_of, columns_of, figures_of, notes_of
from loffta.reporting.text import count, escape
from loffta.scanning.results import Row, Scan
from loffta.tasks.figures import metric_name, show, show_interval, unit

_WIDE = 17  # layers; a chart of more is wider than others
_Line = tuple[HeadName, Pooling]


def as_html(scan: Scan) -> str:
    """The page as text."""
    title = "Which backbone, which layer?"
    body = [f'<header><h1>{title}</h1><p class="sub">{escape(scan.source)}</p></header>']
    for shots in scan.shots:
        rows = [row for row in scan.rows if row.shots == shots]
        tied = sum(row.tied for row in rows)
        heading = "All training images" if shots is None else f"{count(shots, 'image')} of each class"
        body += [
            f"<h2>{heading}</h2>",
            f"<p>The highest {metric_name(scan.metric)} is {_score(scan, rows[0])}: {escape(_name(rows[0]))}. "
            f"{'No other is' if tied == 1 else f'{tied} rows, it among them, are'} tied with the best.</p>",
            f'<div class="charts">{"".join(_charts(scan, rows))}</div>',
            _table(scan, rows),
        ]
    body += [f'<p class="note">{escape(note)}</p>' for note in notes_of(scan)]
    return document(f"{title} - loffta scan", body)


def _score(scan: Scan, row: Row) -> str:
    return f"{show(scan.metric, row.score)}{unit(scan.metric)} ({show_interval(scan.metric, row.ci95)})"


def _name(row: Row) -> str:
    return f"{row.backbone} {row.tap}, {row.head}"


def _charts(scan: Scan, rows: Sequence[Row]) -> list[str]:
    """A chart for each backbone, all with the same axis."""
    low, high = min(row.ci95[0] for row in rows), max(row.ci95[1] for row in rows)
    ticks = percent_ticks(max(0, int(low * 20)) / 20, min(1.0, max(0.0, -(-high * 20 // 1) / 20)))
    if len(ticks) < 2:
        ticks = percent_ticks(0.0, 1.0)
    if not unit(scan.metric):  # a share of the variance, say
        ticks = [(value, show(scan.metric, value)) for value, _ in ticks]
    found = []
    for backbone in dict.fromkeys(row.backbone for row in rows):
        own = [row for row in rows if row.backbone == backbone]
        taps = [tap for tap in scan.depths[own[0].store] if any(row.tap == tap for row in own)]
        chart = depth_chart(taps, _series(scan, own, taps), ticks, f"{metric_name(scan.metric)} of {backbone}")
        found.append(figure(backbone, chart, wide=len(taps) > _WIDE))
    return found


def _series(scan: Scan, rows: Sequence[Row], taps: Sequence[str]) -> list[Series]:
    several = len({row.pooling for row in rows}) > 1
    found = []
    for head, pooling in dict.fromkeys((row.head, row.pooling) for row in sorted(rows, key=lambda row: row.head)):
        at = {row.tap: row for row in rows if (row.head, row.pooling) == (head, pooling)}
        own = [at.get(tap) for tap in taps]
        found.append(
            Series(
                f"{head}, {pooling}" if several else head,
                [None if row is None else row.score for row in own],
                [None if row is None else row.ci95 for row in own],
                ["" if row is None else f"{_name(row)}: {_score(scan, row)}" for row in own],
            )
        )
    return found


def _table(scan: Scan, rows: Sequence[Row]) -> str:
    columns = [(head, i in figures_of(scan)) for i, head in enumerate(columns_of(scan))]
    return table(columns, [[escape(cell.strip()) for cell in cells_of(scan, row)] for row in rows], best=True)


def as_json(scan: Scan) -> str:
    """What `--json` prints."""
    return json.dumps(scan.as_json(), indent=1, allow_nan=False) + "\n"


WRITERS: dict[str, Callable[[Scan], str]] = {
    ".csv": as_csv,
    ".md": as_markdown,
    ".tex": as_latex,
    ".json": as_json,
    ".html": as_html,
}


def check_ending(out: Path) -> None:
    """Raises UsageError where no writer has this ending, before anything is measured."""
    if out.suffix.lower() not in WRITERS:
        raise UsageError(
            f"what kind of file is '{out.name}' to be?",
            where="--out",
            remedy=f"end its name with {', '.join(WRITERS)}",
        )
    if out.is_dir():
        raise UsageError("a table is one file, and this is a folder", where=out, remedy=f"name {out / 'scan.html'}")


def write_scan(scan: Scan, out: Path) -> None:
    """Writes the file, or replaces it.

    Raises:
        UsageError: an ending that is none of `WRITERS`.
    """
    check_ending(out)
    replace_file(out, WRITERS[out.suffix.lower()](scan).encode())

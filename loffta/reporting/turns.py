"""The sections about folds and about few labels: how folds differ, and how the score rises with labels a class.

In: loaded runs.   Out: HTML for `page` nothing where no run has folds or draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loffta.reporting.markup import figure, table
from loffta.reporting.plots import Scale, percent_ticks, svg, text
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import NONE, count, escape
from loffta.tasks.figures import metric_head, metric_name, show, show_interval, show_spread, unit

_LEFT, _TOP, _RIGHT, _BOTTOM = 46.0, 10.0, 410.0, 230.0  # the plot area
_MARK, _LINE, _LAW = "var(--mark,#0b3d66)", "var(--line,#d5dae0)", "var(--bar,#5b9bd0)"
_N_LAW = 40  # places at which the law is drawn


def folds_section(runs: Sequence[LoadedRun]) -> str:
    """A line per run with folds."""
    lines = []
    for run in runs:
        if (folds := run.results.get("folds")) is None or (found := folds["metrics"].get(run.row.headline)) is None:
            continue
        metric = run.row.headline
        values = [value for value in found["per_fold"] if value is not None]
        groups = f"<small>{folds['groups']} by {escape(folds['group'])}</small>" if folds.get("group") else ""
        lines.append(
            [
                f"<b>{escape(run.row.name)}</b>",
                f"{folds['n']}{groups}",
                f"{escape(metric_name(metric))}",
                f"{escape(show_spread(metric, found['mean'], found['std']))}{unit(metric)}",
                f"{show(metric, min(values))} to {show(metric, max(values))}{unit(metric)}",
                f"{escape(run.row.main)}<small>{run.row.main.interval}</small>",
            ]
        )
    if not lines:
        return ""
    heads = (("Folds", True), ("Metric", False), ("Mean over folds", True), ("Folds from, to", True))
    return (
        "<h2>Cross-validation</h2><p>Every image is tested once, by heads that were trained on the other folds. The "
        "last column is of all these predictions together, with the interval that the scores above have, over groups "
        "where there are groups. Folds share most of what they train on: their deviation is no standard error.</p>"
        + table([("Run", False), *heads, ("All together", True)], lines)
    )


def curves_section(runs: Sequence[LoadedRun]) -> str:
    """A panel per run with draws, all on the same axes."""
    told = [(run, run.results["learning_curve"]) for run in runs if run.results.get("learning_curve")]
    if not told:
        return ""
    points = [point for _, curve in told for point in curve["points"]]
    low = min(point["interval"][0] for point in points)
    high = max(point["interval"][1] for point in points)
    low, high = math.floor(low * 20) / 20, math.ceil(high * 20) / 20
    bounds = (low, high) if low < high else (0.0, 1.0)
    most = max(point["shots"] for point in points)
    panels = [figure(run.row.name, learning_curve(curve, bounds, most, title=_title(run))) for run, curve in told]
    sentences = "".join(f"<li><b>{escape(run.row.name)}</b>: {escape(curve['told'])}.</li>" for run, curve in told)
    return (
        f"<h2>Few labels</h2><p>{metric_name(told[0][1]['metric'], first=True)} by labels a class, on the whole test "
        "split: mean over draws, with its 95 % interval over images, draws and seeds. The line is a power law of the "
        f"error, fitted to all sizes.</p><ul>{sentences}</ul>"
        f'<div class="charts">{"".join(panels)}</div>{_curves_table(told)}'
    )


def learning_curve(curve: Mapping[str, Any], bounds: tuple[float, float], most: int, *, title: str) -> str:
    """Points with whiskers over labels a class, on a logarithmic axis, and the law behind them.

    Args:
        bounds: of the score's axis.
        most: labels a class at the right end.
    """
    x = Scale(0.0, math.log(max(2, most)), _LEFT + 12, _RIGHT - 12)
    y = Scale(*bounds, _BOTTOM, _TOP)
    parts = []
    for value, words in percent_ticks(*bounds):
        parts.append(f'<path d="M{_LEFT:.0f} {y(value):.2f}H{_RIGHT:.0f}" style="stroke:{_LINE};stroke-width:1"/>')
        parts.append(text([words], _LEFT - 6, y(value) + 4, size=12.5, anchor="end"))
    if (law := curve.get("fit")) is not None:
        first = math.log(curve["points"][0]["shots"])
        last = math.log(curve["points"][-1]["shots"])
        steps = [first + (last - first) * i / _N_LAW for i in range(_N_LAW + 1)]
        line = " ".join(f"{x(s):.2f},{y(1 - law['a'] - law['b'] * math.exp(-law['c'] * s)):.2f}" for s in steps)
        parts.append(f'<polyline class="law" points="{line}" style="stroke:{_LAW};stroke-width:2;fill:none"/>')
    for point in curve["points"]:
        metric, at = curve["metric"], x(math.log(point["shots"]))
        mean = point["metrics"][metric]["mean"]
        low, high = (y(end) for end in point["interval"])
        hover = f"{count(point['shots'], 'label')} a class: {show(metric, mean)}{unit(metric)}"
        parts.append(
            f'<g><title>{hover}</title><path class="whisker" d="M{at:.2f} {low:.2f}V{high:.2f}" '
            f'style="stroke:{_MARK};stroke-width:1.5"/>'
            f'<circle class="point" cx="{at:.2f}" cy="{y(mean):.2f}" r="4" style="fill:{_MARK}"/></g>'
        )
        parts.append(text([str(point["shots"])], at, _BOTTOM + 16, size=12.5, anchor="middle"))
    parts.append(text(["labels a class"], (_LEFT + _RIGHT) / 2, _BOTTOM + 34, size=12.5, anchor="middle"))
    return svg(title, _BOTTOM + 40, parts)


def _curves_table(told: Sequence[tuple[LoadedRun, Mapping[str, Any]]]) -> str:
    sizes = sorted({point["shots"] for _, curve in told for point in curve["points"]})
    lines = []
    for run, curve in told:
        metric, by_size = curve["metric"], {point["shots"]: point for point in curve["points"]}
        cells = [
            f"{escape(show_spread(metric, found['metrics'][metric]['mean'], found['metrics'][metric]['std']))}"
            f"<small>{show_interval(metric, found['interval'])}</small>"
            if (found := by_size.get(size))
            else NONE
            for size in sizes
        ]
        lines.append([f"<b>{escape(run.row.name)}</b>", f"{curve['draws']}", *cells])
    columns = [("Run", False), ("Draws", True), *((f"{size} a class", True) for size in sizes)]
    note = f"{metric_head(told[0][1]['metric'], first=True)}: mean and standard deviation over draws and seeds."
    return f'{table(columns, lines)}<p class="note">{escape(note)}</p>'


def _title(run: LoadedRun) -> str:
    return f"Labels a class, {run.row.name}"

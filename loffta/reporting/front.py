"""Quality against what it costs: which runs no other beats in both, as a plot and as rows for programs.

In:  loaded runs of one metric, the best first.   Out: HTML for `page`, OnFront for programs. Two costs are known: the
multiply-accumulates of the backbones, from their caches, and the milliseconds that a head took, from an evaluation.
Runs tested on other images, or timed on another machine than the most, are left out of a plot.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loffta.reporting.comparisons import Comparisons
from loffta.reporting.markup import figure, table
from loffta.reporting.plots import Scale, frame, percent_ticks, round_ticks, svg, text
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import escape, human_macs
from loffta.reporting.worth import macs_of
from loffta.tasks.figures import best_first, metric_head, points, show, unit

_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 408.0, 8.0, 268.0
_ON, _OFF, _LINE = "var(--mark,#0b3d66)", "var(--bar,#5b9bd0)", "var(--line,#d5dae0)"
_COSTS = {"macs": "Forward cost of the backbones", "head_ms": "Time of the head"}


@dataclass(frozen=True)
class OnFront:
    """A run that no other beats in both quality and cost."""

    cost: str  # macs: of an image through all backbones; head_ms: milliseconds an image
    run: str
    amount: float
    metric: str
    value: float


@dataclass(frozen=True)
class Dot:
    """A run in a plot."""

    run: LoadedRun
    cost: float
    value: float


def find_fronts(runs: Sequence[LoadedRun], comparisons: Comparisons) -> list[OnFront]:
    """Of every metric and cost that two runs and more have, the cheapest first."""
    found = []
    for ranked in _by_metric(runs):
        for cost in _COSTS:
            dots = _dots(ranked, cost, comparisons)
            found += [
                OnFront(cost, dot.run.row.name, dot.cost, dot.run.row.headline, dot.value) for dot in pareto(dots)
            ]
    return found


def pareto(dots: Sequence[Dot]) -> list[Dot]:
    """Those that none beats in cost and value, the cheapest first; of equals the first.

    A dot is beaten by one that costs no more and is no worse, and is better in one of the two.
    """
    found: list[Dot] = []
    for dot in sorted(dots, key=lambda dot: (dot.cost, best_first(dot.run.row.headline, dot.value))):
        metric = dot.run.row.headline
        if not found or best_first(metric, dot.value) < best_first(metric, found[-1].value):
            found.append(dot)
    return found


def front_section(ranked: Sequence[LoadedRun], comparisons: Comparisons) -> str:
    """A plot for each cost; empty where fewer than two runs have any, or all cost the same."""
    charts, lines, on_front = [], [], {}
    for cost, words in _COSTS.items():
        dots = _dots(ranked, cost, comparisons)
        if len({dot.cost for dot in dots}) > 1:
            on_front[cost] = pareto(dots)
            charts.append(figure(f"{words}, an image", _plot(dots, on_front[cost], cost, f"{words}, {_name(ranked)}")))
    if not charts:
        return ""
    for run in ranked:
        member = [_COSTS[cost] for cost, dots in on_front.items() if any(dot.run is run for dot in dots)]
        if member:
            lines.append([f"<b>{escape(run.row.name)}</b>", _shown(run), *(_amount(run, cost) for cost in _COSTS)])
    columns = [("Run", False), (metric_head(ranked[0].row.headline, first=True), True)]
    columns += [("Backbones", True), ("Head", True)]
    return (
        "<h3>Quality against cost</h3><p>A dot is a run. Full dots are the front: no other run is as good and costs "
        "less. The axis of costs is logarithmic. A backbone that several runs share counts for each. "
        f"{escape(_how_timed(ranked))}</p>"
        f'<div class="charts">{"".join(charts)}</div><p>On a front:</p>{table(columns, lines)}'
    )


def _by_metric(runs: Sequence[LoadedRun]) -> list[list[LoadedRun]]:
    groups: dict[str, list[LoadedRun]] = {}
    for run in runs:
        groups.setdefault(run.row.headline, []).append(run)
    return list(groups.values())


def _dots(ranked: Sequence[LoadedRun], cost: str, comparisons: Comparisons) -> list[Dot]:
    """Of the runs that can be compared in this cost; fewer than two are none."""
    costs = {run.row.name: _cost(run, cost) for run in ranked}
    known = [run for run in ranked if costs[run.row.name]]
    if cost == "head_ms" and known:
        most = Counter(map(_machine, known)).most_common(1)[0][0]
        known = [run for run in known if _machine(run) == most]
    if len(known) < 2 or not comparisons.same_images(known):
        return []
    return [Dot(run, costs[run.row.name] or 0.0, run.row.main.mean) for run in known]


def _cost(run: LoadedRun, cost: str) -> float | None:
    if cost == "head_ms":
        found = run.results.get("timing", {}).get("head_ms")
        return None if found is None else float(found)
    macs = list((macs_of(run) or {"": None}).values())
    return None if None in macs else float(sum(n for n in macs if n is not None))


def _machine(run: LoadedRun) -> tuple[str, int]:
    timed = run.results["timing"]
    return timed["device"], timed["threads"]


def _plot(dots: Sequence[Dot], front: Sequence[Dot], cost: str, title: str) -> str:
    """Dots over a logarithmic axis of costs; the front as a line of steps."""
    metric = dots[0].run.row.headline
    low, high = (end(dot.value for dot in dots) for end in (min, max))
    if points(metric):
        low, high = int(low * 50) / 50, min(1.0, -(-high * 50 // 1) / 50)  # to the next 2 %
        high = high if high > low else min(1.0, low + 0.02)
        ticks = percent_ticks(low, high)
    else:
        marks = round_ticks(low, high)
        low, high, ticks = marks[0], marks[-1], [(mark, f"{mark:g}") for mark in marks]
    up = Scale(low, high, _BOTTOM, _TOP)
    first, last = (math.log10(end(dot.cost for dot in dots)) for end in (min, max))
    margin = 0.06 * (last - first)
    across = Scale(first - margin, last + margin, _LEFT, _RIGHT)
    parts = [frame(_LEFT, _TOP, _RIGHT - _LEFT, _BOTTOM - _TOP)]
    for value, words in ticks:
        parts.append(_line(f"M{_LEFT:.0f} {up(value):.2f}H{_RIGHT:.0f}"))
        parts.append(text([words], _LEFT - 6, up(value) + 4, size=12.5, anchor="end"))
    for value in _log_ticks(10 ** (first - margin), 10 ** (last + margin)):
        x = across(math.log10(value))
        parts.append(_line(f"M{x:.2f} {_TOP:.0f}V{_BOTTOM:.0f}"))
        parts.append(text([_axis_text(value, cost)], x, _BOTTOM + 16, size=12.5, anchor="middle"))
    places = [(across(math.log10(dot.cost)), up(dot.value)) for dot in front]
    steps = "".join(f"H{x:.2f}V{y:.2f}" for x, y in places[1:])
    parts.append(
        f'<path class="front" d="M{places[0][0]:.2f} {places[0][1]:.2f}{steps}H{_RIGHT:.2f}" '
        f'style="stroke:{_ON};stroke-width:1.5;fill:none"/>'
    )
    for dot in dots:
        is_on = any(dot is one for one in front)
        x, y = across(math.log10(dot.cost)), up(dot.value)
        hover = f"{dot.run.row.name}: {show(metric, dot.value)}{unit(metric)}, {_in_words(dot.cost, cost)}"
        which, radius, opacity = ("on", 5, 1) if is_on else ("off", 3.6, 0.55)
        parts.append(
            f'<g><title>{escape(hover)}</title><circle class="{which}" cx="{x:.2f}" cy="{y:.2f}" r="{radius}" '
            f'style="fill:{_ON if is_on else _OFF};fill-opacity:{opacity}"/></g>'
        )
    return svg(title, _BOTTOM + 26, parts)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between both: powers of ten, or of 1, 2 and 5 where these are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [part * 10.0**power for power in powers for part in parts if low <= part * 10.0**power <= high]
        if len(found) >= 2:
            break
    return found[:: -(-len(found) // 6)] if found else []


def _axis_text(value: float, cost: str) -> str:
    return human_macs(round(value)) if cost == "macs" else f"{value:g} ms"


def _in_words(value: float, cost: str) -> str:
    return human_macs(round(value)) if cost == "macs" else f"{value:.3g} ms"


def _amount(run: LoadedRun, cost: str) -> str:
    found = _cost(run, cost)
    return "not known" if found is None else _in_words(found, cost)


def _shown(run: LoadedRun) -> str:
    return f"{show(run.row.headline, run.row.main.mean)}{unit(run.row.headline)}"


def _how_timed(ranked: Sequence[LoadedRun]) -> str:
    timed = [_machine(run) for run in ranked if _cost(run, "head_ms")]
    if not timed:
        return "What heads take is not known: `loffta evaluate RUN` measures it."
    (device, threads), _ = Counter(timed).most_common(1)[0]
    where = f"a CPU with {threads} threads" if device == "cpu" else device
    return f"Heads were timed in evaluation on {where}, without reading and metrics."


def _name(ranked: Sequence[LoadedRun]) -> str:
    return ranked[0].row.headline_name


def _line(d: str) -> str:
    return f'<path d="{d}" style="stroke:{_LINE};stroke-width:1"/>'

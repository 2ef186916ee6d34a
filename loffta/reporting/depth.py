"""Scores layer by layer: a line per head over the depth of a backbone, with 95 % intervals, as inline SVG.

In:  the names of the layers, and each head's scores on them.   Out: one <svg> string, for the page of a scan. Colours
are CSS variables of the page; lines differ by their dashes and marks as well, for print and for the colour-blind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loffta.reporting.plots import WIDTH, Scale
from loffta.reporting.text import escape

_LEFT, _RIGHT, _TOP, _HEIGHT = 44.0, 8.0, 8.0, 190.0
_COLOURS = ("var(--mark,#0b3d66)", "var(--wrong,#a3341b)", "var(--right,#0a6640)", "var(--control,#8d8d8d)")
_PENS = (("", "circle"), ("6 3", "square"), ("2 3", "diamond"), ("9 3 2 3", "circle"))  # dashes, mark
_INK, _QUIET, _LINE = "var(--ink,#1b1f24)", "var(--quiet,#59636e)", "var(--line,#d5dae0)"
_ROOM = 22.0  # of a layer's name, written upright
_LETTER = 6.6  # about the width of one


@dataclass(frozen=True)
class Series:
    """One line; None where a layer was not measured."""

    name: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None]
    hovers: Sequence[str]  # what is told of each point


def depth_chart(layers: Sequence[str], series: Sequence[Series], ticks: Sequence[tuple[float, str]], title: str) -> str:
    """A chart with the shallowest layer on the left.

    Args:
        ticks: values and their texts, rising; the axis goes from the first to the last.
    """
    width = max(WIDTH, _LEFT + _RIGHT + _ROOM * len(layers))
    step = (width - _LEFT - _RIGHT) / len(layers)
    up = Scale(ticks[0][0], ticks[-1][0], 0.0, _HEIGHT)
    bottom = _TOP + _HEIGHT
    parts = [_rule(width, bottom - up(value), text) for value, text in ticks]
    parts += [_upright(name, _LEFT + step * (i + 0.5), bottom + 8) for i, name in enumerate(layers)]
    for i, one in enumerate(series):
        style = _style(i)
        shift = (i - (len(series) - 1) / 2) * min(5.0, step / (len(series) + 1))  # intervals beside each other
        xs = [_LEFT + step * (j + 0.5) + shift for j in range(len(layers))]
        parts.append(_line(xs, [None if v is None else bottom - up(v) for v in one.values], style))
        parts += [_point(x, bottom, up, one, j, style) for j, x in enumerate(xs) if one.values[j] is not None]
    longest = max(map(len, layers))
    height = bottom + 14 + _LETTER * longest
    column = max(90.0, 26 + _LETTER * max(len(one.name) for one in series))
    n_columns = max(1, int((width - _LEFT) // column))
    for i, one in enumerate(series):
        parts.append(_key(i, one.name, _LEFT + column * (i % n_columns), height + 18 * (i // n_columns)))
    height += 20 + 18 * ((len(series) - 1) // n_columns)
    name = escape(title)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{name}"><title>{name}</title>'
        f"{''.join(parts)}</svg>"
    )


def _style(i: int) -> tuple[str, str, str]:
    """Colour, dashes and mark; another for each of 16 lines, and for each of the first four in all of them."""
    n = len(_COLOURS)
    return _COLOURS[i % n], *_PENS[(i + i // n) % len(_PENS)]


def _line(xs: Sequence[float], ys: Sequence[float | None], style: tuple[str, str, str]) -> str:
    """Broken where a layer was not measured."""
    path, pen = "", "M"
    for x, y in zip(xs, ys, strict=True):
        path += "" if y is None else f"{pen}{x:.2f} {y:.2f}"
        pen = "M" if y is None else "L"
    colour, dashes, _ = style
    dashed = f";stroke-dasharray:{dashes}" if dashes else ""
    return f'<path class="depth" d="{path}" style="stroke:{colour};stroke-width:2;fill:none{dashed}"/>'


def _point(x: float, bottom: float, up: Scale, one: Series, j: int, style: tuple[str, str, str]) -> str:
    value, interval = one.values[j], one.intervals[j]
    assert value is not None
    y, colour = bottom - up(value), style[0]
    whisker = ""
    if interval is not None:
        ends = f"M{x:.2f} {bottom - up(interval[0]):.2f}V{bottom - up(interval[1]):.2f}"
        whisker = f'<path class="whisker" d="{ends}" style="stroke:{colour};stroke-width:1.2;opacity:.6"/>'
    return f"<g><title>{escape(one.hovers[j])}</title>{whisker}{_mark(x, y, style)}</g>"


def _mark(x: float, y: float, style: tuple[str, str, str]) -> str:
    colour, _, kind = style
    if kind == "circle":
        return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="3.2" style="fill:{colour}"/>'
    turned = f' transform="rotate(45 {x:.2f} {y:.2f})"' if kind == "diamond" else ""
    return f'<rect x="{x - 3:.2f}" y="{y - 3:.2f}" width="6" height="6"{turned} style="fill:{colour}"/>'


def _rule(width: float, y: float, text: str) -> str:
    return f'<path d="M{_LEFT:.2f} {y:.2f}H{width - _RIGHT:.2f}" style="stroke:{_LINE};stroke-width:1"/>' + _text(
        text, _LEFT - 6, y + 4, "end", _QUIET
    )


def _key(i: int, name: str, x: float, y: float) -> str:
    return _mark(x, y, _style(i)) + _text(name, x + 9, y + 4, "start", _INK)


def _upright(name: str, x: float, y: float) -> str:
    return f'<g transform="rotate(-90 {x:.2f} {y:.2f})">{_text(name, x, y + 4, "end", _QUIET)}</g>'


def _text(text: str, x: float, y: float, anchor: str, colour: str) -> str:
    style = f"font-family:inherit;font-size:12px;fill:{colour}"
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" style="{style}">{escape(text)}</text>'

"""Bar charts and heat maps as inline SVG, without a plotting library.

In: bars with the text to print, counts.   Out: one <svg> string each, for `page`. Colours are CSS variables of the
page, each with a fallback; a chart is 420 units wide, so that its text is readable both at 350 px on a phone and at
450 px. Names are not cut: long ones take more lines, or a wider margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from loffta.reporting.text import escape, wrap

WIDTH = 420.0
_ABOVE_X, _ABOVE_END = 1.0, 358.0  # plot area of charts whose labels stand above the bars
_LEFT_X, _LEFT_END = 116.0, 368.0  # plot area of charts whose labels stand left of them
_FONT = "font-family:inherit"
_INK, _QUIET, _LINE = "var(--ink,#1b1f24)", "var(--quiet,#59636e)", "var(--line,#d5dae0)"
_BAR, _CONTROL, _DOT = "var(--bar,#5b9bd0)", "var(--control,#8d8d8d)", "var(--mark,#0b3d66)"
_WRONG = "var(--wrong,#a3341b)"
_ABOVE, _LEFT, _BESIDE = 44, 13, 40  # columns of a line above a bar, left of it, beside a map; of a font like DejaVu
_LINE_HEIGHT = 16.0
_CELL = 14.0  # smallest side of a heat map's cell: names of 12 units still fit; 50 classes make 816 units
_PATTERN = (
    '<defs><pattern id="{id}" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    f'<rect width="6" height="6" style="fill:{_CONTROL};opacity:.35"/>'
    f'<rect width="2.5" height="6" style="fill:{_CONTROL}"/></pattern></defs>'
)


@dataclass(frozen=True)
class Bar:
    """One bar and what stands beside it."""

    label: str
    value: float | int
    text: str  # the value as printed
    detail: str = ""  # a second, quieter line
    dots: tuple[float, ...] = ()  # one per seed
    whisker: tuple[float, float] | None = None
    control: bool = False  # hatched: a random control, not a contestant


@dataclass(frozen=True)
class Scale:
    """Values to places on the x axis."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of `value`, kept inside the plot."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)


def bar_chart(
    bars: Sequence[Bar],
    *,
    title: str,
    low: float = 0.0,
    high: float | None = None,
    ticks: Sequence[tuple[float, str]] = (),
) -> str:
    """A chart with each label above its bar.

    Args:
        low: left end of the axis. Where it is not 0 no bars are drawn, for their lengths would lie, but points.
        high: right end; None: the largest value.
        ticks: values and their texts; none: no axis.
    """
    scale = Scale(low, high or max(bar.value for bar in bars) or 1.0, _ABOVE_X, _ABOVE_END)
    labels = [wrap(bar.label, _ABOVE) for bar in bars]
    details = [wrap(bar.detail, _ABOVE + 8) if bar.detail else [] for bar in bars]
    heights = [26 + _LINE_HEIGHT * (len(lines) + len(more)) for lines, more in zip(labels, details, strict=True)]
    bottom = sum(heights)
    parts = [_axis(scale, ticks, bottom, pattern := _pattern_id(title))]
    top = 0.0
    for bar, lines, more, height in zip(bars, labels, details, heights, strict=True):
        middle = top + height - 16
        parts.append(text(lines, 0, top + 15, weight=600))
        if more:
            parts.append(text(more, 0, top + 15 + _LINE_HEIGHT * len(lines), size=12.5, colour=_QUIET))
        parts.append(_marks(bar, scale, middle, 12, pattern, hollow=low != 0))
        parts.append(text([bar.text], WIDTH, middle + 5, anchor="end", weight=600))
        top += height
    return svg(title, bottom + (22 if ticks else 0), parts)


def grouped_chart(groups: Sequence[tuple[str, Sequence[Bar]]], *, title: str) -> str:
    """A compact chart from 0 on: a heading per group, labels left of their bars."""
    largest = max(bar.value for _, bars in groups for bar in bars)
    scale = Scale(0.0, largest or 1.0, _LEFT_X, _LEFT_END)
    parts, y = [_PATTERN.format(id=(pattern := _pattern_id(title)))], 0.0
    for heading, bars in groups:
        lines = wrap(heading, _ABOVE)
        parts.append(text(lines, 0, y + 15, weight=600))
        y += 10 + _LINE_HEIGHT * len(lines)
        for bar in bars:
            lines = wrap(bar.label, _LEFT)
            parts.append(text(lines, _LEFT_X - 10, y + 10, size=12.5, anchor="end", colour=_QUIET))
            parts.append(_marks(bar, scale, y + 6, 10, pattern))
            parts.append(text([bar.text], WIDTH, y + 10, size=12.5, anchor="end"))
            y += 4 + _LINE_HEIGHT * len(lines)
        y += 10
    return svg(title, y, parts)


def heat_map(counts: Sequence[Sequence[int]], names: Sequence[str], *, title: str) -> str:
    """Counts of truth (rows) by prediction (columns), each row shaded by its shares; mistakes in another colour.

    Where there is room for it a cell shows its share in percent; a hover shows names, count and share.
    """
    lines = [wrap(name, _BESIDE) for name in names]
    cell = max(_CELL, min(40.0, (WIDTH - _LEFT_X) / len(names)), _LINE_HEIGHT * max(map(len, lines)) - 2)
    size = min(12.5, cell - 2)
    start = 10 + _width(lines, size)
    parts = []
    for i, (row, truth) in enumerate(zip(counts, names, strict=True)):
        parts.append(text(lines[i], start - 6, start + cell * (i + 0.5) + 4, size=size, anchor="end", centred=True))
        parts.append(_upright(lines[i], start + cell * (i + 0.5) + 4, start - 6, size))
        parts += [
            _count_cell(start + cell * j, start + cell * i, cell, count / sum(row), count, truth, names[j], i == j)
            for j, count in enumerate(row)
            if count
        ]
    side = cell * len(names)
    parts.append(frame(start, start, side, side))
    return svg(title, start + side + 2, parts, max(WIDTH, start + side + 2))


def weight_map(
    weights: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[tuple[str, str]],
    *,
    title: str,
    high: float,
) -> str:
    """Weights 0-1 of columns in groups, by row; a cell of the weight `high` has the full colour, None is no cell.

    Where there is room for it a cell shows its weight in percent; a hover shows names and weight.

    Args:
        columns: group and name of each; a heading stands above each group, a dashed line between two.
    """
    names, labels = [wrap(name, _BESIDE) for _, name in columns], [wrap(label, _LEFT) for label in rows]
    cell = max(_CELL, min(40.0, (WIDTH - _LEFT_X) / len(columns)), _LINE_HEIGHT * max(map(len, names)) - 2)
    size = min(12.5, cell - 2)
    height = max(22.0, _LINE_HEIGHT * max(map(len, labels)) + 2)
    start, top = _LEFT_X, 26 + _width(names, size)
    parts = []
    for j, (group, _) in enumerate(columns):
        left = start + cell * j
        parts.append(_upright(names[j], left + cell / 2 + 4, top - 6, size))
        if j == 0 or group != columns[j - 1][0]:
            parts.append(text([group], left + (4 if j else 0), 12, size=12.5, weight=600))  # clear of the dashed line
    for i, (row, label) in enumerate(zip(weights, rows, strict=True)):
        y = top + height * i
        parts.append(text(labels[i], start - 6, y + height / 2 + 4, size=12.5, anchor="end", centred=True))
        for j, ((group, name), weight) in enumerate(zip(columns, row, strict=True)):
            if weight is not None:
                hover = f"{escape(label)}, {escape(group)} of {escape(name)}: {100 * weight:.1f} %"
                place = (start + cell * j, y, cell, height)
                parts.append(_cell(*place, weight / high if high else 0.0, _BAR, hover, f"{100 * weight:.0f}"))
    side, bottom = cell * len(columns), top + height * len(rows)
    parts += [
        f'<path class="divide" d="M{start + cell * j:.2f} 2V{bottom:.2f}" '
        f'style="stroke:{_QUIET};stroke-width:1;stroke-dasharray:4 3"/>'
        for j in range(1, len(columns))
        if columns[j][0] != columns[j - 1][0]
    ]
    parts.append(frame(start, top, side, bottom - top))
    return svg(title, bottom + 2, parts, max(WIDTH, start + side + 2))


def _count_cell(
    x: float, y: float, side: float, share: float, count: int, truth: str, predicted: str, right: bool
) -> str:
    hover = f"{escape(truth)} \N{RIGHTWARDS ARROW} {escape(predicted)}: {count:,} ({100 * share:.1f} %)"
    return _cell(x, y, side, side, share, _BAR if right else _WRONG, hover, f"{100 * share:.0f}")


def _cell(x: float, y: float, width: float, height: float, share: float, colour: str, hover: str, shown: str) -> str:
    """One cell of a heat map; the smallest share is still seen. `hover` is escaped; narrow cells do without `shown`."""
    return (
        f'<g><title>{hover}</title><rect class="cell" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" '
        f'height="{height:.2f}" style="fill:{colour};fill-opacity:{0.12 + 0.88 * share:.3f}"/>'
        + (text([shown], x + width / 2, y + height / 2 + 4, size=11.5, anchor="middle") if width >= 24 else "")
        + "</g>"
    )


def frame(x: float, y: float, width: float, height: float) -> str:
    """The outline of a plot."""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'style="fill:none;stroke:{_LINE};stroke-width:1"/>'
    )


def percent_ticks(low: float | int, high: float | int) -> list[tuple[float, str]]:
    """Three to six round fractions between `low` and `high`, as percent."""
    for step in (1, 2, 5, 10, 20, 25):
        first = -(-round(100 * low, 6) // step) * step
        found = [first + i * step for i in range(int((100 * high - first) / step + 1e-9) + 1)]
        if len(found) <= 6:
            break
    return [(tick / 100, f"{tick:.0f} %") for tick in found]


def round_ticks(low: float | int, high: float | int) -> list[float]:
    """Three to nine round numbers at equal distances, the first not above `low`, the last not below `high`."""
    span = (high - low) or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span))
    step = next(part * size for part in (0.2, 0.25, 0.5, 1, 2) if span / (part * size) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12 - math.floor(math.log10(step))) for i in range(first, max(last, first + 1) + 1)]


def _marks(bar: Bar, scale: Scale, middle: float, thickness: float | int, pattern: str, *, hollow: bool = False) -> str:
    """The bar or point, the whisker across it and the dots of the seeds."""
    fill = f"url(#{pattern})" if bar.control else _BAR
    x = scale(bar.value)
    parts = []
    if not hollow:
        parts.append(
            f'<rect class="bar" x="{scale.start:.2f}" y="{middle - thickness / 2:.2f}" '
            f'width="{x - scale.start:.2f}" height="{thickness:.2f}" rx="1.5" style="fill:{fill}"/>'
        )
    if bar.whisker is not None:
        left, right = scale(bar.whisker[0]), scale(bar.whisker[1])
        cap = thickness / 2 - 1
        parts.append(
            f'<path class="whisker" d="M{left:.2f} {middle:.2f}H{right:.2f}M{left:.2f} {middle - cap:.2f}v{2 * cap:.2f}'
            f'M{right:.2f} {middle - cap:.2f}v{2 * cap:.2f}" style="stroke:{_DOT};stroke-width:1.5;fill:none"/>'
        )
    if hollow:
        parts.append(f'<path class="mean" d="M{x:.2f} {middle - 8:.2f}v16" style="stroke:{_DOT};stroke-width:3"/>')
    parts += [
        f'<circle class="seed" cx="{scale(dot):.2f}" cy="{middle:.2f}" r="3.2" '
        f'style="fill:var(--page,#fff);stroke:{_DOT};stroke-width:1.5"/>'
        for dot in bar.dots
    ]
    return "".join(parts)


def _axis(scale: Scale, ticks: Sequence[tuple[float, str]], bottom: float, pattern: str) -> str:
    parts = [_PATTERN.format(id=pattern)]
    for value, words in ticks:
        x = scale(value)
        anchor = "start" if x < 12 else "middle"
        parts.append(f'<path d="M{x:.2f} 0V{bottom:.2f}" style="stroke:{_LINE};stroke-width:1"/>')
        parts.append(text([words], x, bottom + 15, size=12.5, anchor=anchor, colour=_QUIET))
    return "".join(parts)


def text(
    lines: Sequence[str],
    x: float | int,
    y: float | int,
    *,
    size: float = 13.5,
    anchor: str = "start",
    weight: int = 400,
    colour: str = _INK,
    centred: bool = False,
) -> str:
    """Lines below each other, the first at y, or all of them around it."""
    y -= (len(lines) - 1) * _LINE_HEIGHT / 2 if centred else 0
    style = f"{_FONT};font-size:{size}px;font-weight:{weight};fill:{colour}"
    # a halo in the page's colour keeps text readable where a grid line crosses it
    halo = "paint-order:stroke;stroke:var(--page,#fff);stroke-width:3px"
    spans = [f'<tspan x="{x:.2f}" dy="{_LINE_HEIGHT:.0f}">{escape(line)}</tspan>' for line in lines[1:]]
    inside = escape(lines[0]) + "".join(spans)
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" style="{style};{halo}">{inside}</text>'


def _upright(lines: Sequence[str], x: float, y: float, size: float) -> str:
    return f'<g transform="rotate(-90 {x:.2f} {y:.2f})">{text(lines, x, y, size=size, centred=True)}</g>'


def _width(names: Sequence[Sequence[str]], size: float) -> float:
    """Of the longest line, about."""
    return 0.64 * size * max(cell_len(line) for lines in names for line in lines)


def svg(title: str, height: float, parts: Sequence[str], width: float = WIDTH) -> str:
    """The chart of its parts."""
    name = escape(title)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{name}"><title>{name}</title>'
        f"{''.join(parts)}</svg>"
    )


def _pattern_id(title: str) -> str:
    """An id that no other chart of the page has, as long as titles differ."""
    return "hatch-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())

"""Predicted by true values as a square of dots, in the style of `plots`.

In: pairs of numbers.   Out: one <svg> string, for `values`.
"""

from __future__ import annotations

from collections.abc import Sequence

from loffta.reporting.plots import WIDTH, Scale, frame, round_ticks, svg, text

_LEFT, _TOP, _SIDE = 62.0, 8.0, 340.0
_DOT, _LINE = "var(--mark,#0b3d66)", "var(--quiet,#59636e)"


def scatter(truth: Sequence[float], predicted: Sequence[float], *, title: str) -> str:
    """A dot an image; both axes have one range, and the line is where they are equal."""
    ticks = round_ticks(min(*truth, *predicted), max(*truth, *predicted))
    across = Scale(ticks[0], ticks[-1], _LEFT, _LEFT + _SIDE)
    up = Scale(ticks[0], ticks[-1], _TOP + _SIDE, _TOP)
    parts = [frame(_LEFT, _TOP, _SIDE, _SIDE)]
    for tick in ticks:
        parts.append(text([f"{tick:g}"], across(tick), _TOP + _SIDE + 16, size=12.5, anchor="middle"))
        parts.append(text([f"{tick:g}"], _LEFT - 6, up(tick) + 4, size=12.5, anchor="end"))
    parts.append(
        f'<path class="equal" d="M{_LEFT:.2f} {_TOP + _SIDE:.2f}L{_LEFT + _SIDE:.2f} {_TOP:.2f}" '
        f'style="stroke:{_LINE};stroke-width:1;stroke-dasharray:4 3"/>'
    )
    parts += [
        f'<circle class="image" cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.4" style="fill:{_DOT};fill-opacity:.5"/>'
        for x, y in zip(truth, predicted, strict=True)
    ]
    parts.append(text(["truth"], _LEFT + _SIDE / 2, _TOP + _SIDE + 34, size=12.5, anchor="middle", weight=600))
    parts.append(text(["predicted"], 0, _TOP + 4, size=12.5, weight=600))
    return svg(title, _TOP + _SIDE + 42, parts, WIDTH)

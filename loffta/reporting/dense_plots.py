"""Two diagrams of dense runs as inline SVG: precision by recall, and how far the heads of a masked attention look.

In: numbers as results.json keeps them.   Out: one <svg> string each, for `dense`; in the style of `diagrams`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loffta.reporting.diagrams import BOTTOM, LEFT, RIGHT, TOP, axes
from loffta.reporting.plots import Scale, frame, svg, text

_LINES = {"0.50": "", "0.75": "6 4"}  # by overlap: how a line is dashed
_DOT, _GRID = "var(--mark,#0b3d66)", "var(--line,#d5dae0)"
_SIDE = 300.0  # of the grid's longer side
HALF = math.sqrt(math.sqrt(2 * math.log(2)))  # exp(-(d^2 / sigma)^2 / 2) is half at d = HALF sqrt(sigma)


def precision_recall(recalls: Sequence[float], by_overlap: Mapping[str, Sequence[float]], *, title: str) -> str:
    """A line per overlap, named at its beginning."""
    x, y = Scale(0.0, 1.0, LEFT, RIGHT), Scale(0.0, 1.0, BOTTOM, TOP)
    parts = axes(x, y, "recall", "precision", 1.0)
    for i, (overlap, precisions) in enumerate(by_overlap.items()):
        points = " ".join(f"{x(r):.2f},{y(p):.2f}" for r, p in zip(recalls, precisions, strict=True))
        dash = _LINES.get(overlap, "2 3")
        parts.append(
            f'<polyline class="precision" points="{points}" '
            f'style="stroke:{_DOT};stroke-width:2;stroke-dasharray:{dash or "none"};fill:none"/>'
        )
        height = TOP + 26 + 18 * i
        parts.append(
            f'<path d="M{RIGHT - 110:.0f} {height - 4:.0f}h26" '
            f'style="stroke:{_DOT};stroke-width:2;stroke-dasharray:{dash or "none"};fill:none"/>'
        )
        parts.append(text([f"overlap {overlap}"], RIGHT - 78, height, size=12.5))
    return svg(title, BOTTOM + 40, parts)


def look_circles(sigmas: Sequence[float], cells: tuple[int, int], *, title: str) -> str:
    """The grid of cells, and around its middle a circle per head where its mask has half of its height.

    Masks measure distances from 0, the centre of the first cell, to 1, that of the last, along either side: on a grid
    that is no square what is drawn are ellipses.
    """
    n_rows, n_columns = cells
    step = _SIDE / max(cells)
    width, height = n_columns * step, n_rows * step
    parts = [frame(1.0, 1.0, width, height)]
    lines = [f"M{1 + i * step:.1f} 1v{height:.1f}" for i in range(1, n_columns)]
    lines += [f"M1 {1 + i * step:.1f}h{width:.1f}" for i in range(1, n_rows)]
    parts.append(f'<path d="{"".join(lines)}" style="stroke:{_GRID};stroke-width:1;fill:none"/>')
    for i, sigma in enumerate(sigmas):
        radius = HALF * math.sqrt(abs(sigma))
        across, down = (radius * (n - 1) * step for n in (n_columns, n_rows))
        dash = "5 4" if sigma < 0 else "none"
        parts.append(
            f'<ellipse class="look" cx="{1 + width / 2:.2f}" cy="{1 + height / 2:.2f}" rx="{across:.2f}" '
            f'ry="{down:.2f}" style="stroke:{_DOT};stroke-width:1.5;stroke-dasharray:{dash};fill:none">'
            f"<title>head {i + 1}: sigma {sigma:.4f}</title></ellipse>"
        )
    parts.append(f'<circle cx="{1 + width / 2:.2f}" cy="{1 + height / 2:.2f}" r="3" style="fill:{_DOT}"/>')
    return svg(title, height + 2, parts, width + 2)

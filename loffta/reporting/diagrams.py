"""Two diagrams in the unit square as inline SVG: accuracy by confidence, and risk by coverage.

In: bins and risks as results.json keeps them.   Out: one <svg> string each, for `calibration`; colours and sizes are
those of `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loffta.reporting.plots import Scale, percent_ticks, svg, text

LEFT, TOP, RIGHT, BOTTOM = 46.0, 10.0, 410.0, 290.0  # the plot area
_BAR, _DOT = "var(--bar,#5b9bd0)", "var(--mark,#0b3d66)"
_EQUAL, _LINE = "var(--wrong,#a3341b)", "var(--line,#d5dae0)"


def reliability_diagram(bins: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """A bar as high as its bin's accuracy, a dot where its mean confidence lies; on the dashed line both are equal.

    The bar of a bin of few images is pale: it is as uncertain as it is pale.
    """
    x, y = Scale(0.0, 1.0, LEFT, RIGHT), Scale(0.0, 1.0, BOTTOM, TOP)
    parts = axes(x, y, "confidence", "accuracy", 1.0)
    most = max(found["images"] for found in bins) or 1
    width = (RIGHT - LEFT) / len(bins)
    for i, found in enumerate(bins):
        if not found["images"]:
            continue
        top = y(found["accuracy"])
        hover = (
            f"{found['images']:,} images: confidence {100 * found['confidence']:.1f} %, "
            f"accuracy {100 * found['accuracy']:.1f} %"
        )
        opacity = 0.25 + 0.75 * found["images"] / most
        parts.append(
            f'<g><title>{hover}</title><rect class="bin" x="{LEFT + width * i + 1:.2f}" y="{top:.2f}" '
            f'width="{width - 2:.2f}" height="{BOTTOM - top:.2f}" style="fill:{_BAR};fill-opacity:{opacity:.2f}"/>'
            f'<circle class="confidence" cx="{x(found["confidence"]):.2f}" cy="{top:.2f}" r="3.2" '
            f'style="fill:{_DOT}"/></g>'
        )
    parts.append(
        f'<path d="M{x(0.0):.2f} {y(0.0):.2f}L{x(1.0):.2f} {y(1.0):.2f}" '
        f'style="stroke:{_EQUAL};stroke-width:1.5;stroke-dasharray:5 4;fill:none"/>'
    )
    return svg(title, BOTTOM + 40, parts)


def risk_coverage(risks: Sequence[float], *, title: str) -> str:
    """The share of errors among the surest images, while more of them are answered; rightmost is the plain error."""
    high = max(*risks, 0.01)
    x, y = Scale(0.0, 1.0, LEFT, RIGHT), Scale(0.0, high, BOTTOM, TOP)
    parts = axes(x, y, "coverage: share of images answered, the surest first", "errors", high)
    points = " ".join(f"{x((i + 1) / len(risks)):.2f},{y(risk):.2f}" for i, risk in enumerate(risks))
    parts.append(f'<polyline class="risk" points="{points}" style="stroke:{_DOT};stroke-width:2;fill:none"/>')
    return svg(title, BOTTOM + 40, parts)


def axes(x: Scale, y: Scale, below: str, left: str, high: float) -> list[str]:
    """Ticks of shares, and what they are of; `high` is the end of the upright axis."""
    parts = []
    for value, words in percent_ticks(0.0, high):
        parts.append(f'<path d="M{LEFT:.0f} {y(value):.2f}H{RIGHT:.0f}" style="stroke:{_LINE};stroke-width:1"/>')
        parts.append(text([words], LEFT - 6, y(value) + 4, size=12.5, anchor="end"))
    for value, words in percent_ticks(0.0, 1.0):
        parts.append(text([words], x(value), BOTTOM + 16, size=12.5, anchor="middle"))
    parts.append(text([below], (LEFT + RIGHT) / 2, BOTTOM + 34, size=12.5, anchor="middle"))
    parts.append(text([left], LEFT + 6, TOP + 8, size=12.5))
    return parts

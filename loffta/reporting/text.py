"""How reports write numbers and foreign text.

Keys, classes and paths come from users' data: every one of them passes `escape` on its way to HTML or SVG, and
`printable` on its way to a terminal.
"""

from __future__ import annotations

import html

from loffta.machine import terminal
from loffta.words import printable

_NBSP = "\N{NO-BREAK SPACE}"
NONE = "\N{EN DASH}"  # stands where there is no value


def escape(text: object) -> str:
    """`text` for HTML and XML, in an element or in a quoted attribute."""
    return html.escape(printable(text), quote=True)


def wrap(text: object, width: int) -> list[str]:
    """Lines of at most `width` columns, one at least; wide characters take two, and nothing is cut."""
    return terminal.wrap(str(text), width, hang=0)


def percent(fraction: float | int, digits: int = 1) -> str:
    """0.9749 -> '97.5', without the sign: shares; metrics go through `tasks.figures`."""
    return f"{100 * fraction:.{digits}f}"


def human_bytes(n_bytes: int | None) -> str:
    """1234567 -> '1.2 MB'; powers of 1,000, a no-break space before the unit."""
    if n_bytes is None:
        return NONE
    size, units = float(n_bytes), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if size < 999.95 or unit == units[-1]:
            return f"{size:.0f}{_NBSP}B" if unit == "B" else f"{size:.1f}{_NBSP}{unit}"
        size /= 1000
    raise AssertionError("the last unit takes every size")


def human_seconds(seconds: float | int | None) -> str:
    """6.76 -> '6.8 s', 3725 -> '62 min 5 s'."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f}{_NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}{_NBSP}min{_NBSP}{rest}{_NBSP}s"


def count(n: int, noun: str, plural: str = "") -> str:
    """(1, 'seed') -> '1 seed', (1200, 'image') -> '1,200 images'."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def human_macs(n_macs: int) -> str:
    """17565000000 -> '17.6 GMACs'; multiply-accumulates."""
    size, units = float(n_macs), ("MACs", "kMACs", "MMACs", "GMACs", "TMACs")
    for unit in units:
        if size < 999.95 or unit == units[-1]:
            return f"{size:.0f}{_NBSP}MACs" if unit == "MACs" else f"{size:.1f}{_NBSP}{unit}"
        size /= 1000
    raise AssertionError("the last unit takes every size")

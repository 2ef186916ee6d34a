"""How reports write numbers and foreign text.

Keys, classes and paths come from users' data: every one of them passes `escape` on its way to HTML or SVG, and
`printable` on its way to a terminal.
"""

from __future__ import annotations

import html

from loffta.machine import terminal
from loffta.words import human_size, plural, printable

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
    return NONE if n_bytes is None else human_size(n_bytes, gap=_NBSP)


def human_seconds(seconds: float | int | None) -> str:
    """6.76 -> '6.8 s', 3725 -> '62 min 5 s'."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f}{_NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}{_NBSP}min{_NBSP}{rest}{_NBSP}s"


def count(n: int, noun: str, nouns: str = "") -> str:
    """(1, 'seed') -> '1 seed', (1200, 'image') -> '1,200 images'."""
    return f"{n:,} {plural(n, noun, nouns)}"


def human_macs(n_macs: int) -> str:
    """17565000000 -> '17.6 GMACs'; multiply-accumulates."""
    return human_size(n_macs, "MACs", _NBSP)

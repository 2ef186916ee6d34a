"""What becomes of words that strangers chose (names of files, classes, splits, runs) before they are shown or used.

`printable` for a terminal, `file_name` for a path, `lookalike` to tell whether two names would be taken for one,
`brief` for a value in a message.
"""

from __future__ import annotations

import hashlib
import re
import reprlib
import unicodedata
from collections.abc import Sequence

_LONGEST = 100  # characters of a file name; 255 bytes is what file systems take, and suffixes follow
_UNSAFE = re.compile(r"[^A-Za-z0-9._+@=-]+")
_SHOWN = 5  # of a list in a message
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxlong, _BRIEF.maxother = 3, 150, 150, 200
_BRIEF.maxdict = _BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxset = _BRIEF.maxfrozenset = 12


def printable(text: object, keep: str = "") -> str:
    """`text` with every control, bidirectional and lone surrogate character, but those of `keep`, shown as U+FFFD.

    Names of files come from strangers: an escape sequence in one must not reach a terminal.
    """
    kept = "\N{NO-BREAK SPACE}" + keep
    return "".join(c if c.isprintable() or c in kept else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def file_name(word: str) -> str:
    """One plain path component for `word`: never a separator, a dot file, a device or longer than a file system takes.

    A harmless word stays as it is; any other gets a digest of what it was, so that two words never share a file.
    """
    safe = _UNSAFE.sub("-", word).lstrip(".-")[:_LONGEST]
    if safe and safe == word:
        return safe
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{safe}~{digest}"


def lookalike(name: str) -> str:
    """What two names share that a person would take for one: their form, case, spaces and invisible characters."""
    text = unicodedata.normalize("NFKC", name)
    seen = (c for c in text if unicodedata.category(c) not in ("Cf", "Cc"))  # joiners, direction marks, controls
    return " ".join("".join(c if not c.isspace() else " " for c in seen).casefold().split())


def brief(value: object) -> str:
    """`value` as Python writes it, cut where it would fill a screen, however deep or large it is."""
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a {type(value).__name__} too large to show"
    return printable(text if len(text) <= _BRIEF.maxother else text[: _BRIEF.maxother - 3] + "...")


def first_of(items: Sequence[str], separator: str = "; ") -> str:
    """The first five, and how many more."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more


def plural(n: int, one: str, many: str = "") -> str:
    """The word alone: (1, 'tap') -> 'tap', (0, 'tap') -> 'taps', (2, 'class', 'classes') -> 'classes'."""
    return one if n == 1 else many or f"{one}s"


def human_time(seconds: float | int) -> str:
    """59 -> '59 s', 3725 -> '1 h 2 min': the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def human_size(amount: float | int, unit: str = "B", gap: str = " ") -> str:
    """1234567 -> '1.2 MB'; powers of 1,000, whole below the first."""
    size = float(amount)
    for power in ("", "k", "M", "G"):
        if size < 999.95:
            return f"{size:.{1 if power else 0}f}{gap}{power}{unit}"
        size /= 1000
    return f"{size:.1f}{gap}T{unit}"

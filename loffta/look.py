"""How the values of an image become 8 bits of colour: what is behind transparency, and what is black and white.

In: what a user wrote.   Out: a Look, in one spelling, as recipes hold it. Caches, recipes and runs without one are of
loffta before there was a choice: they mean `OLD`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

WHITE, BLACK = "#ffffff", "#000000"
AUTO = "auto"  # what the file says of its values; see `images.rgb`
CLIP = "clip"  # as loffta had it: whole numbers 0..65535, floats 0..255, whatever the file holds
_NAMED = {"white": WHITE, "black": BLACK, "grey": "#808080", "gray": "#808080"}
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
_LIMITS = re.compile(rf"({_NUMBER})\.\.({_NUMBER})", re.IGNORECASE)


class Look(NamedTuple):
    """One background and one range, in one spelling each."""

    background: str = WHITE  # #rrggbb
    range: str = AUTO  # or CLIP, or LOW..HIGH: of images with more than 8 bits

    @property
    def colour(self) -> tuple[int, int, int]:
        """Red, green, blue."""
        red, green, blue = bytes.fromhex(self.background[1:])
        return red, green, blue

    @property
    def limits(self) -> tuple[float, float] | None:
        """What becomes black and what white, where it was said."""
        match = _LIMITS.fullmatch(self.range)
        return (float(match[1]), float(match[2])) if match else None


OLD = Look(BLACK, CLIP)


def parse_background(text: str) -> str:
    """`white`, `black`, `grey` or `#rrggbb` as `#rrggbb`.

    Raises:
        ValueError: none of these.
    """
    found = _NAMED.get(text.lower(), text.lower())
    if not re.fullmatch("#[0-9a-f]{6}", found):
        raise ValueError("it must be white, black, grey or #rrggbb")
    return found


def parse_range(text: str) -> str:
    """`auto`, `clip` or `LOW..HIGH`, the numbers in Python's shortest spelling.

    Raises:
        ValueError: none of these, or LOW is not below HIGH.
    """
    if text in (AUTO, CLIP):
        return text
    match = _LIMITS.fullmatch(text)
    low, high = (float(match[1]), float(match[2])) if match else (math.nan, math.nan)
    if not (low < high and math.isfinite(high - low)):
        raise ValueError("it must be auto, clip, or two numbers, the first below the second, for example 0..4095")
    return f"{_short(low)}..{_short(high)}"


def look_of(fields: Mapping[str, Any]) -> Look:
    """The look that a recipe, request or cache.json says; what is absent is as of old.

    Raises:
        ValueError: it says something else.
    """
    background, value_range = (str(fields.get(name, getattr(OLD, name))) for name in Look._fields)
    return Look(parse_background(background), parse_range(value_range))


def look_fields(look: Look) -> dict[str, str]:
    """What a recipe or request says of a look: nothing where it is as of old, so that old hashes stay."""
    return {name: value for name, value in look._asdict().items() if value != getattr(OLD, name)}


def _short(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)

"""Colours that stand for classes in masks that people painted: `--palette FILE`.

In:  a text, CSV or JSON file of R,G,B,class.   Out: a Palette, by which `targets.decode_target` reads masks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from loffta.errors import UsageError, refuse
from loffta.files.documents import from_json, read_bytes
from loffta.store.names import text_fault
from loffta.targets import IGNORE_16
from loffta.words import brief

RGB: TypeAlias = tuple[int, int, int]
_MAX_BYTES = 8 << 20  # 16,000 colours take half a megabyte
_MOST_COLOURS = 1 << 16
_SEPARATORS = re.compile(r"[,;\t ]\s*")
_VOID = "ignore"


class Palette(NamedTuple):
    """Which class a colour stands for, and what the classes are called."""

    colours: dict[RGB, int]  # IGNORE_16 for colours whose pixels count nowhere
    classes: tuple[str, ...]


def read_palette(path: Path) -> Palette:
    """A line or list a colour: `0,0,128,river`, red, green, blue and a class, which is a name, a number or `ignore`.

    Names are numbered in the order in which they first appear; numbers are those of the classes, which are then called
    0, 1, ... up to the largest. Several colours may stand for one class.

    Raises:
        UsageError: the file cannot be read, or entries cannot be used: all of them at once.
    """
    where = f"--palette {path}"
    remedy = "write a line a colour: red,green,blue,class, for example 0,0,128,river or 0,0,0,ignore"
    try:
        text = read_bytes(path, _MAX_BYTES).decode("utf-8-sig")
        entries = from_json(text) if path.suffix.lower() == ".json" else _lines(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"the palette cannot be read ({error})", where=where, remedy=remedy) from error
    if not isinstance(entries, list) or not 0 < len(entries) <= _MOST_COLOURS:
        raise UsageError(f"the palette is no list of 1 to {_MOST_COLOURS} colours", where=where, remedy=remedy)
    faults: list[str] = []
    named: dict[RGB, str] = {}
    for i, entry in enumerate(entries, start=1):
        colour, name, fault = _entry(entry)
        if not fault and named.get(colour, name) != name:
            fault = f"the colour {','.join(map(str, colour))} stands for {named[colour]!r} already"
        if fault:
            faults.append(f"colour {i}: {fault}")
        named[colour] = name
    refuse(faults, where=where, remedy=remedy, of="the palette")
    return _numbered(named, where, remedy)


def _lines(text: str) -> list[list[Any]]:
    """The cells of every line that is not blank or a comment; a header is passed over."""
    rows = [_SEPARATORS.split(line.strip(), maxsplit=3) for line in text.splitlines()]
    rows = [row for row in rows if row != [""] and not row[0].startswith("#")]
    return rows[1:] if rows and not rows[0][0].isdecimal() else rows


def _entry(entry: Any) -> tuple[RGB, str, str]:
    """(colour, class, what is wrong with them)."""
    if not isinstance(entry, list) or len(entry) != 4:
        return (0, 0, 0), "", f"{brief(entry)} is not red, green, blue and a class"
    *parts, name = (str(cell).strip() for cell in entry)
    if not all(re.fullmatch(r"\d{1,3}", part, re.ASCII) and int(part) < 256 for part in parts):
        return (0, 0, 0), "", f"{brief(entry[:3])} are not three whole numbers from 0 to 255"
    fault = "the class is empty" if not name else text_fault(name) or ""
    red, green, blue = map(int, parts)
    return (red, green, blue), name, fault


def _numbered(named: dict[RGB, str], where: str, remedy: str) -> Palette:
    names = [name for name in dict.fromkeys(named.values()) if name != _VOID]
    if names and all(re.fullmatch(r"\d{1,5}", name, re.ASCII) for name in names):
        last = max(map(int, names))
        if last >= IGNORE_16:
            raise UsageError(f"the palette has class {last}, over {IGNORE_16 - 1}", where=where, remedy=remedy)
        numbers = {name: int(name) for name in names}
        classes = tuple(str(i) for i in range(last + 1))
    else:
        numbers = {name: i for i, name in enumerate(names)}
        classes = tuple(names)
    if not classes:
        raise UsageError("the palette names no class", where=where, remedy=remedy)
    numbers[_VOID] = IGNORE_16
    return Palette({colour: numbers[name] for colour, name in named.items()}, classes)

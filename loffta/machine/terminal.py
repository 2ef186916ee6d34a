"""Lines no wider than the terminal: paragraphs, tables and commands to copy. Nothing is cut, what has no room wraps.

In: texts and cells.   Out: lines for stdout. Called by the commands, which print nothing else. Widths are columns of
the terminal: East Asian wide characters take two.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size

from loffta.words import printable

NO_TERMINAL = 120  # columns in a file or a pipe: as wide as loffta's own sources
HANG = 4  # further lines of a paragraph begin so much further to the right
GAP = 2  # between columns
_NARROWEST = 16  # a terminal below that is written to as if it had so many columns
_AFTER = re.compile(r"[/\\,;:=&+._-]")  # where a long name is broken, if it can be


def columns() -> int:
    """Columns of COLUMNS, else of the terminal behind stdout, else NO_TERMINAL."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked):
        return max(_NARROWEST, int(asked))
    try:
        return max(_NARROWEST, os.get_terminal_size(1).columns or NO_TERMINAL)
    except OSError:
        return NO_TERMINAL


def wrap(text: str, width: int | None = None, hang: int = HANG) -> list[str]:
    """One line as several where it is too long, broken at spaces; longer words after a sign, if they can.

    Args:
        width: None: that of the terminal.
        hang: columns by which the second and further lines are indented more than the first.
    """
    width, text = width or columns(), printable(text)
    if cell_len(text) <= width:
        return [text]
    start = len(text) - len(text.lstrip())
    indent = " " * min(start + hang, width // 2)
    lines = [""]
    for gap, word in re.findall(r"(\s*)(\S+)", text):
        if lines != [""] and cell_len(lines[-1] + gap + word) > width:
            lines.append("")
        before = (indent if len(lines) > 1 else gap[: width // 2]) if not lines[-1] else gap
        first, *further = _pieces(word, width - cell_len(lines[-1] + before), width - len(indent))
        lines[-1] += before + first
        lines += [indent + piece for piece in further]
    return lines


def _pieces(word: str, room: int, room_below: int) -> Iterator[str]:
    """A word in pieces for a first line and those below it."""
    while cell_len(word) > room:
        n = _prefix(word, room)
        signs = [match.end() for match in _AFTER.finditer(word, 0, n)]
        n = signs[-1] if signs and signs[-1] > n // 2 else n
        yield word[:n]
        word, room = word[n:], room_below
    yield word


def _prefix(word: str, room: int) -> int:
    """How many characters of a word take at most `room` columns; at least one."""
    n = 1
    while n < len(word) and cell_len(word[: n + 1]) <= room:
        n += 1
    return n


def command(words: Sequence[str]) -> list[str]:
    """A command to copy: quoted for a shell, which joins its lines at the backslashes again."""
    room = columns() - 2  # for " \"
    lines = [f"  {shlex.quote(words[0])}"]
    for word in words[1:]:
        quoted = shlex.quote(printable(word))
        if cell_len(f"{lines[-1]} {quoted}") <= room:
            lines[-1] += f" {quoted}"
            continue
        lines[-1] += " \\"
        first, *further = _quoted_pieces(printable(word), room - HANG, room)
        lines.append(" " * HANG + first)
        for piece in further:  # at the margin: a space would end the word
            lines[-1] += "\\"
            lines.append(piece)
    return lines


def _quoted_pieces(word: str, room: int, room_below: int) -> Iterator[str]:
    """Pieces that are one word for a shell where nothing stands between them."""
    while cell_len(shlex.quote(word)) > room:
        n = 1
        while cell_len(shlex.quote(word[: n + 1])) <= room:
            n += 1
        yield shlex.quote(word[:n])
        word, room = word[n:], room_below
    yield shlex.quote(word)


class Table:
    """Columns as wide as what stands in them. Those that the width has no room for, from the right, go below each row.

    The first column holds names: it gets half of the width at most, and wraps.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[str]],
        heads: Sequence[str] = (),
        *,
        right: Collection[int] = (),
        indent: int = 0,
    ) -> None:
        """Lays the columns out.

        Args:
            rows: all rows; `lines` writes one of them.
            heads: empty: none are written.
            right: columns of figures.
            indent: of all lines.
        """
        self._indent = indent
        room = columns() - indent
        rows = [[printable(cell) for cell in row] for row in rows]
        self._heads, self._right = list(heads), right
        natural = [max(map(cell_len, column)) for column in zip(*rows, *([heads] if heads else []), strict=True)]
        if natural and sum(natural) + GAP * (len(natural) - 1) > room:
            natural[0] = min(natural[0], room // 2)
        ends = [sum(natural[: i + 1]) + GAP * i for i in range(len(natural))]
        self._widths = natural[: max(1, sum(end <= room for end in ends))]

    def head(self) -> list[str]:
        """The line of heads, and a rule below it."""
        shown = self._heads[: len(self._widths)]
        return [self._aligned(shown), self._aligned(["-" * width for width in self._widths])]

    def lines(self, row: Sequence[str], *notes: str) -> list[str]:
        """One row, and below it the cells that found no room, and notes."""
        cells = [printable(cell) for cell in row]
        n = len(self._widths)
        names = list(_pieces(cells[0], self._widths[0], self._widths[0]))
        figures = [cells[1:n], *[[""] * (n - 1)] * (len(names) - 1)]
        lines = [self._aligned([name, *rest]) for name, rest in zip_longest(names, figures)]
        heads = self._heads or [""] * len(cells)
        below = ", ".join(f"{head} {cell}".strip() for head, cell in zip(heads[n:], cells[n:], strict=True) if cell)
        for text in filter(None, (below, *notes)):
            lines += wrap(" " * (self._indent + HANG) + text, hang=0)
        return lines

    def _aligned(self, cells: Sequence[str]) -> str:
        return (" " * self._indent + aligned(cells, self._widths, self._right)).rstrip()


def aligned(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> str:
    """Cells side by side, those of the columns `right` at the end of their width."""
    padded = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        padded.append(" " * (width - cell_len(cell)) + cell if i in right else set_cell_size(cell, width))
    return (" " * GAP).join(padded)

"""Pieces of HTML that several sections of the page share."""

from __future__ import annotations

from collections.abc import Sequence

from loffta import __version__
from loffta.reporting.style import CSS
from loffta.reporting.text import escape

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a second lock: nothing is fetched or run

Column = tuple[str, bool]  # its head; True: figures, aligned right


def document(title: str, body: Sequence[str]) -> str:
    """One self-contained page of sections, of which empty ones are left out; `body` is HTML already."""
    footer = f"<footer>Made by loffta {escape(__version__)}. This file is complete in itself.</footer>"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in [*body, footer] if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def table(columns: Sequence[Column], lines: Sequence[Sequence[str]], *, best: bool = False) -> str:
    """A table; `lines` are HTML already. On a phone each line becomes a card, its cells named by `data-label`."""
    heads = "".join(f'<th scope="col"{_kind(figures)}>{escape(name)}</th>' for name, figures in columns)
    rows = []
    for i, cells in enumerate(lines):
        row = "".join(
            f'<td data-label="{escape(name)}"{_kind(figures)}><div>{cell}</div></td>'
            for (name, figures), cell in zip(columns, cells, strict=True)
        )
        rows.append(f'<tr class="best">{row}</tr>' if best and i == 0 else f"<tr>{row}</tr>")
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _kind(figures: bool) -> str:
    return ' class="n"' if figures else ""


def figure(caption: str, svg: str, *, wide: bool = False) -> str:
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><strong>{escape(caption)}</strong>{svg}</figure>"


def text_lines(text: str) -> str:
    """Text of several lines: `escape` would take a newline for a control character."""
    return "\n".join(escape(line) for line in text.splitlines())

"""An audit as one self-contained HTML page, with the cache's thumbnails.

In: an Audit and the cache.   Out: the file. Called by `loffta audit --out`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from loffta.auditing.found import Audit, CopyGroup
from loffta.errors import UsageError
from loffta.files.durable import replace_file
from loffta.reporting.audit_text import summary_rows
from loffta.reporting.gallery import png_uri
from loffta.reporting.markup import document, table
from loffta.reporting.text import count, escape, percent
from loffta.store.cache import Cache
from loffta.store.reader import ArrayReader

_IN_A_GROUP = 6  # pictures of a group of copies; the others are counted
_OF_A_CLASS = 6  # typical images
_CLASSES = 50  # of more, the first are shown


def check_page(out: Path) -> None:
    """Raises UsageError where no page can be written there; before hours of work."""
    if out.is_dir():
        raise UsageError("a page is one file, and this is a folder", where=out, remedy=f"name {out / 'audit.html'}")


def write_audit(audit: Audit, cache: Cache, out: Path, n_shown: int) -> None:
    """Writes the page; the worst `n_shown` of every kind are pictures."""
    replace_file(out, render(audit, cache, n_shown).encode())


def render(audit: Audit, cache: Cache, n_shown: int) -> str:
    """The page as text; it stands without pictures where the cache has no thumbnails."""
    copies, errors, outliers = audit.copies[:n_shown], audit.label_errors[:n_shown], audit.outliers[:n_shown]
    typical = {label: rows[:_OF_A_CLASS] for label, rows in [*audit.typical.items()][:_CLASSES]}
    shown = [row for group in copies for row in group.rows[:_IN_A_GROUP]]
    shown += [error.row for error in errors] + [outlier.row for outlier in outliers]
    shown += [row for rows in typical.values() for row in rows]
    tiles = _Tiles(audit, _read_pictures(cache, shown))
    names = audit.table.classes
    body = [
        f'<header><h1>What is wrong with these images?</h1><p class="sub">{escape(audit.table.source)} · '
        f"{count(len(audit.rows), 'image')} · {escape(', '.join(audit.features))}</p></header>",
        table(
            [("Found", False), ("Number", True), ("Of what", False)],
            [[escape(cell) for cell in row] for row in summary_rows(audit)],
        ),
        *[f'<p class="note">Label errors were not looked for: {escape(why)}.</p>' for why in audit.not_done.values()],
        _section("Copies", _of(len(copies), len(audit.copies)), map(tiles.group, copies)),
        _section(
            "Labels that are probably wrong",
            f"{_of(len(errors), len(audit.label_errors))} The label first, then what the image rather is; percentages "
            "are chances by a judge that has not seen the image.",
            [
                _list(
                    tiles.one(
                        error.row,
                        names[error.suggested],
                        percent(error.chance, 0),
                        f"label {audit.table.class_name(error.row)}: {percent(error.chance_given, 0)} %",
                    )
                    for error in errors
                )
            ]
            if errors
            else [],
        ),
        _section(
            "Outliers",
            f"{_of(len(outliers), len(audit.outliers))} Numbers are distances to their neighbours, "
            f"{audit.median_distance:.3g} for half of all images.",
            [_list(tiles.one(found.row, f"{found.distance:.3g}") for found in outliers)] if outliers else [],
        ),
        _section(
            "Typical images",
            "Of every class those nearest to its mean"
            + (f"; the first {_CLASSES} classes." if len(audit.typical) > _CLASSES else "."),
            [f"<h3>{escape(names[label])}</h3>{_list(map(tiles.plain, rows))}" for label, rows in typical.items()],
        ),
    ]
    return document("Audit - loffta", body)


def _of(n_shown: int, n_all: int) -> str:
    return f"The worst {n_shown} of {n_all}." if n_shown < n_all else f"All {n_all}."


def _section(title: str, lead: str, parts: Iterable[str]) -> str:
    body = "".join(parts)
    return f"<h2>{title}</h2><p>{lead}</p>{body}" if body else ""


def _list(tiles: Iterable[str]) -> str:
    return f'<ul class="tiles">{"".join(tiles)}</ul>'


def _read_pictures(cache: Cache, rows: list[int]) -> dict[int, str]:
    """PNGs as data URIs by row; those that the cache has."""
    thumbs = cache.thumbs()
    known = {row for row in rows if row < len(thumbs.ledger.ready) and thumbs.ledger.ready[row]}
    there = np.array(sorted(known), dtype=np.int64)
    if not len(there):
        return {}
    pixels = ArrayReader(thumbs.paths).read(there)
    return {row: png_uri(image) for row, image in zip(there.tolist(), pixels, strict=True)}


class _Tiles:
    """Pictures with what is said of them."""

    def __init__(self, audit: Audit, pictures: dict[int, str]) -> None:
        self._audit, self._pictures = audit, pictures

    def one(self, row: int, head: str, share: str = "", below: str = "", *, wrong: bool = True) -> str:
        """A picture, a word in bold, and its key."""
        key = escape(self._audit.table.keys[row])
        picture = f'<img src="{self._pictures[row]}" alt="{key}">' if row in self._pictures else ""
        told = f" · {share}&nbsp;%" if share else ""
        note = f"{escape(below)}<br>" if below else ""
        state = "wrong" if wrong else "right"
        return f'<li class="tile {state}">{picture}<b>{escape(head)}</b>{told}<small>{note}{key}</small></li>'

    def plain(self, row: int) -> str:
        """A picture and its key."""
        return self.one(row, self._audit.table.splits[row], wrong=False)

    def group(self, group: CopyGroup) -> str:
        """Copies side by side, each with its split and label."""
        names = [self._audit.table.class_name(row) or "" for row in group.rows]
        tiles = [
            self.one(row, self._audit.table.splits[row], below=name, wrong=group.leaks or group.labels_differ)
            for row, name in zip(group.rows[:_IN_A_GROUP], names, strict=False)
        ]
        facts = [f"similarity {group.similarity:.4f}", *(["in several splits"] if group.leaks else [])]
        facts += ["labels differ"] if group.labels_differ else []
        facts += [count(len(group.rows), "image")] if len(group.rows) > _IN_A_GROUP else []
        return f"<h3>{escape(', '.join(facts))}</h3>{_list(tiles)}"

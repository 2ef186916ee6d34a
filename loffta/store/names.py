"""Names of classes and splits as people write them: one spelling, one order, and which of them nobody tells apart.

In: names from folders, tables and shards.   Out: the order in which classes are numbered, and pairs to refuse. Called
by the readers of image sets, by its table when a set grows, and by `targets`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from loffta.words import lookalike

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_DIGITS = re.compile(r"([0-9]+)")
_SYNONYMS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLITS = {synonym: split for split, synonyms in _SYNONYMS.items() for synonym in synonyms}
# Control characters and line ends would forge lines of logs and reports; lone surrogates are bytes that are not UTF-8,
# which parquet cannot hold.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def spelled(name: str) -> str:
    """The one spelling of a name: macOS writes an accent as a letter of its own (NFD), all others in one with it."""
    return unicodedata.normalize("NFC", name)


def split_name(name: str) -> str | None:
    """train, val or test for one of its names in any case, form and spacing, else None."""
    return _SPLITS.get(lookalike(name))


def text_fault(text: str) -> str | None:
    """Why a class or split cannot have this name."""
    return "it holds a control character or is not UTF-8" if _UNFIT.search(text) else None


def in_order(names: Iterable[str]) -> list[str]:
    """Names once each in the order of every source that has none of its own: numbers by value, else 1, 2, 10, a2, a10.

    Without digits it is Python's `sorted`, which torchvision's ImageFolder and scikit-learn number classes by.
    """
    found = set(names)
    numbers = all(_NUMBER.fullmatch(name) for name in found)
    return sorted(found, key=lambda name: (float(name) if numbers else 0.0, _natural(name), name))


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs that a person takes for one name (form, case, spaces, invisible characters) or that are one number."""
    first: dict[str, str] = {}
    pairs = []
    for name in in_order(names):
        seen = first.setdefault(_looks(name), name)
        if seen != name:
            pairs.append((seen, name))
    return pairs


def one_folder_down(source: str, keys: Sequence[str], class_name: str) -> str | None:
    """The likely cause of a set of one class: its folders lie deeper than they were looked for. None where they do not.

    Args:
        keys: of all images; paths whose folders were read as splits and classes.
    """
    kind, _, root = source.partition(":")
    folders = [list(parts) for parts in {tuple(key.split("/")[:-1]) for key in keys}]
    at = next((i for i in (0, 1) if all(len(f) > i and f[i] == class_name for f in folders)), None)
    if kind != "folder" or at is None:
        return None
    depth = at + 1
    while len(inside := {folder[depth] if len(folder) > depth else "" for folder in folders}) == 1 and "" not in inside:
        depth += 1
    found = in_order(inside - {""})
    if len(found) < 2:
        return None
    shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    where = f"give folder:{'/'.join([root, *folders[0][:depth]])}" if at == 0 else "move them up, beside it"
    return f"the folders {shown} lie below '{class_name}' and were not read as splits or classes: {where}"


def _looks(name: str) -> str:
    text = lookalike(name)
    return f"number {float(text)!r}" if _NUMBER.fullmatch(text) else text


def _natural(name: str) -> list[Any]:
    """Text and numbers in turn, beginning with text; numbers by their digits' count first, however long they are."""
    parts = _DIGITS.split(name)
    return [(len(n := part.lstrip("0")), n) if i % 2 else part for i, part in enumerate(parts)]

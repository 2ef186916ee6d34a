"""Long columns of strings without a Python object a row.

A hundred million names of images are 3 GB as bytes, and 9 GB as Python strings.
In: columns of parquet, or lists.   Out: sequences of str that read as lists do. Called by `table`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import index
from typing import Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PIECE = 1 << 16  # values that are Python objects at a time


class Column(Sequence[str]):
    """What both columns have: equal to any sequence of the same strings, and not hashable, as lists are."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        if len(self) != len(other):
            return False
        return all(ours == theirs for ours, theirs in zip(pieces_of(self), pieces_of(other), strict=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} strings)"

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(pieces_of(self))

    def piece(self, rows: slice) -> list[str]:
        """Some of them as a list."""
        raise NotImplementedError


class Texts(Column):
    """Strings as Arrow holds them, one behind the other; without nulls."""

    def __init__(self, column: pa.ChunkedArray[Any]) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, row: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Texts: ...
    def __getitem__(self, row: SupportsIndex | slice) -> str | Texts:
        return Texts(self.column[row]) if isinstance(row, slice) else str(self.column[index(row)].as_py())

    def piece(self, rows: slice) -> list[str]:
        """Some of them as a list."""
        found: Any = self.column[rows].to_pylist()
        return list(found)


class Names(Column):
    """Few different strings: the splits of images. In order of appearance, and per row which one it is."""

    def __init__(self, known: tuple[str, ...], codes: NDArray[np.int32]) -> None:
        self.known, self.codes = known, codes

    @classmethod
    def of(cls, values: Sequence[str]) -> Names:
        """The same strings."""
        if isinstance(values, Names):
            return values
        places: dict[str, int] = {}
        codes = np.fromiter((places.setdefault(value, len(places)) for value in values), np.int32, len(values))
        return cls(tuple(places), codes)

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray[Any]) -> Names:
        """Of a column that was read as a dictionary, without nulls."""
        places: dict[str, int] = {}
        parts = [np.empty(0, np.int32)]
        chunks: Any = column.chunks
        for chunk in chunks:
            words = [places.setdefault(word, len(places)) for word in chunk.dictionary.to_pylist()]
            parts.append(np.array(words, np.int32)[np.from_dlpack(chunk.indices)])
        return cls._in_order(tuple(places), np.concatenate(parts))

    @classmethod
    def _in_order(cls, known: tuple[str, ...], codes: NDArray[np.int32]) -> Names:
        """With those that appear alone, in order of appearance."""
        first = np.full(len(known), len(codes))
        first[codes[::-1]] = np.arange(len(codes))[::-1]  # of several places numpy keeps the last: where each begins
        order = [i for i in np.argsort(first, kind="stable").tolist() if first[i] < len(codes)]
        place = np.zeros(len(known), np.int32)
        place[order] = np.arange(len(order))
        return cls(tuple(known[i] for i in order), place[codes])

    def take(self, rows: NDArray[np.int64]) -> Names:
        """Those of some rows."""
        return self._in_order(self.known, self.codes[rows])

    def rows_of(self, wanted: set[str]) -> NDArray[np.int64]:
        """Rows that hold one of these strings, rising."""
        chosen = np.array([*(name in wanted for name in self.known), False])  # never empty
        return np.flatnonzero(chosen[self.codes])

    def counts(self) -> dict[str, int]:
        """How often each is there, in order of appearance; each once at least."""
        counts = np.bincount(self.codes, minlength=len(self.known)).tolist()
        return {name: n for name, n in zip(self.known, counts, strict=True) if n}

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, row: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Names: ...
    def __getitem__(self, row: SupportsIndex | slice) -> str | Names:
        if isinstance(row, slice):
            return self._in_order(self.known, self.codes[row])
        return str(self.known[self.codes[index(row)]])

    def piece(self, rows: slice) -> list[str]:
        """Some of them as a list."""
        return [self.known[code] for code in self.codes[rows].tolist()]


def to_arrow(values: Sequence[Any] | NDArray[Any], kind: pa.DataType) -> pa.Array[Any] | pa.ChunkedArray[Any]:
    """A column for parquet; Names by pieces, Texts as they are."""
    if isinstance(values, Texts):
        return values.column
    if isinstance(values, Names):
        return pa.chunked_array([pa.array(piece, pa.string()) for piece in pieces_of(values)], pa.string())
    found: pa.Array[Any] = pa.array(values, type=kind)
    return found


def pieces_of(values: Sequence[Any] | NDArray[Any]) -> Iterator[list[Any]]:
    """The same values as Python objects, PIECE at a time."""
    for first in range(0, len(values), PIECE):
        rows = slice(first, first + PIECE)
        if isinstance(values, Column):
            yield values.piece(rows)
        else:
            yield values[rows].tolist() if isinstance(values, np.ndarray) else list(values[rows])

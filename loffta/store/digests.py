"""Digests of an image set's columns, of which only a piece is in memory at a time.

`digest_of` is over JSON, as format 1 has it: 0.2 to 0.6 us a row and column on a busy machine. `columns_digest` says
the same of the bytes themselves, 0.15 us a row in all. Called by `table` and `labels`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from loffta.store.texts import Column, Names, pieces_of

_FEW = 64


def digest_of(value: Any) -> str:
    """BLAKE2b-128, hex, over `json.dumps(value, sort_keys=True)`.

    Args:
        value: as json.dumps takes it; columns may also be arrays, Texts and Names.
    """
    found = hashlib.blake2b(digest_size=16)
    for text in _json(value):
        found.update(text.encode())
    return found.hexdigest()


def columns_digest(
    said: Sequence[Any],
    keys: pa.Array[Any] | pa.ChunkedArray[Any],
    numbers: Sequence[NDArray[np.int64]],
    names: Names,
    optional: Mapping[str, Any],
) -> str:
    """BLAKE2b-128, hex, over the bytes of a table's columns.

    Args:
        said: in the metadata, as JSON.
        keys: strings without nulls: the length of each as int32, then all of their bytes.
        numbers: columns of int64, little-endian.
        names: as JSON in order of appearance, then int32 which one it is.
        optional: columns as one JSON object, where there are any.
    """
    found = hashlib.blake2b(digest_size=16)
    found.update(digest_of([said, list(names.known)]).encode())
    chunks = keys.chunks if isinstance(keys, pa.ChunkedArray) else [keys]
    parts = [_offsets_and_bytes(chunk) for chunk in chunks if len(chunk)]
    for offsets, _ in parts:
        found.update(np.diff(offsets).astype("<i4").data)
    for offsets, letters in parts:
        found.update(letters[offsets[0] : offsets[-1]])
    for column in numbers:
        found.update(np.ascontiguousarray(column, "<i8").data)
    found.update(names.codes.astype("<i4").data)
    if optional:
        found.update(digest_of(optional).encode())
    return found.hexdigest()


def _offsets_and_bytes(chunk: pa.Array[Any]) -> tuple[NDArray[np.int32], memoryview]:
    _, offsets, letters = chunk.buffers()
    assert offsets is not None, "a column of strings has ends"
    found = np.frombuffer(memoryview(offsets), np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return found, memoryview(letters if letters is not None else b"")


def _json(value: Any) -> Iterator[str]:
    """`json.dumps(value, sort_keys=True)` in pieces. A list of at most _FEW may hold columns, a longer one is one."""
    if isinstance(value, dict):
        yield "{"
        for i, key in enumerate(sorted(value)):
            yield f"{', ' if i else ''}{json.dumps(key)}: "
            yield from _json(value[key])
        yield "}"
    elif isinstance(value, (list, tuple)) and len(value) <= _FEW:
        yield "["
        for i, part in enumerate(value):
            yield ", " if i else ""
            yield from _json(part)
        yield "]"
    elif isinstance(value, (list, tuple, np.ndarray, Column)):
        yield "["
        for i, piece in enumerate(pieces_of(value)):
            yield (", " if i else "") + json.dumps(piece, sort_keys=True)[1:-1]
        yield "]"
    else:
        yield json.dumps(value, sort_keys=True)

"""Columns out of pyarrow and into it, without what its own converters bring along.

`to_numpy`, `pa.array` and `pa.table` import pandas wherever that is installed, for half a second, and pyarrow.compute
in any case: more than all else that a small command does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_numbers(column: pa.ChunkedArray[Any]) -> NDArray[Any]:
    """The values of a column of numbers without nulls, perhaps read-only."""
    values: Any = column.combine_chunks()
    return np.from_dlpack(values)


def to_column(values: Sequence[Any], kind: pa.DataType) -> pa.Array[Any]:
    """What `pa.array(values, kind)` gives for strings, bytes, numbers, truths and lists of these; None is null."""
    there = [value is not None for value in values]
    nulls = None if all(there) else pa.py_buffer(np.packbits(there, bitorder="little").data)
    if pa.types.is_list(kind):
        parts = [() if value is None else value for value in values]
        inside = to_column(list(chain.from_iterable(parts)), kind.field(0).type)
        return pa.Array.from_buffers(kind, len(values), [nulls, _ends(parts)], children=[inside])
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        words = [value.encode() if isinstance(value, str) else value or b"" for value in values]
        return pa.Array.from_buffers(kind, len(values), [nulls, _ends(words), pa.py_buffer(b"".join(words))])
    if pa.types.is_boolean(kind):
        bits = np.packbits(np.array(values, dtype=bool), bitorder="little")
        return pa.Array.from_buffers(kind, len(values), [nulls, pa.py_buffer(bits.data)])
    numbers = np.array([0 if value is None else value for value in values], dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [nulls, pa.py_buffer(numbers.data)])


def from_numbers(values: NDArray[Any]) -> pa.Array[Any]:
    """A column of numbers [n], or of lists of one length [n, C]."""
    kind: pa.DataType = pa.from_numpy_dtype(values.dtype)
    column = pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(np.ascontiguousarray(values).data)])
    return column if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(column, values.shape[1])


def _ends(parts: Sequence[Any]) -> pa.Buffer:
    """Where each part begins, and the last one ends."""
    return pa.py_buffer(np.cumsum([0, *map(len, parts)], dtype=np.int32).data)

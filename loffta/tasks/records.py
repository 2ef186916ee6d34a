"""Records of dense tasks as bytes, for a column of predictions-dense.parquet.

In: a record, a NamedTuple of arrays and numbers.   Out: a safetensors file of its fields, and the record again. Called
by `dense_measure`, and by reports, which draw images anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def pack(record: Any) -> bytes:
    """Every field with its dtype and shape; a number has none."""
    from safetensors.numpy import save  # dense tasks alone need it

    return save({name: np.array(value, order="C") for name, value in record._asdict().items()})


def unpack(kind: type[Any], data: bytes) -> Any:
    """The record again: every field is an array, which of a number has no axes.

    Args:
        kind: of record.
    Raises:
        ValueError: the bytes are no record of this kind.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(data)
    except (SafetensorError, LookupError, AttributeError) as error:  # the latter two of dtypes that NumPy lacks
        raise ValueError(f"not a record: {error}") from error
    if set(found) != set(kind._fields):
        raise ValueError(f"a record of {', '.join(kind._fields)} has {', '.join(sorted(found)) or 'nothing'}")
    return kind(**found)

"""Columns of numbers out of pyarrow, without what its own `to_numpy` brings along."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_numbers(column: pa.ChunkedArray[Any]) -> NDArray[Any]:
    """The values of a column of numbers without nulls, perhaps read-only.

    pyarrow's `to_numpy` imports pandas wherever that is installed: half a second and more before anything is read.
    """
    values: Any = column.combine_chunks()
    return np.from_dlpack(values)

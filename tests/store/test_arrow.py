"""Columns made from buffers against pyarrow's own converters."""

import numpy as np
import pyarrow as pa
import pytest

from loffta.store.arrow import from_numbers, to_column


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "", "ärger 图", "b"], pa.string()),
        (["a", None, "", None, "b", "c", "d", "e", None], pa.string()),
        ([1.5, None, -0.0, np.float32(0.1)], pa.float32()),
        ([3, 2**40, -1], pa.int64()),
        ([[0.5, 1.5], None, [], np.float32([2, 3])], pa.list_(pa.float32())),
        ([["a", "b"], [], None, ["c"]], pa.list_(pa.string())),
        ([[1], [2, 3]], pa.list_(pa.int64())),
        ([True, None, False] * 3, pa.bool_()),
        ([False] * 8 + [True], pa.bool_()),
        ([], pa.string()),
        ([], pa.list_(pa.float32())),
    ],
)
def test_columns_equal_pyarrows(values, kind):
    column = to_column(values, kind)
    column.validate(full=True)
    assert column.equals(pa.array(values, kind))
    assert column.null_count == sum(value is None for value in values)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
def test_numbers_equal_pyarrows(dtype):
    values = np.arange(12, dtype=dtype)
    assert from_numbers(values[::2]).equals(pa.array(values[::2]))
    assert from_numbers(values.reshape(4, 3)).equals(pa.FixedSizeListArray.from_arrays(pa.array(values), 3))

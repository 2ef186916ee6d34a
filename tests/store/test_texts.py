"""Columns that read as the lists they stand for."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loffta.store import texts
from loffta.store.texts import Names, Texts

KEYS = ["a.png", "", "Käse.png", "b/c.png", "x" * 40, '"', "a.png"]
SPLITS = ["val", "train", "train", "", "val", "train", "test"]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(texts, "PIECE", 3)


def column(values, size):
    return pa.chunked_array([values[i : i + size] for i in range(0, len(values), size)], pa.string())


def as_dictionary(path, values, size):
    pq.write_table(pa.table({"split": column(values, len(values))}), path, row_group_size=size)
    with pq.ParquetFile(path, read_dictionary=["split"]) as file:
        return file.read(use_threads=False)["split"]


@pytest.mark.parametrize("size", [2, 4, 7])
def test_both_read_as_lists(tmp_path, size):
    for found, values in (
        (Texts(column(KEYS, size)), KEYS),
        (Names.of(SPLITS), SPLITS),
        (Names.from_arrow(as_dictionary(tmp_path / "split", SPLITS, size)), SPLITS),
    ):
        assert list(found) == values
        assert len(found) == len(values)
        assert [found[i] for i in range(-7, 7)] == [values[i] for i in range(-7, 7)]
        assert found[np.int64(2)] == values[2]
        assert [list(found[a:b]) for a, b in ((0, 3), (2, 7), (5, 99), (4, 4))] == [
            values[a:b] for a, b in ((0, 3), (2, 7), (5, 99), (4, 4))
        ]
        assert found == values
        assert found[1:] != values[:-1]
        assert found != values[:-1]
        assert found != [*values[:-1], "other"]
        with pytest.raises(IndexError):
            found[7]


def test_names_are_in_order_of_appearance(tmp_path):
    """By hand, whatever the dictionaries of the row groups begin with; those that do not appear are left out."""
    for size in (1, 3, 7):
        found = Names.from_arrow(as_dictionary(tmp_path / "split", SPLITS, size))
        assert found.known == ("val", "train", "", "test")
        assert found.codes.tolist() == [0, 1, 1, 2, 0, 1, 3]
    assert found.counts() == {"val": 2, "train": 3, "": 1, "test": 1}
    assert found.rows_of({"test", "val", "unheard"}).tolist() == [0, 4, 6]
    assert found.rows_of(set()).tolist() == []
    some = found.take(np.array([1, 2, 4]))
    assert (some.known, some.codes.tolist()) == (("train", "val"), [0, 0, 1])
    assert found[3:4].known == ("",)
    assert Names.of([]).counts() == {}


def test_what_goes_to_parquet_is_the_same_column():
    for values in (KEYS, Texts(column(KEYS, 2)), Names.of(KEYS)):
        found = texts.to_arrow(values, pa.string())
        assert (found.type, found.to_pylist()) == (pa.string(), KEYS)

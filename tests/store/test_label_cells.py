"""Labels from cells of any type, against a plain reading of the rule."""

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loffta.errors import UsageError
from loffta.store import label_cells as labels_module
from loffta.store.label_cells import from_cells, from_lists, from_numbers, many_classes, numbers, one_class

names = st.sampled_from(["cat", "dog", "10", "9", "0.5", "ä b", "007"])


def places(cells):
    return [f"row {i}" for i, _ in enumerate(cells, start=1)]


@given(st.lists(st.none() | names, max_size=8))
def test_one_class_by_place_is_the_class_by_name(cells):
    labels = one_class(cells)
    assert [None if i < 0 else labels.classes[i] for i in labels.labels] == cells
    assert set(labels.classes) == {cell for cell in cells if cell is not None}


@given(st.lists(st.none() | st.lists(names, max_size=4), max_size=8))
def test_sets_by_place_are_the_sets_by_name(cells):
    labels = many_classes(cells)
    assert labels.label_sets is not None
    found = [None if row is None else {labels.classes[i] for i in row} for row in labels.label_sets]
    assert found == [None if cell is None else set(cell) for cell in cells]
    assert all(row is None or list(row) == sorted(set(row)) for row in labels.label_sets)
    assert labels.labels.tolist() == [-1] * len(cells)


def test_classes_that_are_given_keep_their_order():
    assert one_class(["b", None], ["c", "b", "a"]).labels.tolist() == [1, -1]
    assert many_classes([["a", "c"], None, []], ["c", "b", "a"]).label_sets == [(0, 2), None, ()]


@given(st.lists(st.none() | st.integers(0, 10**9), min_size=1, max_size=8))
def test_whole_numbers_are_classes_in_their_order_however_they_are_written(cells):
    faults = []
    expected = from_cells(cells, places(cells), faults)
    classes = sorted({cell for cell in cells if cell is not None})
    assert expected.classes == tuple(str(cell) for cell in classes)
    for write in (float, lambda cell: f"{cell}.00", lambda cell: f" {cell}. "):
        twin = from_cells([None if cell is None else write(cell) for cell in cells], places(cells), faults)
        assert (twin.classes, twin.labels.tolist()) == (expected.classes, expected.labels.tolist())
    assert faults == []


@given(st.lists(st.floats(-1e6, 1e6) | st.none() | st.just(math.nan), max_size=8))
def test_numbers_with_a_fraction_are_values(cells):
    faults = []
    labels = from_cells([*cells, 0.5], places([*cells, 0.5]), faults)
    expected = [math.nan if cell is None else cell for cell in [*cells, 0.5]]
    np.testing.assert_array_equal(labels.values, expected)
    np.testing.assert_array_equal(numbers([*cells, 0.5]).values, expected)
    assert (labels.classes, faults) == ((), [])


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        (["0.5", "x", "1,5"], "row 3: the label 1,5: write a number with a point, several labels as `1;5`"),
        (["0.5", math.inf], "row 2: 'inf' is no number; an image without one has an empty cell"),
        (["a", "-1"], "row 2: the label -1 is negative; an image without a label has an empty cell, and numbers to"),
        ([-1.0], "row 1: the label -1.0 is negative"),
        (["[a, b]"], "row 1: several labels in one text ('[a, b]'): write a column labels, `cat;dog`"),
        (["a\u2028b"], "row 1: the label 'a\\u2028b': it holds a control character or is not UTF-8"),
        ([["a", "-3"]], "row 1: the label -3 is negative"),
        ([None, [0.5, 1.0]], "the lists hold numbers with fractions, from row 1 on: they are no classes"),
    ],
)
def test_cells_that_cannot_be_used(cells, fault):
    faults = []
    from_cells(cells, places(cells), faults)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("a;b", ("a", "b")), (" b ; a;", ("a", "b")), (";", ()), ("", None), (None, None), ([], ()), ("a", ("a",))],
)
def test_lists_as_text(cell, expected):
    labels = from_lists([cell, ["a", "b"]], ["x", "y"], [])
    assert labels.label_sets is not None
    found = labels.label_sets[0]
    assert (None if found is None else tuple(labels.classes[i] for i in found)) == expected


def test_one_number_beside_lists_is_a_list_of_one():
    labels = from_cells([[10, 9], 9, None], places(range(3)), [])
    assert (labels.classes, labels.label_sets) == (("9", "10"), [(0, 1), (0,), None])


@pytest.mark.parametrize("cell", ["cat", "1,5", True])
def test_what_is_no_number(cell):
    faults = []
    labels = from_numbers([cell, 2], ["a/b.png", "c.png"], faults)
    assert faults == [f"a/b.png: {str(cell)!r} is no number; an image without one has an empty cell"]
    assert labels.values is not None
    assert math.isnan(labels.values[0])


def test_a_target_that_no_image_has_is_no_column():
    table = one_class([None]).table("x", ["a"], [1], ["train"], {"mask": [None], "depth": ["d"]})
    assert table.targets == {"depth": ["d"]}


NOTHING = [
    "nan",
    "NaN",
    "None",
    "<NA>",
    "null",
    "NULL",
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "-nan",
    "",
    " nan ",
    None,
    math.nan,
]


@pytest.mark.parametrize("cell", NOTHING)
def test_texts_that_mean_nothing_are_nothing(cell):
    """In a cell of its own, beside other classes of a list, and where numbers are learnt."""
    said = {} if cell in ("", None) or cell is math.nan else {cell.strip(): 1}
    labels = from_cells([cell, "cat"], places("ab"), [])
    assert (labels.classes, labels.labels.tolist(), labels.nothing) == (("cat",), [-1, 0], said)
    faults = []
    assert math.isnan(from_numbers([cell, "2"], places("ab"), faults).values[0])
    assert faults == []
    lists = from_cells([[cell], [cell, "cat"], ["cat"], []], places("abcd"), [])
    assert lists.label_sets == [None, (0,), (0,), ()]


def test_words_that_look_like_nothing_are_words():
    labels = from_cells(["none", "Null", "nano", "na", "nil", "0"], places("abcdef"), [])
    assert set(labels.classes) == {"none", "Null", "nano", "na", "nil", "0"}


def test_nothing_is_what_pandas_takes_for_it():
    parsers = pytest.importorskip("pandas._libs.parsers")
    assert set(parsers.STR_NA_VALUES) - {""} == set(labels_module.NOTHING)


def test_bytes_are_text():
    faults = []
    labels = from_cells([b"dog", "cat", "käfig".encode(), b""], places("abcd"), faults)
    assert (labels.classes, labels.labels.tolist(), faults) == (("cat", "dog", "käfig"), [1, 0, 2, -1], [])
    assert from_lists([b"a;b", [b"b"]], places("ab"), faults).label_sets == [(0, 1), (1,)]
    assert from_numbers([b"2.5"], places("a"), faults).values.tolist() == [2.5]
    from_cells([b"\xff\xfe"], places("a"), faults)
    assert faults == ["row 1: the bytes b'\\xff\\xfe' are no text in UTF-8"]


def test_one_spelling_is_one_class():
    """An accent as macOS writes it and as others do."""
    both = [unicodedata.normalize(form, "né") for form in ("NFC", "NFD", "NFC")]
    assert one_class(both).labels.tolist() == [0, 0, 0]
    assert many_classes([both, [both[1]], None]).label_sets == [(0,), (0,), None]
    assert one_class([both[1]], [both[0], "x"]).classes == (both[0], "x")


def test_names_that_look_the_same_are_told_of_classes_that_nobody_declared():
    def pairs(labels, splits=("train", "train")):
        return labels.table("x", ["a", "b"], [1, 1], splits).alike

    assert pairs(one_class(["Cat", "cat"])) == (("Cat", "cat"),)
    assert pairs(many_classes([["A", "a"], []])) == (("A", "a"),)
    assert pairs(one_class(["A", "a"], ["A", "a"])) == ()  # the source says that they are two
    assert pairs(one_class(["x", "y"]), ("fold 1", "Fold 1")) == (("Fold 1", "fold 1"),)


def test_what_no_table_can_hold_is_refused_at_once():
    labels = one_class(["x", "y\nz", "x"], ["x", "y\nz", "x"])
    with pytest.raises(UsageError) as caught:
        labels.table("src", ["a", "b", "a"], [1, 1, 1], ["train", "\u2028", "train"])
    assert caught.value.what == (
        "4 problems in the image set: two images have the key 'a'; "
        "the class 'y\\nz': it holds a control character or is not UTF-8; "
        "the split '\\u2028': it holds a control character or is not UTF-8; two classes 'x'"
    )

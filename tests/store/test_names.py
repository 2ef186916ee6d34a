"""The order and the likeness of names, against plain readings of the rule."""

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loffta.store.names import alike, in_order, one_folder_down, spelled


@pytest.mark.parametrize(
    "ordered",
    [
        ["1", "2", "3", "10", "11", "12"],
        ["-2", "-1", "0", "0.5", "1", "1.5", "10"],
        ["2", "a", "b"],
        ["grade 2", "grade 10", "grade 10b"],
        ["2.5", "2.10", "x"],  # no numbers all of them: 10 is behind 5
        ["9" * 5000, "1" + "0" * 5000],
        ["Bird", "ant", "zebra"],
        ["x1y2", "x1y10", "x2y1"],
    ],
)
def test_the_order_is_what_a_person_writes(ordered):
    for seed in range(5):
        assert in_order(random.Random(seed).sample(ordered, len(ordered))) == ordered


@given(st.sets(st.integers(-(10**6), 10**6)))
def test_numbers_are_in_their_order(numbers):
    assert in_order(str(number) for number in numbers) == [str(number) for number in sorted(numbers)]


@given(st.sets(st.text(st.characters(exclude_categories=["Nd", "Cs"]), max_size=6)))
def test_words_are_in_the_order_of_everybody_else(words):
    assert in_order(words) == sorted(words)


@given(st.sets(st.text(max_size=5)))
def test_the_order_depends_on_the_names_alone(names):
    assert in_order(names) == in_order(sorted(names, reverse=True))
    assert set(in_order(names)) == names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("cat ", "cat"),
        ("red  fox", "red fox"),
        ("red\u00a0fox", "red fox"),
        ("ca\u200bt", "cat"),
        ("\ufb01sh", "fish"),  # one letter for fi
        ("\uff11", "1"),
        ("07", "7"),
        ("1.0", "1"),
        ("STRASSE", "straße"),
    ],
)
def test_what_nobody_tells_apart(one, other):
    assert [set(pair) for pair in alike(["other", one, "one", other])] == [{one, other}]


def test_what_everybody_tells_apart():
    assert alike(["cat", "cats", "a", "b", "1", "2", "10", "1a", "é", "e", "-1", "nan"]) == []


def test_one_spelling():
    for name in ("é", "Å", "ñandú", "한"):
        assert spelled(unicodedata.normalize("NFD", name)) == spelled(name) == name


def test_no_folder_below_is_no_cause():
    assert one_folder_down("folder:/x", ["a/1.png", "a/b/2.png"], "a") is None  # one folder beside images
    assert one_folder_down("folder:/x", ["a/b/1.png", "a/b/2.png"], "a") is None
    assert one_folder_down("folder:/x", ["a/b/1.png", "c/b/2.png"], "a") is None

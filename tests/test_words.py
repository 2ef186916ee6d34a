from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loffta.words import brief, file_name, human_size, lookalike, plural, printable


def test_nothing_that_steers_a_terminal_is_shown():
    assert printable("a\n\x1b[31m\u202e\udcff é\xa0b") == "a\ufffd\ufffd[31m\ufffd\ufffd é\xa0b"
    assert printable("a\nb\tc", keep="\n") == "a\nb\ufffdc"
    assert printable(3) == "3"


@pytest.mark.parametrize("word", ["train", "train+val", "fold-3", "a.b_c@d=e"])
def test_a_harmless_word_is_its_own_file_name(word):
    assert file_name(word) == word


@given(st.text(st.characters(codec=None), max_size=300), st.text(max_size=300))
@example("x/../../evil", "..")
@example("", ".")
@example("a b", "a-b")
def test_a_file_name_is_one_plain_component_of_its_own(word, other):
    name = file_name(word)
    assert name.isascii()
    assert name.isprintable()
    assert 0 < len(name) < 200
    assert PurePosixPath("/root", name).parent == PurePosixPath("/root")
    assert name[0] not in ".-"
    assert (file_name(other) == name) == (other == word)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("cafe\u0301", "caf\u00e9"),
        (" a  b", "a b"),
        ("a\u200bb", "ab"),
        ("\uff21", "a"),
        ("\u202ex", "x"),
    ],
)
def test_names_that_look_the_same_are_known(one, other):
    assert lookalike(one) == lookalike(other)


def test_names_that_differ_stay_apart():
    assert len({lookalike(name) for name in ("cat", "cats", "cat 1", "cat-1", "été")}) == 5


def test_a_value_in_a_message_is_short_however_large_it_is():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    wide = ["x" * 50] * 50
    for _ in range(9):
        wide = [wide] * 9
    for value in (deep, wide, "x" * 10**6, 10**5000, {"a\x1b": list(range(1000))}):
        assert len(brief(value)) <= 200
        assert brief(value).isprintable()
    assert brief({"a": [1, "b"]}) == "{'a': [1, 'b']}"


def test_one_of_a_thing_is_no_plural():
    assert [plural(n, "tap") for n in (0, 1, 2)] == ["taps", "tap", "taps"]
    assert [plural(n, "class", "classes") for n in (1, 2)] == ["class", "classes"]


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (1_234_567, "1.2 MB"),
        (5.5e9, "5.5 GB"),
        (2.5e15, "2500.0 TB"),
    ],
)
def test_sizes_take_the_unit_that_leaves_three_digits(amount, text):
    assert human_size(amount) == text
    assert human_size(amount, "MACs", "_") == text.replace("B", "MACs").replace(" ", "_")

"""Numbers and foreign text as reports write them."""

import pytest

from loffta.reporting.text import count, escape, human_bytes, human_macs, human_seconds, percent, wrap


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (None, "\u2013"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_bytes(n_bytes, text):
    assert human_bytes(n_bytes).replace("\xa0", " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "\u2013"), (0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (3725, "62 min 5 s")],
)
def test_seconds(seconds, text):
    assert human_seconds(seconds).replace("\xa0", " ") == text


def test_fractions_and_counts():
    assert percent(0.97494) == "97.5"
    assert [count(1, "seed"), count(1200, "image")] == ["1 seed", "1,200 images"]


def test_foreign_text_is_escaped():
    assert escape("\x1b\u202e") == "\ufffd\ufffd"
    assert escape("<a href='\"&") == "&lt;a href=&#x27;&quot;&amp;"


def test_lines_are_no_wider_and_nothing_is_cut():
    assert wrap("one two three", 8) == ["one two", "three"]
    assert wrap("a" * 9, 5) == ["aaaaa", "aaaa"]
    assert wrap("\u5c64" * 5, 4) == ["\u5c64\u5c64", "\u5c64\u5c64", "\u5c64"], "two columns each"
    assert wrap("", 5) == [""]
    assert wrap("\x1b[31m", 9) == ["\ufffd[31m"]


@pytest.mark.parametrize(
    ("n", "expected"),
    [(0, "0\xa0MACs"), (999_960, "1.0\xa0MMACs"), (17_565_000_000, "17.6\xa0GMACs"), (5e15, "5000.0")],
)
def test_multiply_accumulates(n, expected):
    assert human_macs(int(n)).startswith(expected)

"""Nothing is wider than asked for, and nothing is lost: compared with the texts that went in."""

import os
import subprocess
import unicodedata

import pytest

from loffta.machine.terminal import NO_TERMINAL, Table, columns, command, wrap

WIDTHS = [16, 40, 80, 120, 200]
NAMES = ["vit_tiny_patch16_224-1a2b3c4d", "写真の分類器/とても長い名前のデータセット-0123", "x" * 90, "a b c", "é" * 30]


def wide(text):
    """Columns by Unicode's own table, combining marks aside."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def bare(text):
    return "".join(text.split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", ["", "  ", "free     "])
def test_a_paragraph_keeps_within_and_loses_nothing(width, name, start):
    text = f"{start}{name}: 3 units of {name}, written to /scratch/{name}/{name} in 3.2 s"
    lines = wrap(text, width)
    assert max(map(wide, lines)) <= width
    assert bare("".join(lines)) == bare(text)
    assert all(line == line.rstrip() and line.strip() for line in lines)
    if wide(text) <= width:
        assert lines == [text]
    else:  # greedy: the first word of a line had no room on the line before
        assert all(line.startswith(" ") for line in lines[1:])


def test_words_are_broken_only_where_they_are_longer_than_a_line():
    assert wrap("  three words and/a/path here", 20) == ["  three words", "      and/a/path", "      here"]
    assert wrap("see /scratch/sets/photos/cache now", 20, hang=2) == ["see", "  /scratch/sets/", "  photos/cache now"]
    assert wrap("a" * 25, 20) == ["a" * 20, "    aaaaa"]
    assert wrap("\x1b[31mred\n", 80) == ["�[31mred�"]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_keeps_within_and_loses_nothing(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    heads = ["name", "px", "taps", "bytes", "timm id"]
    rows = [[name, "224", "blocks.0 .. blocks.11", "1.2 MB", "vit_tiny_patch16_224.augreg_in21k"] for name in NAMES]
    table = Table(rows, heads, right={1, 3}, indent=2)
    for row in rows:
        lines = table.lines(row, "note: " + row[0])
        assert max(map(wide, lines)) <= width
        text = bare("".join(lines))
        assert all(bare(cell) in text or cell == row[0] for cell in row)  # a name that wraps has figures beside it
        assert set(bare(row[0])) <= set(text)
        assert bare("note: " + row[0]) in text
    assert max(map(wide, table.head())) <= width


def test_columns_are_aligned_and_the_last_go_below(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    rows = [["a", "1", "blue"], ["bb", "22", ""]]
    table = Table(rows, ["id", "n", "colour"], right={1})
    assert table.head() == ["id   n  colour", "--  --  ------"]
    assert [line for row in rows for line in table.lines(row)] == ["a    1  blue", "bb  22"]
    monkeypatch.setenv("COLUMNS", "16")
    narrow = Table([["a name", "1", "blue"]], ["id", "n", "colour of it"], right={1})
    assert narrow.head() == ["id      n", "------  -"]
    assert narrow.lines(["a name", "1", "blue"]) == ["a name  1", "    colour of it", "    blue"]
    assert Table([["x", "y"]]).lines(["x", "y"], "why") == ["x  y", "    why"]


def test_wide_characters_take_two_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    rows = [["写真", "1"], ["abcd", "2"]]
    table = Table(rows)
    assert [table.lines(row)[0] for row in rows] == ["写真  1", "abcd  2"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*NAMES, "it's $HOME", "a\\b"])
def test_a_command_is_the_same_for_a_shell(width, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    words = ["loffta", "predict", f"/scratch/{name}/runs", "IMAGES", "--out", f"{name}.parquet"]
    lines = command(words)
    assert max(map(wide, lines)) <= width
    script = "loffta() { printf '%s\\n' loffta \"$@\"; }\n" + "\n".join(lines)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == words


def test_how_wide_the_terminal_is(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    size_of, stdout = os.get_terminal_size, {}
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: size_of(stdout[fd]))
    reader, writer = os.pipe()
    stdout[1] = writer
    try:
        assert columns() == NO_TERMINAL == 120
    finally:
        os.close(reader)
        os.close(writer)
    ours, theirs = os.openpty()
    stdout[1] = theirs
    try:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 66, 0, 0))
        assert columns() == 66
        monkeypatch.setenv("COLUMNS", "80")
        assert columns() == 80
        monkeypatch.setenv("COLUMNS", "3")
        assert columns() == 16
        for nonsense in ("", "0", "wide", "-5"):
            monkeypatch.setenv("COLUMNS", nonsense)
            assert columns() == 66
    finally:
        os.close(ours)
        os.close(theirs)

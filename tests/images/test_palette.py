"""`--palette FILE`: colours to classes, in three forms of file, and what is wrong with one."""

import json

import pytest

from loffta.errors import UsageError
from loffta.images.palette import read_palette
from loffta.targets import IGNORE_16


def palette(tmp_path, text, name="p.txt"):
    (tmp_path / name).write_text(text)
    return read_palette(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        "0,0,0,sky\n0,0,128,dirt road\n9,9,9,ignore\n1,1,1,sky\n",
        "# mine\nR;G;B;class\r\n0;0;0;sky\r\n\r\n0; 0; 128; dirt road\r\n9;9;9;ignore\r\n1;1;1;sky\r\n",
        "0 0 0 sky\n0\t0\t128\tdirt road\n9 9 9 ignore\n1 1 1 sky",
    ],
)
def test_names_are_numbered_as_they_come(tmp_path, text):
    found = palette(tmp_path, text)
    assert found.classes == ("sky", "dirt road")
    assert found.colours == {(0, 0, 0): 0, (0, 0, 128): 1, (9, 9, 9): IGNORE_16, (1, 1, 1): 0}


def test_numbers_are_those_of_the_classes(tmp_path):
    found = palette(tmp_path, "0,0,0,3\n255,0,0,0\n9,9,9,ignore\n")
    assert found == ({(0, 0, 0): 3, (255, 0, 0): 0, (9, 9, 9): IGNORE_16}, ("0", "1", "2", "3"))


def test_json(tmp_path):
    assert palette(tmp_path, json.dumps([[0, 0, 0, "sky"], [1, 2, 3, "sea"]]), "p.json").classes == ("sky", "sea")
    assert palette(tmp_path, "[[0, 0, 0, 1]]", "p.json").colours == {(0, 0, 0): 1}


@pytest.mark.parametrize(
    ("text", "name", "what"),
    [
        ("", "p.txt", "the palette is no list of 1 to 65536 colours"),
        ("{}", "p.json", "the palette is no list of 1 to 65536 colours"),
        ("{", "p.json", "the palette cannot be read (Expecting property name"),
        ("0,0,0\n", "p.txt", "1 problem in the palette: colour 1: ['0', '0', '0'] is not red, green, blue and a class"),
        (
            "0,0,256,a\n",
            "p.txt",
            "1 problem in the palette: colour 1: ['0', '0', '256'] are not three whole numbers fr",
        ),
        ("0,0,0,\n", "p.txt", "1 problem in the palette: colour 1: the class is empty"),
        ("0,0,0,a\x1bb\n", "p.txt", "1 problem in the palette: colour 1: "),
        ("0,0,0,a\n0,0,0,b\n", "p.txt", "1 problem in the palette: colour 2: the colour 0,0,0 stands for 'a' already"),
        ("0,0,0,ignore\n", "p.txt", "the palette names no class"),
        ("0,0,0,70000\n", "p.txt", "the palette has class 70000, over 65534"),
    ],
)
def test_files_that_are_no_palette(tmp_path, text, name, what):
    with pytest.raises(UsageError) as caught:
        palette(tmp_path, text, name)
    assert caught.value.what.startswith(what)
    assert "\x1b" not in caught.value.what
    assert caught.value.where == f"--palette {tmp_path / name}"
    assert caught.value.remedy.startswith("write a line a colour: red,green,blue,class")


def test_no_such_palette(tmp_path):
    with pytest.raises(UsageError, match="the palette cannot be read"):
        read_palette(tmp_path / "none.txt")

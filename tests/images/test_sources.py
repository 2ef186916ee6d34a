"""Names of image sets."""

from pathlib import Path

import pytest

from loffta.errors import UsageError
from loffta.images.demo import Digits
from loffta.images.sources import SOURCES, ImageSource, open_source, with_options
from loffta.images.torchvision_sets import KNOWN


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_refuses_an_unknown_name(kind):
    with pytest.raises(UsageError) as caught:
        open_source(f"{kind}:./no-such-thing-anywhere")
    assert f"SOURCE {kind}:./no-such-thing-anywhere" in str(caught.value)


def test_demo_digits():
    source = open_source("demo:digits")
    assert isinstance(source, Digits)
    assert isinstance(source, ImageSource)


@pytest.mark.parametrize(
    ("spec", "what", "remedy"),
    [
        ("demmo:digits", "unknown kind of image set 'demmo'", "did you mean demo?"),
        ("demo:digit", "unknown demo image set 'digit'", "did you mean digits?"),
        ("zzz:x", "unknown kind of image set 'zzz'", f"known: {', '.join(SOURCES)}"),
        (
            "photos",
            "'photos' does not say what kind of image set it is, and is no folder and no .csv, .tsv or .parquet file",
            "write <kind>:<what>, for example demo:digits",
        ),
        (
            "",
            "'' does not say what kind of image set it is, and is no folder and no .csv, .tsv or .parquet file",
            "write <kind>:<what>, for example demo:digits, or the path of a folder or table that is there",
        ),
        *(
            (f"{kind}:{'x' * 300}", f"there is no folder '{'x' * 300}'", "give the path")
            for kind in ("coco", "folder", "voc", "vtab")
        ),
        (f"{'x' * 300}.csv", f"there is no file '{'x' * 300}.csv'", "give the path of a file"),
        (f"zzz:{'x' * 5000}", "unknown kind of image set 'zzz'", f"known: {', '.join(SOURCES)}"),
        ("nowhere/t.CSV", "there is no file 'nowhere/t.CSV'", "give the path of a file; relative ones start at "),
        ("zzz:t.csv", "unknown kind of image set 'zzz'", f"known: {', '.join(SOURCES)}"),
    ],
)
def test_unknown_sources_name_their_neighbours(spec, what, remedy):
    with pytest.raises(UsageError) as caught:
        open_source(spec)
    assert caught.value.what == what
    assert caught.value.remedy.startswith(remedy)
    assert caught.value.where.startswith("SOURCE")
    assert caught.value.exit_code == 2


def test_a_bare_path_is_a_folder_or_a_table(tmp_path, monkeypatch):
    (tmp_path / "a:b").mkdir()  # a colon in a path is no kind
    (tmp_path / "a:b" / "1.png").write_bytes(b"x")
    for name in ("t.csv", "t:u.csv"):
        (tmp_path / name).write_text("image,label\na:b/1.png,x\n")
    monkeypatch.chdir(tmp_path)
    for spec in ("a:b", "./a:b/", str(tmp_path / "a:b"), "folder:a:b"):
        table = open_source(spec).listing()
        assert (table.source, table.keys) == (f"folder:{tmp_path}/a:b", ["1.png"])  # however it was named
    for spec, name in (("t.csv", "t.csv"), ("t:u.csv", "t:u.csv"), ("table:t.csv", "t.csv")):
        table = open_source(spec).listing()
        assert (table.source, table.keys) == (f"table:{tmp_path}/{name}", ["a:b/1.png"])
    (tmp_path / "demo").mkdir()
    assert isinstance(open_source("demo:digits"), Digits)  # a known kind is a kind, whatever lies there


def test_every_kind_has_its_line_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "image-sets.md").read_text()
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    assert sorted(SOURCES) == sorted(row.removeprefix("| `").partition(":")[0] for row in rows)
    assert ", ".join(KNOWN) in " ".join(text.split())  # the data sets of torchvision


@pytest.mark.parametrize(
    ("spec", "options", "text"),
    [
        ("demo:digits", {"image_root": "/x"}, "--image-root is for tables, not for demo"),
        ("folder:.", {"image_root": "/x"}, "--image-root is for tables, not for folder"),
        (".", {"image_root": "/x"}, "--image-root is for tables, not for folder"),
        ("wds:a.tar", {"follow_links": True}, "--follow-links is for folders and tables, not for wds"),
    ],
)
def test_options_that_a_source_does_not_have(spec, options, text):
    with pytest.raises(UsageError, match=text):
        with_options(spec, **options)


def test_options_are_words_of_the_source():
    assert with_options("t.csv", image_root="/x y", follow_links=True) == "t.csv#root=/x y#follow-links"
    assert with_options("folder:a", follow_links=True) == "folder:a#follow-links"
    assert with_options("coco:a") == "coco:a"

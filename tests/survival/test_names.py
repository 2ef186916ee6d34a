"""Names that strangers chose: of files, classes, columns and folders; refused, or shown so that they do no harm."""

import html.parser
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.survival.commands import VIT, assert_one_error, loffta

TRAIN = ["--head", "linear", "--set", "epochs=1", "--device", "cpu"]
SCRIPT = "<script>alert(1)<"  # a slash would end the name
RTL = "‮gpj.cod"
LONG = "n" * 251 + ".png"  # 255 bytes, the longest that file systems take
ODD = [f"{SCRIPT}.png", f"{RTL}.png", LONG, "a b&c;$(id)'\".png", "--help.png", "%s{0}.png", "‎é中🙂.png"]
REFUSED = [b"line\nbreak.png", b"\x1b[31mred.png", b"\xff\xfe.png", b"bell\x07.png", b"back\rspace.png"]
HARMFUL = "\x1b\x07\r\u202e\u200e\u2028"


def paint(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(12, 12, 3), dtype=np.uint8)).save(path, "PNG")


def assert_harmless(*texts):
    for text in texts:
        assert not any(character in text for character in HARMFUL), text
        text.encode()  # no lone surrogates


class Tags(html.parser.HTMLParser):
    """Collects what a browser would take for scripts."""

    def __init__(self):
        super().__init__()
        self.scripts = []

    def handle_starttag(self, tag, attrs):
        if tag == "script" or any(name.startswith("on") for name, _ in attrs):
            self.scripts.append((tag, attrs))


@pytest.fixture
def folder(tmp_path):
    """Two classes with hostile names in two splits; images with hostile names, some of them broken."""
    root = tmp_path / f"set{RTL}"
    for split in ("train", "test"):
        for label, name in enumerate((SCRIPT + "b onload=x>", f"{RTL}class")):
            for i, file in enumerate(ODD):
                paint(root / split / name / file, 100 * label + i)
    (root / "train" / f"{RTL}class" / f"{RTL}.png").write_bytes(b"not an image")
    for name in REFUSED:
        (root / "train" / os.fsencode(f"{RTL}class").decode() / os.fsdecode(name)).write_bytes(b"x")
    return root


def test_a_folder_from_end_to_end(tmp_path, folder):
    cache, run, page = tmp_path / "cache", tmp_path / "run", tmp_path / "report.html"
    words = ["extract", folder, *VIT, "--unit-images", "8", "--cache", cache]
    refused = loffta(tmp_path, *words, code=3)
    assert f"skipped {len(REFUSED)} (names with control characters or not UTF-8)" in refused.err
    assert_one_error(refused, "1 of 28 images cannot be used", "gpj.cod.png: not an image of a known format")
    done = [
        loffta(tmp_path, *words, "--max-bad-frac", "0.1"),
        loffta(tmp_path, "info", cache),
        loffta(tmp_path, "verify", cache, "--deep"),
        loffta(tmp_path, "train", cache, *TRAIN, "--out", run),
        loffta(tmp_path, "report", run, "--out", page),
    ]
    assert_harmless(refused.err, *(text for command in done for text in (command.out, command.err)))
    text = page.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.scripts == []
    assert "&lt;script&gt;alert(1)&lt;" in text
    assert_harmless(text)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../secret.png", "the path holds '..'"),
        ("/etc/hostname", "the path is absolute"),
        ("a\nb.png", "control character"),
        ("a\x1b[31m.png", "control character"),
        ("‮.png", "there is no such file"),
        ("n" * 300 + ".png", "name too long"),
        ("inside/link.png", "leaves the image set's folder"),
    ],
)
def test_a_table_with_such_a_path(tmp_path, name, fault):
    paint(tmp_path / "secret.png")
    paint(tmp_path / "set" / "good.png")
    (tmp_path / "set" / "inside").mkdir()
    (tmp_path / "set" / "inside" / "link.png").symlink_to(tmp_path / "secret.png")
    table = tmp_path / "set" / "table.csv"
    quoted = '"' + name.replace('"', '""') + '"'
    table.write_text(f"image,label\ngood.png,a\n{quoted},b\n")
    failed = loffta(tmp_path, "extract", f"table:{table}", *VIT, "--cache", tmp_path / "cache", code=2)
    assert fault in failed.err.lower() or fault in failed.err
    assert_harmless(failed.err)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_cache_and_a_run_in_a_folder_that_is_not_utf8(tmp_path, folder, encoding):
    """Linux takes any bytes for a name; a terminal or log may not even take UTF-8."""
    root = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m")
    Path(root).mkdir()
    environment = {"PYTHONIOENCODING": encoding}
    words = ["extract", folder, *VIT, "--unit-images", "8", "--max-bad-frac", "1", "--cache", f"{root}/c"]
    done = [
        loffta(tmp_path, *words, environment=environment),
        loffta(tmp_path, "info", f"{root}/c", environment=environment),
        loffta(tmp_path, "train", f"{root}/c", *TRAIN, "--out", f"{root}/run", environment=environment),
        loffta(tmp_path, "report", f"{root}/run", "--out", f"{root}/r.html", environment=environment),
        loffta(tmp_path, "info", f"{root}/none", code=1, environment=environment),
    ]
    assert_harmless(*(text for command in done for text in (command.out, command.err)))

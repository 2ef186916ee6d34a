"""The page and the text of an audit: nothing of a key is markup or control, no line is too wide, pictures are there."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.cells import cell_len

from loffta.auditing.audit import audit
from loffta.auditing.found import Audit, CopyGroup, LabelError, Outlier
from loffta.errors import UsageError
from loffta.reporting.audit_page import check_page, render, write_audit
from loffta.reporting.audit_text import format_audit
from loffta.store.ledger import BAD, OK, ImageStatus
from loffta.store.table import ImageTable
from loffta.store.writer import Stored, UnitWriter
from tests.auditing.planted import make

HOSTILE = ["<script>alert(1)</script>.png", '"><img src=x onerror=y>.png', "\x1b[31mred\u202e.png", "文" * 60 + ".png"]


DOCUMENT = {"html", "head", "meta", "title", "style", "body", "main", "header", "footer"}
TAGS = (
    DOCUMENT
    | {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "div"}
    | {*("ul", "li", "img", "b", "br", "small")}
)


class Parsed(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Twelve pictures with thumbnails, but for the last."""
    rng = np.random.default_rng(0)
    keys = [*HOSTILE, *(f"{i}.png" for i in range(8))]
    classes = ("<i>cat</i>", "dog")
    table = ImageTable("<b>set</b>", keys, np.full(12, 9), ["train", "test"] * 6, np.arange(12) % 2, classes)
    cache = make(tmp_path_factory.mktemp("page") / "cache", table, rng.uniform(size=(12, 5)).astype(np.float32))
    thumbs, rows = cache.thumbs(create=True), range(11)
    pictures = rng.integers(256, size=(11, 8, 8, 3), dtype=np.uint8)
    writer = UnitWriter(thumbs.paths, thumbs.layout, 0)
    writer.append(rows, Stored(pictures, np.ones((11, 8), bool), np.zeros((11, 8), np.float32)), keys[:11])
    writer.commit([ImageStatus(row, OK) for row in rows] + [ImageStatus(11, BAD)], {})
    return cache


def made(cache, **fields):
    groups = (
        CopyGroup((0, 1, *range(4, 12)), 0.99, ("train", "test"), True),
        CopyGroup((2, 6), 1.0, ("train",), False),
    )
    errors = (LabelError(2, 0, chance_given=0.1, chance=0.9), LabelError(3, 1, chance_given=0.2, chance=0.7))
    outliers = (Outlier(11, 0.5), Outlier(0, 0.25))
    given = {"label_errors": errors, "agreement": 0.875, "n_judged": 12} | fields
    return Audit(
        cache.table, ("st<o>re:last",), np.arange(12), 0.9, 0.2, 0.05, groups, outliers, {0: (0, 2), 1: (1,)}, **given
    )


def test_nothing_of_a_name_is_markup(cache):
    page = Parsed(render(made(cache), cache, 10))
    assert set(page.tags) <= TAGS
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for name, value in page.attributes if name == "src" and not value.startswith("data:image/png")]
    for name in (HOSTILE[0], HOSTILE[1], "<i>cat</i>", "<b>set</b>", "st<o>re:last"):
        assert name in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page.text)
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes


def test_pictures_are_those_of_the_worst(cache):
    """6 of a group's 10 copies, both of the other, and whatever else is named; image 11 has no thumbnail."""
    html = render(made(cache), cache, 10)
    assert html.count("<img") == 6 + 2 + 2 + 1 + 3
    few = render(made(cache), cache, 1)
    assert few.count("<img") == 6 + 1 + 0 + 3
    assert "The worst 1 of 2." in few
    assert "10 images" in html


def test_the_page_is_written_and_stands_without_thumbnails(cache, tmp_path):
    bare = make(tmp_path / "bare", cache.table, np.eye(12, 5, dtype=np.float32) + 0.1)
    write_audit(audit(bare, device="cpu"), bare, tmp_path / "a.html", 5)
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UsageError, match="this is a folder"):
        check_page(tmp_path)


def test_what_was_not_done_is_told(cache):
    found = made(cache, label_errors=(), agreement=None, n_judged=0, not_done={"label_errors": "no <label>"})
    assert "not looked for: no <label>." in Parsed(render(found, cache, 3)).text
    assert "label errors were not looked for: no <label>" in format_audit(found, 3, 80)


@pytest.mark.parametrize("width", [120, 80, 40])
def test_no_line_is_wider_than_the_terminal(cache, width):
    text = format_audit(made(cache), 5, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text)


def test_the_text_has_counts_and_the_worst(cache):
    lines = format_audit(made(cache), 1, 200).splitlines()
    assert lines[2:6] == [
        "copies        2  groups of 12 images; 1 with labels that differ",
        "leaks         1  of these groups lie in several splits",
        "label errors  2  of 12 labels, of which the judges agree with 87.5%",
        "outliers      2  half of all images are within 0.05",
    ]
    assert "copies, from a similarity of 0.9000 (the worst 1 of 2):" in lines
    assert lines[8].endswith(" = ...: 0.9900, leak: train and test, labels differ")
    assert lines[11] == "    \ufffd[31mred\ufffd.png: <i>cat</i> (0.10), rather <i>cat</i> (0.90)"
    assert lines[14] == "    7.png: 0.5"

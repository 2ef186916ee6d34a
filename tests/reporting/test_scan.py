"""A scan as a table, a page and files: its figures are there, and no name of a stranger's is markup."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from loffta.errors import UsageError
from loffta.reporting import scan_text
from loffta.reporting.depth import Series, depth_chart
from loffta.reporting.scan_page import WRITERS, check_ending, write_scan
from loffta.reporting.scan_text import notes_of, scan_lines
from loffta.scanning.results import Row, Scan

HOSTILE = "<b>&_%|`$#\\^~{}*[x](y)\x1b[31m"


def a_row(backbone, tap, head, score, rank, *, pooling="mean", shots=None, tied=False):
    interval = (score - 0.02, score + 0.01)
    return Row("s-1", backbone, tap, pooling, 64, head, shots, score, [score], interval, rank, tied, [{"k": 20}])


def a_scan(rows, **more):
    facts = {"cache": "c", "source": f"folder:{HOSTILE}", "task": "classification", "metric": "top1"}
    facts |= {"tested_on": "test", "n_images": 50, "n_trained": 100, "n_folds": None, "n_draws": None}
    facts |= {"chosen_on": "a fifth of split train", "standardised": False, "rows": rows, "bytes_read": 2_000_000}
    facts |= {"depths": {"s-1": ["a.0", HOSTILE, "a.2"]}, "left_out": {"bad": 3, "unlabelled": 0}}
    return Scan(**(facts | {"seconds": 1.5, "versions": {}} | more))


@pytest.fixture
def scan():
    return a_scan(
        [
            a_row("net", "a.2", "ridge", 0.961, (1, 2), tied=True),
            a_row("net", HOSTILE, "ridge", 0.9, (1, 2), tied=True),
            a_row("net", "a.0", "knn", 0.5, (3, 3)),
        ]
    )


def written(scan, tmp_path, ending):
    write_scan(scan, tmp_path / f"table{ending}")
    return (tmp_path / f"table{ending}").read_text()


def test_the_table_fits_a_terminal_and_marks_what_is_tied(scan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = scan_lines(scan)
    assert all(len(line) <= 80 for line in lines)
    assert re.search(r"net a\.2 +ridge +96\.1 +94\.1.97\.1 +1.2 \*", "\n".join(lines))
    assert re.search(r"net a\.0 +knn +50\.0 +48\.0.51\.0 +3$", "\n".join(line.rstrip() for line in lines), re.MULTILINE)
    assert "\x1b" not in "".join(lines)
    notes = " ".join(notes_of(scan))
    assert "50 images of split test; 100 training images" in notes
    assert "lambda chosen on a fifth" in notes
    assert "3 bad" in notes


def test_of_many_rows_the_best_are_shown_and_the_others_counted(scan, monkeypatch):
    monkeypatch.setattr(scan_text, "_SHOWN", 2)
    lines = scan_lines(scan)
    assert lines[-1].startswith("and 1 more row")
    assert not any("knn" in line for line in lines)


def test_few_images_have_tables_of_their_own():
    rows = [a_row("net", "a", "ncm", 0.5, (1, 1), shots=n, tied=True) for n in (1, 5)]
    lines = scan_lines(a_scan(rows, n_draws=4))
    assert [line for line in lines if "each class" in line] == ["1 image of each class:", "5 images of each class:"]
    assert "4 draws of each number" in " ".join(notes_of(a_scan(rows, n_draws=4)))


def test_csv_has_every_digit(scan, tmp_path):
    rows = list(csv.DictReader(io.StringIO(written(scan, tmp_path, ".csv"))))
    assert [float(row["score"]) for row in rows] == [row.score for row in scan.rows]
    assert [float(row["high"]) for row in rows] == [row.ci95[1] for row in scan.rows]
    assert [(row["best_rank"], row["worst_rank"], row["tied_with_best"]) for row in rows][2] == ("3", "3", "False")
    assert rows[1]["tap"] == HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}")


def test_json_is_the_scan(scan, tmp_path):
    assert json.loads(written(scan, tmp_path, ".json")) == json.loads(json.dumps(scan.as_json()))


def test_markdown_has_a_cell_for_each_column_whatever_is_in_it(scan, tmp_path):
    lines = [line for line in written(scan, tmp_path, ".md").splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {6}
    assert len(lines) == 2 + 3
    unescaped = re.sub(r"\\.", "", lines[3])
    assert not re.search(r"[<>`*_$\[\]]", unescaped)


def test_what_is_told_below_a_table_in_markdown_is_what_the_terminal_says(scan, tmp_path):
    below = written(scan, tmp_path, ".md").split("\n\n")[-1].splitlines()
    assert [re.sub(r"\\(.)", r"\1", line).rstrip() for line in below] == notes_of(scan)


def test_tables_of_few_images_stand_below_each_other(tmp_path):
    found = a_scan([a_row("net", "a", "ncm", 0.5, (1, 1), shots=n, tied=True) for n in (1, 5)], n_draws=4)
    assert "\\end{tabular}\n\n\\begin{tabular}" in written(found, tmp_path, ".tex")


def test_latex_has_no_live_character_of_a_name(scan, tmp_path):
    text = written(scan, tmp_path, ".tex")
    row = next(line for line in text.splitlines() if "<b>" in line)
    bare = re.sub(r"\\text\w+\{\}|\\[&%$#_{}]", "", row.removesuffix("\\\\"))
    assert not re.search(r"[\\$#_{}~^%]", bare)
    assert bare.count("&") == 4
    assert "96.1 & 94.1--97.1 & 1--2 *" in text
    assert (text.count("\\begin{tabular}"), text.count("\\end{tabular}")) == (1, 1)


class Page(HTMLParser):
    """Tags and text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.circles = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_escapes_names_and_has_a_chart_and_all_rows(scan, tmp_path):
    page = Page()
    page.feed(written(scan, tmp_path, ".html"))
    assert "b" not in page.tags
    assert "a" not in page.tags
    shown = HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert f"net {shown}" in page.text
    assert page.tags.count("svg") == 1
    assert page.tags.count("tr") == 1 + 3
    assert any("2 rows, it among them, are tied with the best" in text for text in page.text)


def test_a_chart_puts_scores_at_their_height_and_leaves_gaps():
    """Of an axis from 0 to 1 the heights go from 198 to 8."""
    series = Series("knn", [0.0, None, 1.0, 0.5], [None, None, (0.9, 1.0), None], ["zero", "", "one", "half"])
    chart = depth_chart(["a", "b", "c", "d"], [series], [(0.0, "0 %"), (1.0, "100 %")], "scores")
    (path,) = re.findall(r'class="depth" d="([^"]*)"', chart)
    moves = re.findall(r"([ML])([\d.]+) ([\d.]+)", path)
    assert [(move, float(y)) for move, _, y in moves] == [("M", 198), ("M", 8), ("L", 103)]
    assert [float(x) for _, x, _ in moves] == sorted(float(x) for _, x, _ in moves)
    assert chart.count('class="whisker"') == 1
    assert "<title>half</title>" in chart


def test_every_line_of_many_can_be_told_and_has_its_name_within_the_chart():
    names = [f"{head}, {pooling}" for head in ("knn", "logreg", "ncm") for pooling in ("mean", "cls", "cls+mean")]
    series = [Series(name, [i / 10], [None], [""]) for i, name in enumerate(names)]
    chart = depth_chart(["a"], series, [(0.0, "0 %"), (1.0, "100 %")], "scores")
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', chart).groups())
    for name in names:
        x, y = map(float, re.search(rf'<text x="([\d.]+)" y="([\d.]+)"[^>]*>{re.escape(name)}</text>', chart).groups())
        assert x + 6 * len(name) < width
        assert y < height
    assert len(set(re.findall(r'class="depth" d="[^"]*" style="([^"]*)"', chart))) == len(names)


def test_an_ending_that_nobody_writes_is_told_before_anything_is_measured(tmp_path):
    assert set(WRITERS) == {".csv", ".md", ".tex", ".json", ".html"}
    with pytest.raises(UsageError, match=r"end its name with .csv, .md"):
        check_ending(tmp_path / "table.xls")
    (tmp_path / "x.html").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_ending(tmp_path / "x.html")

"""Ranks in tables and for programs, and gains over a run that was named; how places follow is in tasks/."""

import json

import numpy as np
import pytest
from loffta_cli.main import main

import loffta
from loffta.errors import UsageError
from loffta.reporting.comparisons import Comparisons
from loffta.reporting.places import Place, find_places, ranked_together
from loffta.reporting.tables import read_runs
from loffta.reporting.terminal import format_table
from loffta.runs.run import RunPaths, read_predictions, write_predictions
from tests.reporting.test_page import Page

LAST = {"net": ["stages.2"]}


def first(n):
    return [np.arange(15) < n]


@pytest.fixture
def roots(make_run):
    """Right on 15, 14 and 6 of the same 15 images: the first two cannot be told apart, the last is behind both."""
    return [make_run(name, [], LAST, right=first(n)) for name, n in (("far", 6), ("best", 15), ("close", 14))]


def rename_images(root):
    """As if it had been tested on others."""
    path = RunPaths(root).predictions("test")
    columns = read_predictions(path)
    columns["key"] = [f"other {key}" for key in columns["key"]]
    write_predictions(path, columns)


def test_places_of_runs_on_the_same_images(roots):
    comparisons = Comparisons(read_runs(roots))
    assert find_places(comparisons) == {
        "far": Place(3, 3, False),
        "best": Place(1, 2, True),
        "close": Place(1, 2, True),
    }
    (group,) = ranked_together(comparisons)
    assert (group.metric, group.n_images) == ("top1", 15)
    assert [(run.run, run.rank, run.tied_with_best) for run in group.runs] == [
        ("best", (1, 2), True),
        ("close", (1, 2), True),
        ("far", (3, 3), False),
    ]


def test_runs_on_other_images_are_ranked_apart(roots, make_run):
    others = [make_run(name, [], LAST, right=first(n)) for name, n in (("there", 15), ("behind", 3))]
    for root in others:
        rename_images(root)
    alone = make_run("unknown", [0.99], LAST)  # its predictions give another score
    comparisons = Comparisons(read_runs([*roots, *others, alone]))
    places = find_places(comparisons)
    assert {name: (place.low, place.high) for name, place in places.items()} == {
        "far": (3, 3),
        "best": (1, 2),
        "close": (1, 2),
        "there": (1, 1),
        "behind": (2, 2),
    }
    assert [len(group.runs) for group in ranked_together(comparisons)] == [3, 2]


def test_the_terminal_shows_ranks_and_what_they_mean(roots):
    runs = read_runs(roots)
    lines = format_table([run.row for run in runs], 100, find_places(Comparisons(runs))).splitlines()
    assert lines[0].split()[:3] == ["run", "head", "rank"]
    ranks = {
        words[0]: words[2] for words in map(str.split, lines[2:]) if words and words[0] in ("far", "best", "close")
    }
    assert ranks == {"far": "3", "best": "1\u20132*", "close": "1\u20132*"}
    assert any(line.startswith("* tied with the best. A rank is an interval") for line in lines)
    assert "rank" not in format_table([runs[0].row]), "one run has no rank"


@pytest.mark.parametrize("by_path", [False, True])
def test_gains_over_a_baseline(roots, tmp_path, monkeypatch, capsys, by_path):
    """By hand: of 15 images 15 and 6 less 14; the interval holds what every paired resample gives."""
    monkeypatch.chdir(tmp_path)
    baseline = str(roots[2]) if by_path else "close"
    assert main(["report", *map(str, roots), "--baseline", baseline, "--out", "r.html", "--json"]) == 0
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    gains = {one["run"]: one for one in told["gains"]}
    assert set(gains) == {"best", "far"}
    assert {one["other"] for one in told["gains"]} == {"close"}
    assert gains["best"]["mean"] == pytest.approx(1 / 15)
    assert gains["far"]["mean"] == pytest.approx(-8 / 15)
    assert (gains["best"]["verdict"], gains["far"]["verdict"]) == ("open", "worse")
    assert gains["best"]["ci95"][0] == 0, "a resample that lacks the one image"
    assert told["ranks"][0]["runs"][0] == {"run": "best", "rank": [1, 2], "tied_with_best": True}
    assert "Gain over close in points" in " ".join(out.split())
    page = Page((tmp_path / "r.html").read_text())
    assert "Gain over close, points" in {text for row in page.rows for text in row}
    assert page.row("close")[5] == "\u2013"
    assert page.row("best")[5].startswith("+6.7|0.0 to +20.0")
    assert "Behind the best" not in "".join(page.text)


def test_a_baseline_that_is_not_among_them_names_those_that_are(roots, tmp_path):
    with pytest.raises(UsageError, match=r"unknown run 'closer'(.|\n)*--baseline(.|\n)*did you mean close"):
        loffta.report(roots, out=tmp_path / "r.html", baseline="closer")
    assert not (tmp_path / "r.html").exists()


def test_a_hostile_baseline_is_text(roots, tmp_path, monkeypatch, capsys):
    assert main(["report", str(roots[0]), "--baseline", "\x1b[31m<b>", "--out", str(tmp_path / "r.html")]) == 2
    assert "\x1b" not in capsys.readouterr().err

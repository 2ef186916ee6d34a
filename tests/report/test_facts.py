"""Headlines: true numbers, and no claim beyond them."""

import json
import shutil

import pytest

from loffta.report.facts import comparable, headline_facts
from loffta.report.tables import read_runs

ALL = {"net": ["stages.0", "stages.1", "stages.2"]}
LAST = {"net": ["stages.2"]}
BOTH = ALL | {"wild": ["stages.0"]}


def facts_of(*roots):
    return headline_facts(read_runs(roots))


@pytest.mark.parametrize(("low", "said"), [(0.75, "stays open"), (0.85, "do not overlap")])
def test_the_best_run_is_hedged_by_the_intervals(make_run, low, said):
    roots = make_run("b", [0.7], ALL, ci95=(0.6, 0.8)), make_run("a", [0.9, 0.9], ALL, ci95=(low, 0.95))
    (fact,) = facts_of(*roots)
    assert fact.figure == "90.0 %"
    assert "2 seeds, 15 images of split test" in fact.text
    assert "20.0 points ahead of b" in fact.text
    assert said in fact.text
    assert f"{100 * low:.1f}\u201395.0" in fact.text


def test_one_run_is_not_called_best(make_run):
    (fact,) = facts_of(make_run("a", [0.7], ALL))
    assert fact.title == "Top-1"
    assert "ahead" not in fact.text


def test_last_tap_against_all_prefers_the_same_head(make_run):
    last = make_run("last", [0.5], LAST, ci95=(0.4, 0.55))
    many = make_run("all", [0.625], ALL, ci95=(0.6, 0.7))
    combo = make_run("combo", [0.75], ALL, head="combo", ci95=(0.7, 0.8), recipe={"epochs": 3})
    fact = facts_of(last, many, combo)[1]
    assert fact.figure == "+12.5 pts"
    assert "net, the linear head: 50.0 % from the last tap alone, 62.5 % from 3 taps (last, all)" in fact.text
    assert "epochs" not in fact.text
    other = facts_of(last, combo)[1]
    assert other.figure == "+25.0 pts"
    assert "heads differ too" in other.text
    assert "12 and 3 epochs" in other.text


def test_a_loss_is_shown_as_one_and_another_tap_is_not_the_last(make_run):
    last, many = make_run("last", [0.5], LAST), make_run("all", [0.4], ALL)
    fact = facts_of(last, many)[1]
    assert fact.figure == "\N{MINUS SIGN}10.0 pts"
    assert "stays open" in fact.text
    first = make_run("first", [0.5], {"net": ["stages.0"]})
    assert len(facts_of(first, many)) == 1


def test_selection_names_what_was_kept_and_what_it_saves(make_run):
    make_run("sel/scoring", [0.5], BOTH, head="combo")
    fact = facts_of(make_run("sel", [0.6], ALL, head="combo"))[1]
    assert fact.figure == "1 of 2"
    assert "sel kept net and reached 60.0 %" in fact.text
    assert "96\xa0B an image instead of 128\xa0B" in fact.text


def test_a_random_control_above_a_trained_backbone_is_a_warning(make_run, scores):
    good = scores()
    (_, fact) = facts_of(make_run("good", [0.6], BOTH, head="combo", relevance=good))
    assert fact.figure == "2 of 2"
    assert "wild [random:0 weights] scores 3.00, the highest trained backbone, net, 6.00" in fact.text
    bad = json.loads(json.dumps(good))
    for entry in bad["backbones"]:
        entry["raw_score"] = 1 / entry["raw_score"]
    (_, fact) = facts_of(make_run("bad", [0.6], BOTH, head="combo", relevance=bad))
    assert fact.figure == "1 of 2"
    assert "above 1 trained backbone: read these scores with caution" in fact.text


def test_runs_on_different_images_are_not_ranked(make_run, cache):
    roots = make_run("a", [0.6], LAST), make_run("b", [0.9], ALL)
    assert comparable(read_runs(roots))
    results = json.loads((roots[0] / "results.json").read_text()) | {"n": 3}
    (roots[0] / "results.json").write_text(json.dumps(results))
    (fact,) = facts_of(*roots)
    assert fact.figure == "Not ranked"
    shutil.rmtree(cache.paths.root)
    assert not comparable(read_runs(roots))

"""Headlines: true numbers, and no claim beyond them."""

import json
import shutil

import numpy as np
import pytest

from loffta.reporting.comparisons import Comparisons
from loffta.reporting.facts import compare_best, headline_facts
from loffta.reporting.tables import read_runs
from loffta.tasks.bootstrap import image_weights

ALL = {"net": ["stages.0", "stages.1", "stages.2"]}
LAST = {"net": ["stages.2"]}
BOTH = ALL | {"wild": ["stages.0"]}


def first(*counts):
    """Seeds that are right on so many of the 15 images, the first ones."""
    return [np.arange(15) < count for count in counts]


def facts_of(*roots):
    runs = read_runs(roots)
    return headline_facts(runs, Comparisons(runs))


def plain_interval(one, other):
    """Of the difference, image by image; one seed each."""
    order = np.argsort([f"{row}.png" for row in range(8, 23)])  # images by their keys: rows 8 to 22
    one, other = np.asarray(one)[:, order], np.asarray(other)[:, order]
    (weights,) = image_weights(15)
    drawn = [np.repeat(np.arange(15), row) for row in weights.astype(int)]
    points = [100 * (one[0, rows].mean() - other[0, rows].mean()) for rows in drawn]
    return np.quantile(points, [0.025, 0.975])


@pytest.mark.parametrize(("n_right", "said"), [(9, "more than chance"), (13, "open: chance may have done it")])
def test_the_lead_of_the_best_run_is_paired_by_image(make_run, n_right, said):
    """15 and 9 or 13 of 15 images; the intervals of both would overlap either way."""
    best, second = first(15), first(n_right)
    roots = make_run("b", [], ALL, right=second, ci95=(0.5, 1)), make_run("a", [], ALL, right=best, ci95=(0.6, 1))
    (fact,) = facts_of(*roots)
    low, high = plain_interval(best, second)
    assert fact.figure == "100.0 %"
    assert "1 seed, 15 images of split test" in fact.text
    assert (
        f"Against the second, b: +{100 * (15 - n_right) / 15:.1f} [+{low:.1f}, +{high:.1f}], {said}".replace(
            "+0.0", "0.0"
        )
        in fact.text
    )
    assert "chosen from 2 runs by its score on these very images" in fact.text
    assert "60.0\u2013100.0" in fact.text
    runs = read_runs(roots)
    (told,) = (found.as_json() for found in compare_best(runs, Comparisons(runs)))
    assert (told["metric"], told["run"], told["other"]) == ("top1", "a", "b")
    assert told["mean"] == pytest.approx((15 - n_right) / 15)
    assert told["ci95"] == pytest.approx((low / 100, high / 100))
    assert told["verdict"] == ("better" if n_right == 9 else "open")
    assert (told["n_images"], told["n_seeds"]) == (15, (1, 1))


def test_seeds_count_too(make_run):
    """Seeds far apart: their mean could be anything, whatever the images say."""
    steady = make_run("b", [], ALL, right=first(6, 6, 6))
    wild = make_run("a", [], ALL, right=first(3, 9, 15))
    (fact,) = facts_of(steady, wild)
    assert "+20.0 [\N{MINUS SIGN}" in fact.text
    assert (
        "open: chance may have done it (points and 95 % interval, paired over the same images and seeds)" in fact.text
    )
    (fact,) = facts_of(steady, make_run("a", [], ALL, right=first(15, 15, 15)))
    assert "more than chance" in fact.text


@pytest.mark.parametrize("spoil", ["gone", "garbage", "other"])
def test_what_predictions_do_not_show_is_not_known(make_run, spoil):
    roots = make_run("b", [], ALL, right=first(9)), make_run("a", [], ALL, right=first(15))
    path = roots[0] / "predictions.parquet"
    if spoil == "gone":
        path.unlink()
    elif spoil == "garbage":
        path.write_bytes(b"PAR1" + bytes(99))
    else:
        shutil.copy(roots[1] / "predictions.parquet", path)
    (fact,) = facts_of(*roots)
    why = {
        "gone": "b: this run has no predictions",
        "garbage": "b: these predictions are damaged",
        "other": "b: its predictions give another score than its results",
    }
    assert f"whether it is more than chance is not known ({why[spoil]}" in fact.text
    runs = read_runs(roots)
    assert compare_best(runs, Comparisons(runs))[0].as_json()["unknown"].startswith(why[spoil])


def test_one_run_is_not_called_best(make_run):
    (fact,) = facts_of(make_run("a", [0.7], ALL))
    assert fact.title == "Top-1"
    assert "ahead" not in fact.text
    assert "chosen" not in fact.text


def test_last_tap_against_all_prefers_the_same_head(make_run):
    last = make_run("last", [], LAST, right=first(6))
    many = make_run("all", [], ALL, right=first(12))
    combo = make_run("combo", [], ALL, head="combo", right=first(15), recipe={"epochs": 3})
    fact = facts_of(last, many, combo)[1]
    assert fact.figure == "+40.0 pts"
    assert "net, the linear head: 40.0 % from the last tap alone, 80.0 % from 3 taps (last, all)" in fact.text
    low, high = plain_interval(first(12), first(6))
    assert f"The difference: +40.0 [+{low:.1f}, +{high:.1f}], more than chance" in fact.text
    assert "epochs" not in fact.text
    other = facts_of(last, combo)[1]
    assert other.figure == "+60.0 pts"
    assert "heads differ too" in other.text
    assert "12 and 3 epochs" in other.text


def test_a_loss_is_shown_as_one_and_another_tap_is_not_the_last(make_run):
    last, many = make_run("last", [], LAST, right=first(12)), make_run("all", [], ALL, right=first(9))
    fact = facts_of(last, many)[1]
    assert fact.figure == "\N{MINUS SIGN}20.0 pts"
    assert "\N{MINUS SIGN}20.0 [\N{MINUS SIGN}" in fact.text
    lowest = make_run("first", [0.5], {"net": ["stages.0"]})
    assert len(facts_of(lowest, many)) == 1


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
    """The same keys and labels are the same images, wherever the cache is now; without predictions it decides."""
    roots = make_run("a", [], LAST, right=first(9)), make_run("b", [], ALL, right=first(15))

    def comparable():
        runs = read_runs(roots)
        return Comparisons(runs).same_images(runs)

    assert comparable()
    shutil.copytree(cache.paths.root, cache.paths.root.parent / "moved")
    config = roots[0] / "config.yaml"
    config.write_text(config.read_text().replace(str(cache.paths.root), str(cache.paths.root.parent / "gone")))
    assert comparable()
    (roots[0] / "predictions.parquet").unlink()
    assert not comparable()
    (fact,) = facts_of(*roots)
    assert fact.figure == "Not ranked"


def test_other_labels_are_other_images(make_run):
    from loffta.runs.run import read_predictions, write_predictions

    roots = make_run("a", [], LAST, right=first(9)), make_run("b", [], ALL, right=first(15))
    path = roots[0] / "predictions.parquet"
    columns = read_predictions(path)
    columns["label"], columns["predicted"] = 1 - columns["label"], 1 - columns["predicted"]
    write_predictions(path, columns)
    (fact,) = facts_of(*roots)
    assert fact.figure == "Not ranked"

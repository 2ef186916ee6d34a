"""The section about probabilities: its figures are those of results.json, and its diagrams drawn to scale."""

import numpy as np
import pytest

from loffta.evaluation.calibrated import _believed
from loffta.reporting.diagrams import reliability_diagram, risk_coverage
from loffta.reporting.page import write_report
from loffta.reporting.tables import read_runs
from tests.reporting.test_page import HOSTILE, Page

LAST = {"net": ["stages.2"]}


def calibration(temperature=None, split="val"):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=15)
    logits = (rng.normal(size=(15, 2)) + np.eye(2)[labels]).astype(np.float32)
    found = {"as_trained": _believed([logits], labels)}
    if temperature is not None:
        found["calibrated"] = _believed([logits / temperature], labels)
        found["temperature"] = {"split": split, "images": 40, "per_seed": [temperature], "of_mean": temperature}
    return found


@pytest.fixture
def page(tmp_path):
    def make(*roots):
        write_report(read_runs(roots), tmp_path / "r.html")
        return Page((tmp_path / "r.html").read_text())

    return make


def test_figures_before_and_after_are_those_of_the_results(make_run, page):
    found = calibration(1.7)
    made = page(make_run("warm", [0.8], LAST, calibration=found), make_run("old", [0.7], LAST))
    rows = [row for row in made.rows if row and row[0] == "warm"]
    (row,) = (row for row in rows if row[-1].startswith("1.70"))
    for place, name, show in ((1, "ece_width15", "{:.1f}"), (4, "brier_sum", "{:.3f}")):
        before, after = (found[part]["figures"][name]["mean"] for part in ("as_trained", "calibrated"))
        scale = 100 if "f" in show and ".1" in show else 1
        assert row[place] == f"{show.format(scale * before)}|calibrated {show.format(scale * after)}"
    assert row[-1] == "1.70|40 images of val"
    assert not [row for row in made.rows if row and row[0] == "old" and "calibrated" in "".join(row)]
    bins = [attrs for tag, attrs in made.tags if tag == "rect" and attrs.get("class") == "bin"]
    filled = sum(one["images"] > 0 for part in ("as_trained", "calibrated") for one in found[part]["bins"])
    assert len(bins) == filled


def test_a_temperature_of_the_images_shown_is_said(make_run, page):
    made = page(make_run("warm", [0.8], LAST, calibration=calibration(1.7, split="test")))
    assert "40 images of test, the very images measured here" in "|".join(made.text)


def test_runs_without_it_have_no_section(make_run, page):
    assert "Calibration" not in page(make_run("old", [0.7], LAST)).text


def test_hostile_names_are_text(make_run, page):
    made = page(make_run("warm", [0.8], LAST, calibration=calibration(1.7, split=HOSTILE)))
    assert "script" not in {tag for tag, _ in made.tags}


def test_bars_are_as_high_as_the_accuracy_and_dots_as_far_as_the_confidence():
    bins = [{"images": 0, "confidence": None, "accuracy": None} for _ in range(10)]
    bins[5] = {"images": 8, "confidence": 0.55, "accuracy": 0.25}
    bins[9] = {"images": 2, "confidence": 0.95, "accuracy": 1.0}
    found = Page(reliability_diagram(bins, title="t"))
    low, high = [a for tag, a in found.tags if a.get("class") == "bin"]
    assert float(low["height"]) / float(high["height"]) == pytest.approx(0.25, abs=1e-3)
    dots = [a for _, a in found.tags if a.get("class") == "confidence"]
    left, right = 46.0, 410.0
    assert [float(dot["cx"]) for dot in dots] == pytest.approx(
        [left + (right - left) * c for c in (0.55, 0.95)], abs=0.01
    )
    assert [dot["cy"] for dot in dots] == [low["y"], high["y"]]
    assert "8 images: confidence 55.0 %, accuracy 25.0 %" in found.text


def test_the_curve_goes_through_every_risk():
    found = Page(risk_coverage([0.0, 0.1, 0.2, 0.4], title="t"))
    (points,) = (a["points"] for tag, a in found.tags if tag == "polyline")
    x, y = np.array([[float(v) for v in point.split(",")] for point in points.split()]).T
    np.testing.assert_allclose(np.diff(x), 91, atol=0.02)
    np.testing.assert_allclose((y[0] - y) / (y[0] - y[3]), [0, 0.25, 0.5, 1], atol=1e-3)


def test_no_errors_at_all_still_draw():
    Page(risk_coverage([0.0, 0.0], title="t"))

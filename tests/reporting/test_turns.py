"""Sections about folds and few labels: figures where they belong, whatever runs are called."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from loffta.reporting.tables import read_runs
from loffta.reporting.turns import curves_section, folds_section, learning_curve

HOSTILE = "<script>alert(1)</script>"
SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)


def metric(mean, std=0.01):
    return {"mean": mean, "std": std, "per_seed": [mean - std, mean + std], "ci95": [mean - 0.1, mean + 0.1]}


def point(shots, mean):
    return {
        "shots": shots,
        "images": 2 * shots,
        "metrics": {"top1": metric(mean)},
        "interval": [mean - 0.1, mean + 0.1],
    }


@pytest.fixture
def curve():
    fit = {"a": 0.1, "b": 0.3, "c": 0.5, "predicted": 0.8, "off": 0.0, "holds": True, "more_per_point": 4.0}
    points = [point(1, 0.6), point(4, 0.75), point(16, 0.825)]
    return {"metric": "top1", "draws": 2, "points": points, "fit": fit, "told": "about 4 more labels <b>"}


def test_folds_stand_beside_all_predictions(make_run):
    folds = {"n": 3, "group": HOSTILE, "groups": 7, "images": [5, 5, 5]}
    folds["metrics"] = {"top1": {"mean": 0.8, "std": 0.05, "per_fold": [0.75, None, 0.85]}}
    run = make_run("<i>cross", [0.81], {"net": ["stages.0"]}, folds=folds)
    plain = make_run("plain", [0.8], {"net": ["stages.0"]})
    section = folds_section(read_runs([run, plain]))
    cells = re.findall(r"<td.*?<div>(.*?)</div></td>", section)
    assert len(cells) == 6  # of one run
    assert cells[1].startswith("3<small>7 by ")
    assert cells[3] == "80.0 ± 5.0 %"
    assert cells[4] == "75.0 to 85.0 %"
    assert cells[5].startswith("81.0<small>")
    assert "<script" not in section
    assert "<i>" not in section
    assert folds_section(read_runs([plain])) == ""


def test_points_and_law_lie_where_they_belong(curve):
    root = ET.fromstring(learning_curve(curve, (0.5, 1.0), 16, title="x"))
    dots = [e for e in root.iter("circle") if e.get("class") == "point"]
    xs, ys = [float(dot.get("cx")) for dot in dots], [float(dot.get("cy")) for dot in dots]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.02)  # 1, 4, 16: logarithmic
    height = (ys[0] - ys[2]) / (0.825 - 0.6)  # units per share
    assert ys[0] - ys[1] == pytest.approx(height * 0.15, abs=0.02)
    (law,) = [e for e in root.iter("polyline") if e.get("class") == "law"]
    drawn = [tuple(map(float, pair.split(","))) for pair in law.get("points").split()]
    for x, y in (drawn[0], drawn[20], drawn[-1]):
        n = math.exp((x - xs[0]) / (xs[2] - xs[0]) * math.log(16))
        assert ys[0] - y == pytest.approx(height * (1 - 0.1 - 0.3 * n**-0.5 - 0.6), abs=0.1)
    hovers = [e.text for e in root.iter("title")]
    assert "1 label a class: 60.0 %" in hovers
    assert "16 labels a class: 82.5 %" in hovers


def test_a_curve_without_a_law_has_points_alone(curve):
    svg = learning_curve(curve | {"fit": None, "points": [point(1, 0.5)]}, (0.0, 1.0), 1, title="x")
    assert len(list(ET.fromstring(svg).iter("circle"))) == 1
    assert "law" not in svg


def test_every_run_with_draws_has_a_panel_and_its_sentence(make_run, curve):
    one = make_run("<b>one", [0.8, 0.85], {"net": ["stages.0"]}, learning_curve=curve)
    two = make_run("two", [0.8], {"net": ["stages.0"]}, learning_curve=curve | {"points": [point(2, 0.9)], "fit": None})
    section = curves_section(read_runs([one, two]))
    assert len(SVG.findall(section)) == 2
    assert "<b>one" not in section
    assert "about 4 more labels &lt;b&gt;" in section
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', section)
    assert heads == ["Run", "Draws", "1 a class", "2 a class", "4 a class", "16 a class"]
    assert "75.0 ± 1.0<small>65.0\N{EN DASH}85.0</small>" in section
    assert curves_section(read_runs([make_run("none", [0.8], {"net": ["stages.0"]})])) == ""

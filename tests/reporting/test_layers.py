"""Heat maps of layers: which run, column and colour every weight gets."""

import re
import xml.etree.ElementTree as ET

import pytest

from loffta.reporting.layers import layer_sections, merge_columns
from loffta.reporting.tables import read_runs

HOSTILE = "<script>alert(1)</script>"
KEPT = (("embed", 0.4), ("blocks.0", 0.1))
SVG = re.compile(r"<svg.*?</svg>", re.DOTALL)


def entry(backbone, tap, kind, mean):
    return {"backbone": backbone, "tap": tap, "kind": kind, "mean": mean, "std": None, "per_seed": [mean]}


@pytest.fixture
def told(make_run):
    """A finished fusion run: told(name, [(backbone, tap, kind, weight)])."""

    def make(name, weights, **extra):
        attention = [entry(*weight) for weight in weights]
        return make_run(name, [0.8], {"net": ["stages.0"]}, head="fusion", attention=attention, **extra)

    return make


def cells_of(svg):
    """By hover, without the row's name: the shade."""
    root = ET.fromstring(svg)
    groups = [group for group in root.iter("g") if group.find("rect") is not None]
    return [
        (group.find("title").text.split(", ")[-1], float(group.find("rect").get("style").split("fill-opacity:")[1]))
        for group in groups
    ]


def test_a_panel_per_backbone_in_one_range_of_colours(told):
    first = [("net", "s.0", "cls", 0.1), ("net", "s.1", "cls", 0.2), ("net", "s.0", "mean", 0.2)]
    run = told("one", [*first, ("vit", "b.0", "mean", 0.5)])
    section = layer_sections(read_runs([run]))
    net, vit = SVG.findall(section)
    assert cells_of(net) == [
        ("class token of s.0: 10.0 %", pytest.approx(0.12 + 0.88 * 0.2)),
        ("class token of s.1: 20.0 %", pytest.approx(0.12 + 0.88 * 0.4)),
        ("mean of s.0: 20.0 %", pytest.approx(0.12 + 0.88 * 0.4)),
    ]
    assert cells_of(vit) == [("mean of b.0: 50.0 %", 1.0)]
    assert "the fullest colour is 50.0 % in all panels" in section
    assert "<strong>net</strong>" in section


def test_runs_of_one_backbone_share_a_panel(told):
    one = told("one", [("net", "s.0", "cls", 0.4), ("net", "s.2", "cls", 0.3), ("net", "s.2", "mean", 0.3)])
    two = told("two", [("net", "s.1", "cls", 1.0)], online={"source": "vtab:eurosat"})
    (svg,) = SVG.findall(layer_sections(read_runs([one, two])))
    cells = cells_of(svg)
    assert [name for name, _ in cells] == [
        "class token of s.0: 40.0 %",
        "class token of s.2: 30.0 %",
        "mean of s.2: 30.0 %",
        "class token of s.1: 100.0 %",
    ]
    words = ["".join(text.itertext()) for text in ET.fromstring(svg).iter("text")]
    assert "vtab:eurosat" in words
    assert "…t>alert(1)</script>"[-10:] in "".join(words), "the end of a long name"


def test_rows_of_the_same_images_are_named_by_their_run(told):
    roots = [told(name, [("net", "s.0", "mean", 1.0)]) for name in ("one", "two")]
    (svg,) = SVG.findall(layer_sections(read_runs(roots)))
    hovers = [title.text for title in ET.fromstring(svg).iter("title")]
    for name in ("one", "two"):
        assert f"{name}, folder:{HOSTILE}, mean of s.0: 100.0 %" in hovers


def test_features_kept_have_a_map_of_their_own(told, make_run):
    kept = [{"backbone": "vit", "tap": tap, "mean": mean, "std": 0.0, "per_seed": [mean]} for tap, mean in KEPT]
    run = make_run("pooled", [0.8], {"net": ["stages.0"]}, head="head2toe", kept=kept)
    section = layer_sections(read_runs([told("one", [("net", "s.0", "cls", 0.1)]), run]))
    attention, features = SVG.findall(section)
    assert cells_of(attention) == [("class token of s.0: 10.0 %", 1.0)]
    assert cells_of(features) == [
        ("features of embed: 40.0 %", 1.0),
        ("features of blocks.0: 10.0 %", pytest.approx(0.12 + 0.88 * 0.25)),
    ]
    assert section.index("Attention over layers") < section.index("Features kept")
    assert "the fullest colour is 10.0 %" in section
    assert "the fullest colour is 40.0 %" in section


def test_hostile_names_are_text(told):
    section = layer_sections(read_runs([told("<b>x", [(HOSTILE, HOSTILE, "cls", 1.0)])]))
    assert "<script" not in section
    assert "<b>x" not in section


def test_runs_that_tell_nothing_have_no_section(make_run):
    assert layer_sections(read_runs([make_run("lin", [0.8], {"net": ["stages.0"]})])) == ""


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (["c0 c1 m0 m1"], "c0 c1 m0 m1"),
        (["m0 c0", "c0 m0"], "c0 m0"),
        (["c2 m2", "c0 c1 c2 m0 m1 m2"], "c0 c1 c2 m0 m1 m2"),
        (["c0 c2 c4", "c2 c3"], "c0 c2 c3 c4"),
        (["m5", "c1 c2"], "c1 c2 m5"),
    ],
)
def test_columns_of_several_runs(runs, expected):
    kinds = {"c": "cls", "m": "mean"}
    found = merge_columns([[(kinds[word[0]], word[1]) for word in run.split()] for run in runs])
    assert " ".join(kind[0] + tap for kind, tap in found) == expected

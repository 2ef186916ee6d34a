"""Gains, shares and commands against numbers worked out by hand, on the page and for the terminal."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from loffta_cli.report import command as report_command
from loffta_cli.train import command as train_command

from loffta.report.page import render
from loffta.report.tables import read_runs
from loffta.report.worth import format_worth, judge_backbones, judge_layers, sentence, worth_as_json
from loffta.runs import RunPaths

TAPS = ["stages.0", "stages.1", "stages.2"]
NET, WILD = "net", "wild [random:0 weights]"
BOTH = {"net": TAPS, "wild": TAPS[:1]}
TAP_BYTES = 2 * 2 * 4 * 2  # H W D, float16


@pytest.fixture
def whole(make_run, scores):
    """A run of both backbones with relevance."""

    def make(name="whole", mean=0.8, ci95=(0.75, 0.85), taps=None, **options):
        options = {"config": {"recipe": {"relevance_weight": 0.01, "grid": 4}}} | options
        found = scores()
        found["taps"] = [e for e in found["taps"] if e["backbone"] == NET or e["tap"] == "stages.0"]
        return make_run(name, [mean], taps or BOTH, head="combo", ci95=ci95, relevance=found, **options)

    return make


@pytest.fixture
def without(make_run):
    """A run of `net` alone."""

    def make(name="less", mean=0.6, ci95=(0.55, 0.65), taps=None, **options):
        options = {"head": "combo"} | options
        return make_run(name, [mean], taps or {"net": TAPS}, ci95=ci95, **options)

    return make


def worths_of(*roots):
    runs = read_runs(roots)
    return {worth.backbone: worth for worth in judge_backbones(runs[0], runs)}


def test_gain_is_this_run_less_the_one_without(whole, without):
    worths = worths_of(whole(), without())
    gain = worths[WILD].gain
    assert gain.points == pytest.approx(0.2)
    assert (gain.is_open, gain.without) == (False, "less")
    assert gain.differing == ("grid", "relevance_weight")
    assert worths[WILD].command is None
    assert worths[NET].gain is None


@pytest.mark.parametrize(
    ("mean", "ci95", "expected"),
    [
        (0.6, (0.55, 0.65), ["lose 20.0 points, save 25 % of the bytes and 25 % of the forward cost (less)."]),
        (0.81, (0.76, 0.86), ["gain 1.0 points, save 25 %", "overlap, so the difference stays open"]),
        (0.8, (0.75, 0.85), ["neither lose nor gain 0.1 points"]),
    ],
)
def test_the_sentence_says_lose_or_gain(whole, without, mean, ci95, expected):
    said = sentence(worths_of(whole(), without(mean=mean, ci95=ci95))[WILD])
    assert said.startswith(f"Drop {WILD}: ")
    for part in [*expected, "The two differ in grid and relevance_weight, too."]:
        assert part in said
    assert ("overlap" in said) == (mean != 0.6)


@pytest.mark.parametrize(
    "options",
    [
        {"head": "linear"},
        {"config": {"recipe": {"lr": 0.1}}},
        {"config": {"augment": "trivial"}},
        {"config": {"holdout": 0.2}},
        {"train_on": "train+test"},
        {"taps": {"net": TAPS[1:]}},
        {"taps": {"net": TAPS, "wild": TAPS[1:]}},
        {"split": "val"},
        {"n": 14},
        {"task": "multi-label", "metric": "map"},
    ],
)
def test_another_training_is_no_evidence(whole, without, options):
    worth = worths_of(whole(), without(**options))[WILD]
    assert worth.gain is None
    assert sentence(worth) is None
    assert worth.command is not None


def test_the_run_that_differs_in_least_tells(whole, without):
    same = {"config": {"recipe": {"relevance_weight": 0.01, "grid": 4}}}
    gain = worths_of(whole(), without("a", 0.7), without("b", 0.6, **same), without("c", 0.65, **same))[WILD].gain
    assert (gain.without, gain.differing) == ("c", ())


def test_a_layer_has_a_gain_where_a_run_lacks_it_alone(whole, without):
    run, _ = runs = read_runs([whole(), without(taps={"net": [TAPS[0], TAPS[2]], "wild": TAPS[:1]})])
    layers = judge_layers(run, runs)
    assert [(w.backbone, w.tap, w.score) for w in layers[:2]] == [(NET, "stages.0", 6), (NET, "stages.1", 3)]
    assert [w.gain is not None for w in layers] == [w.tap == "stages.1" for w in layers]
    assert {w.read.amount for w in layers} == {TAP_BYTES}
    assert {w.read.share for w in layers} == {1 / 4}


def test_costs_and_their_shares(whole):
    worths = worths_of(whole())
    assert list(worths) == [NET, WILD], "the most relevant first"
    assert (worths[NET].read.amount, worths[NET].read.share) == (3 * TAP_BYTES, 0.75)
    assert (worths[WILD].stored.amount, worths[WILD].stored.share) == (23 * TAP_BYTES, 0.25)
    assert (worths[NET].macs.amount, worths[NET].macs.share) == (3_000_000, 0.75)


def test_unknown_costs_are_not_known(whole, without, cache):
    store = next(store for store in cache.stores() if store.info.recipe["backbone"] == NET)
    path = cache.paths.store_metadata(store.name)
    document = json.loads(path.read_text())
    del document["attributes"]["loffta"]["macs"]  # as in stores of before
    path.write_text(json.dumps(document))
    worths = worths_of(whole(), without())
    assert worths[NET].macs is None
    assert (worths[WILD].macs.amount, worths[WILD].macs.share) == (1_000_000, None)
    said = sentence(worths[WILD])
    assert "save 25 % of the bytes (less). Not known: its share of the forward cost." in said
    run = replace(read_runs([whole()])[0], cache=None)
    run = replace(run, row=replace(run.row, image_bytes=None, tap_bytes=None, backbone_bytes=None))
    assert [(w.read, w.stored, w.macs) for w in judge_backbones(run, [run])] == [(None, None, None)] * 2


def test_the_command_makes_the_missing_run(whole):
    augment = {"preset": "trivial", "hflip_p": 0.25}
    config = {"augment": augment, "recipe": {"relevance_weight": 0.01, "lr": 1e-05, "search_lr": [0.1]}}
    root = whole("it's here", config=config | {"task": "classification", "partial": True, "select": 1})
    words = shlex.split(worths_of(root)[WILD].command)
    assert words[:2] == ["loffta", "train"]
    context = train_command.make_context("train", words[2:])
    run = read_runs([root])[0]
    (kept,) = (choice for choice in run.config.features if choice.startswith("net"))
    assert context.params["cache"] == run.config.cache
    assert context.params["features"] == (kept,)
    assert context.params["out"].name == "it's here-without-wild-random-0-weights"
    assert (context.params["head"], context.params["select"], context.params["partial"]) == ("combo", None, True)
    settings = dict(pair.split("=") for pair in context.params["settings"])
    assert {key: json.loads(value) for key, value in settings.items()} == {
        "relevance_weight": 0.01,
        "lr": 1e-05,
        "search_lr": [0.1],
        "augment.trivial": True,
        "augment.hflip_p": 0.25,
    }


def test_a_scoring_run_is_repeated_beside_its_run(whole):
    root = whole("sel/scoring")
    out = Path(shlex.split(worths_of(root)[NET].command)[-1])
    assert out.parent == root.parent.parent
    assert out.name == "sel-without-net"


def test_one_backbone_or_results_of_before_labels_have_no_command(make_run, scores):
    root = make_run("one", [0.8], {"net": TAPS}, head="combo", relevance=alone(scores()))
    assert worths_of(root)[NET].command is None
    path = RunPaths(root).results("test")
    results = json.loads(path.read_text())
    del results["features"][0]["label"]
    path.write_text(json.dumps(results))
    assert worths_of(root)[NET].gain is None


def alone(found):
    return {level: [entry for entry in entries if entry["backbone"] == NET] for level, entries in found.items()}


def test_runs_without_relevance_have_none(without):
    runs = read_runs([without()])
    assert (judge_backbones(runs[0], runs), judge_layers(runs[0], runs)) == ([], [])
    assert (format_worth(runs), worth_as_json(runs)) == ("", {})


def test_on_the_page(whole, without):
    text = render(read_runs([whole(), without()]))
    assert f"<li>Drop {WILD}: lose 20.0 points" in text
    assert "+20.0 pts<small>without it: less</small>" in text
    assert "3.0\xa0MMACs<small>75 %</small>" in text
    assert text.count("<pre>loffta train ") == 1
    assert "not known" in text


def test_the_command_line_prints_and_emits_it(whole, without, tmp_path):
    arguments = [str(whole()), str(without()), "--out", str(tmp_path / "r.html"), "--json"]
    found = CliRunner().invoke(report_command, arguments)
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    wild = next(line for line in lines if line.startswith(f"  {WILD}"))
    assert wild.split("  ")[-1] == "gain +20.0 pts, read 32\xa0B (25 %), forward 1.0\xa0MMACs (25 %)"
    assert max(map(len, lines[:-1])) <= 110
    worth = json.loads(lines[-1])["worth"]["whole"][1]
    assert worth["backbone"] == WILD
    assert worth["gain"]["points"] == pytest.approx(0.2)
    assert worth["macs"] == {"amount": 1_000_000, "share": 0.25}

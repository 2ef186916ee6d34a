"""Gains, shares and commands against numbers worked out by hand, on the page and for the terminal."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from loffta_cli.report import command as report_command
from loffta_cli.train import command as train_command

from loffta.reporting.comparisons import Comparisons
from loffta.reporting.page import render
from loffta.reporting.tables import read_runs
from loffta.reporting.terminal import format_worth
from loffta.reporting.worth import gain_in_words, judge_backbones, judge_layers, sentence, worth_of_backbones
from loffta.runs.run import RunPaths

TAPS = ["stages.0", "stages.1", "stages.2"]
NET, WILD = "net", "wild [random:0 weights]"
BOTH = {"net": TAPS, "wild": TAPS[:1]}
TAP_BYTES = 2 * 2 * 4 * 2  # H W D, float16


@pytest.fixture
def whole(make_run, scores):
    """A run of both backbones with relevance."""

    def make(name="whole", n_right=12, taps=None, **options):
        options = {"config": {"recipe": {"relevance_weight": 0.01, "grid": 4}}} | options
        found = scores()
        found["taps"] = [e for e in found["taps"] if e["backbone"] == NET or e["tap"] == "stages.0"]
        return make_run(name, [], taps or BOTH, head="combo", right=first(n_right), relevance=found, **options)

    return make


@pytest.fixture
def without(make_run):
    """A run of `net` alone."""

    def make(name="less", n_right=6, taps=None, **options):
        options = {"head": "combo"} | options
        return make_run(name, [], taps or {"net": TAPS}, right=first(n_right), **options)

    return make


def worths_of(*roots):
    runs = read_runs(roots)
    return {worth.backbone: worth for worth in judge_backbones(runs[0], runs, Comparisons(runs))}


def first(n_right):
    """One seed that is right on so many of the 15 images, the first ones."""
    return [np.arange(15) < n_right]


def test_gain_is_this_run_less_the_one_without(whole, without):
    worths = worths_of(whole(), without())
    gain = worths[WILD].gain
    assert gain.points == pytest.approx(0.4)
    assert (gain.verdict, gain.without) == ("better", "less")
    assert gain.ci95 == pytest.approx((3 / 15, 10 / 15)), "of 6 of 15 images, binomial: a standard error of 1.9"
    assert gain.differing == ("grid", "relevance_weight")
    assert worths[WILD].command is None
    assert worths[NET].gain is None


@pytest.mark.parametrize(
    ("n_right", "expected"),
    [
        (6, ["lose 40.0 points, save 25 % of the bytes and 25 % of the forward cost (less).", "[+20.0, +66.7] points"]),
        (13, ["gain 6.7 points, save 25 %", "[\N{MINUS SIGN}20.0, 0.0] points", "chance may have done it"]),
        (12, ["neither lose nor gain 0.1 points"]),
    ],
)
def test_the_sentence_says_lose_or_gain(whole, without, n_right, expected):
    said = sentence(worths_of(whole(), without(n_right=n_right))[WILD], "top1")
    assert said.startswith(f"Drop {WILD}: ")
    for part in [*expected, "The two differ in grid and relevance_weight, too."]:
        assert part in said
    assert ("chance" in said) == (n_right != 6)


def test_a_gain_without_predictions_is_not_tested(whole, without):
    other = without()
    (other / "predictions.parquet").unlink()
    worth = worths_of(whole(), other)[WILD]
    assert worth.gain.points == pytest.approx(0.4)
    assert gain_in_words(worth.gain, "top1") == "+40.0 pts, not tested"
    assert "not known: less: this run has no predictions." in sentence(worth, "top1")


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
        {"task": "multi-label", "metric": "map"},
    ],
)
def test_another_training_is_no_evidence(whole, without, options):
    worth = worths_of(whole(), without(**options))[WILD]
    assert worth.gain is None
    assert sentence(worth, "top1") is None
    assert worth.command is not None


def test_the_run_that_differs_in_least_tells(whole, without):
    same = {"config": {"recipe": {"relevance_weight": 0.01, "grid": 4}}}
    gain = worths_of(whole(), without("a", 9), without("b", 6, **same), without("c", 7, **same))[WILD].gain
    assert (gain.without, gain.differing) == ("c", ())


def test_a_layer_has_a_gain_where_a_run_lacks_it_alone(whole, without):
    run, _ = runs = read_runs([whole(), without(taps={"net": [TAPS[0], TAPS[2]], "wild": TAPS[:1]})])
    layers = judge_layers(run, runs, Comparisons(runs))
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
    said = sentence(worths[WILD], "top1")
    assert "save 25 % of the bytes (less). Not known: its share of the forward cost." in said
    run = replace(read_runs([whole()])[0], cache=None)
    run = replace(run, row=replace(run.row, image_bytes=None, tap_bytes=None, backbone_bytes=None))
    assert [(w.read, w.stored, w.macs) for w in judge_backbones(run, [run], Comparisons([run]))] == [
        (None, None, None)
    ] * 2


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
    found = Comparisons(runs)
    assert (judge_backbones(runs[0], runs, found), judge_layers(runs[0], runs, found)) == ([], [])
    assert (format_worth(runs, found), worth_of_backbones(runs, found)) == ("", {})


def test_on_the_page(whole, without):
    runs = read_runs([whole(), without()])
    text = render(runs, Comparisons(runs))
    assert f"<li>Drop {WILD}: lose 40.0 points" in text
    assert "+40.0 pts [+20.0, +66.7]<small>without it: less</small>" in text
    assert "3.0\xa0MMACs<small>75 %</small>" in text
    assert text.count("<pre>loffta train ") == 1
    assert "not known" in text


def test_the_command_line_prints_and_emits_it(whole, without, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = [str(whole()), str(without()), "--out", str(tmp_path / "r.html"), "--json"]
    found = CliRunner().invoke(report_command, arguments)
    assert found.exit_code == 0, found.output
    *lines, last = found.output.splitlines()
    said = " ".join(" ".join(lines).split())
    assert f"3.00 {WILD}: gain +40.0 pts [+20.0, +66.7], read 32 B (25 %), forward 1.0 MMACs (25 %)" in said
    assert "whole has the highest top-1, chosen on split test itself." in said
    assert "less: +40.0 [+20.0, +66.7], more than chance" in said
    assert max(map(len, lines)) <= 80
    told = json.loads(last)
    worth = told["worth"]["whole"][1]
    assert worth["backbone"] == WILD
    assert worth["gain"]["points"] == pytest.approx(0.4)
    assert worth["gain"]["ci95"] == told["comparisons"][0]["ci95"] == pytest.approx([3 / 15, 10 / 15])
    assert worth["macs"] == {"amount": 1_000_000, "share": 0.25}

"""Tasks from the command line: the labels choose, all metrics are printed, what cannot be learnt is said at once."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from loffta_cli.main import main

from loffta.runs.run import RunPaths
from tests.caches import FakeStore, make_cache, make_table, separable

pytestmark = pytest.mark.usefixtures("quiet_process")


@pytest.fixture
def make(tmp_path):
    """A cache of 40 images whose labels are those of `columns`."""

    def make(labels=(-1,) * 40, classes=("a", "b", "c"), **columns):
        _, grids = separable(40)
        table = make_table(labels, ["train"] * 24 + ["test"] * 16, classes=classes)
        table = dataclasses.replace(table, **columns)
        return str(make_cache(tmp_path / "cache", table, [FakeStore("net", {"x": grids})]).paths.root)

    return make


def train(cache, tmp_path, *options):
    return main(["train", cache, "--head", "linear", "--out", str(tmp_path / "run"), "--set", "epochs=1", *options])


def test_several_classes_per_image(make, tmp_path, capsys):
    cache = make(label_sets=[(i % 3,) if i % 5 else (0, 1) for i in range(40)], classes=("a", "b", "c", "never"))
    assert train(cache, tmp_path, "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines[:6]] == ["mean", "macro", "log-loss", "ROC", "mean", "ROC"]
    assert lines[4] == "mean AP: 1 of 4 classes are on no image (never) and are left out"
    results = json.loads(lines[-1])
    assert (results["task"], results["per_class"][3]) == ("multi-label", {"class": "never", "images": 0, "ap": None})
    assert yaml.safe_load(RunPaths(tmp_path / "run").config.read_text())["task"] == "multi-label"
    assert main(["evaluate", str(tmp_path / "run"), "--split", "train"]) == 0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    assert "Mean average precision" in (tmp_path / "r.html").read_text()


def test_a_number_per_image(make, tmp_path, capsys):
    cache = make(values=100.0 + np.arange(40) % 3, classes=())
    assert train(cache, tmp_path, "--set", "loss=huber", "--set", "lr=0.1", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    results = json.loads(lines[-1])
    assert [line.split(" ")[0] for line in lines[:4]] == ["MAE", "RMSE", "R\N{SUPERSCRIPT TWO}", "Spearman"]
    assert (results["task"], results["recipe"]["loss"]) == ("regression", "huber")
    assert lines[0].startswith(f"MAE {results['metrics']['mae']['mean']:.4g}"[:8])
    assert main(["evaluate", str(tmp_path / "run"), "--split", "train"]) == 0
    assert main(["info", cache]) == 0
    assert "regression" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    assert "Predicted by true value" in (tmp_path / "r.html").read_text()


def test_one_class_per_image(make, tmp_path, capsys):
    cache = make(np.arange(40) % 3, classes=("1", "10", "2"))
    assert train(cache, tmp_path) == 0
    lines = capsys.readouterr().out.partition("written to ")[0].splitlines()
    metrics = json.loads(RunPaths(tmp_path / "run").results("test").read_text())["metrics"]
    assert list(metrics) == ["top1", "balanced_accuracy", "f1", "log_loss", "kappa", "roc_auc"]
    assert lines.pop().startswith("calibration: ECE (15 bins of equal width) ")
    assert [line.split(",")[0] for line in lines] == [
        f"{words} {100 * metrics[name]['mean']:.1f} %" if unit else f"{words} {metrics[name]['mean']:.3f}"
        for name, words, unit in (
            ("top1", "top-1", True),
            ("balanced_accuracy", "balanced accuracy", True),
            ("f1", "macro F1", True),
            ("log_loss", "log-loss", False),
            ("kappa", "quadratic kappa", True),
            ("roc_auc", "ROC AUC", True),
        )
    ]
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "True class by predicted class" in page
    assert "Quadratic kappa %" in page


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        (
            {"values": np.full(40, 0.5)},
            [],
            ["images of split", "have the value 0.5", "choose a split with several values"],
        ),
        ({"label_sets": [(0,)] * 40}, ["--set", "loss=huber"], ["the loss 'huber' is for numbers"]),
        (
            {"values": np.arange(40) / 7},
            ["--task", "multi-label"],
            ["are regression, and multi-label needs any number"],
        ),
        ({"label_sets": [(0,)] * 40}, ["--task", "classification"], ["leave --task out, which chooses multi-label"]),
        ({"label_sets": [(0,)] * 24 + [None] * 16}, [], ["the image set has no label in split 'test'", "known: train"]),
    ],
)
def test_labels_that_cannot_be_learnt(make, tmp_path, capsys, columns, options, words):
    assert train(make(**columns), tmp_path, *options) in (1, 2)
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == []
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()

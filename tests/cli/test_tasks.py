"""Tasks from the command line: the labels choose, all metrics are printed, what cannot be learnt is said at once."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import yaml
from loffta_cli.main import main

from loffta.runs import RunPaths

from ..caches import FakeStore, make_cache, make_table, separable


@pytest.fixture(autouse=True)
def quiet_process(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, 10, 12)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    assert [line.split()[0] for line in lines[:4]] == ["map", "roc_auc", "map:", "roc_auc:"]
    assert lines[2] == "map: 1 of 4 classes are on no image (never) and are left out"
    results = json.loads(lines[-1])
    assert (results["task"], results["per_class"][3]) == ("multi-label", {"class": "never", "images": 0, "ap": None})
    assert yaml.safe_load(RunPaths(tmp_path / "run").config.read_text())["task"] == "multi-label"
    assert main(["evaluate", str(tmp_path / "run"), "--split", "train"]) == 0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    assert "Mean average precision" in (tmp_path / "r.html").read_text()


def test_one_class_per_image(make, tmp_path, capsys):
    cache = make(np.arange(40) % 3)
    assert train(cache, tmp_path) == 0
    names = ["top1", "balanced_accuracy", "macro_recall", "kappa", "roc_auc"]
    told = capsys.readouterr().out.partition("written to ")[0]
    assert [line.split()[0] for line in told.splitlines()] == names
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert "True class by predicted class" in page
    assert "Quadratic kappa %" in page


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"values": np.arange(40) / 7}, [], ["are regression, and no task learns these"]),
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
    assert train(make(**columns), tmp_path, *options) == 1
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == []
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()

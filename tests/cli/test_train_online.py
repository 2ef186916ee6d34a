"""`loffta train --online`: its options, what does not go together, and the commands on the run behind it."""

import json
import os

import pytest
import torch
import yaml
from loffta_cli.main import main

from loffta.reporting.tables import read_runs
from loffta.runs.run import RunPaths
from tests.fakes import PngSource
from tests.online.runs import N, loader


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setattr(os, "fsync", lambda _: None)
    torch.set_num_threads(1)  # another number gives other last bits


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--online", "demo:digits"], "--online needs a backbone"),
        (["--backbone", "test_vit"], "--backbone is for training without a cache"),
        (["cache", "--follow-links"], "--follow-links is for training without a cache"),
        (["cache", "--online", "demo:digits"], "exclude each other"),
        (["--online", "demo:digits", "--backbone", "test_vit", "--lr-backbone", "1e-3"], "add --unfrozen"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, options, words):
    assert main(["train", "--out", str(tmp_path / "run"), *options]) == 2
    assert words in capsys.readouterr().err


def test_no_bad_image_at_all_can_be_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("loffta.images.sources.open_source", lambda _: PngSource(N, {1: b""}))
    monkeypatch.setattr("loffta.extraction.begin.backbone_loader", lambda _: loader())
    words = ["train", "--online", "fake:png", "--backbone", "fake", "--weights", "random:0", "--image-px", "16"]
    words += ["--taps", "blocks.0", "--set", "epochs=1", "--device", "cpu", "--max-bad-frac", "0"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 3
    assert "1 of 15 images cannot be used" in capsys.readouterr().err
    assert yaml.safe_load(RunPaths(tmp_path / "run").config.read_text())["online"]["max_bad_frac"] == 0


def test_the_command_and_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("loffta.images.sources.open_source", lambda _: PngSource(N))
    monkeypatch.setattr("loffta.extraction.begin.backbone_loader", lambda _: loader())
    out = tmp_path / "run"
    words = ["train", "--online", "table:x", "--image-root", "/y", "--backbone", "fake", "--weights", "random:0"]
    words += [
        "--image-px",
        "16",
        "--taps",
        "blocks.0",
        "--pooling",
        "mean",
        "--augment-images",
        "none",
        "--max-bad-frac",
        "0.2",
    ]
    words += ["--out", str(out), "--set", "epochs=1", "--seeds", "2", "--device", "cpu", "--json"]
    assert main(words) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = yaml.safe_load(RunPaths(out).config.read_text())
    backbone = {"name": "fake", "weights": "random:0", "taps": "blocks.0", "image_px": 16}
    assert config["online"] == {
        "source": "table:x#root=/y", "backbone": backbone, "unfrozen": False, "pooling": "mean", "resize": "squash",
        "augment": "none", "lr_backbone": 1e-5, "max_bad_frac": 0.2, "images_digest": PngSource(N).listing().digest,
        "backbone_hash": results["features"][0]["recipe_hash"], "background": "#ffffff", "range": "auto",
    }  # fmt: skip
    (row,) = (run.row for run in read_runs([out]))
    assert (row.head, row.taps, row.n_seeds) == ("online-linear", {"fake [random:0 weights]": ("blocks.0",)}, 2)
    assert main(["evaluate", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == results
    assert main(["evaluate", str(out), "--split", "train"]) == 2
    assert "was trained online, and measured on split 'test'" in capsys.readouterr().err
    assert main(["predict", str(out), str(tmp_path), "--out", str(tmp_path / "p.parquet"), "--device", "cpu"]) == 1
    assert "this run was trained online" in capsys.readouterr().err

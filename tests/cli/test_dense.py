"""Dense heads from the command line: the targets choose the task, results say their protocol, other commands say no."""

import json
import shutil

import pytest

from loffta.runs.run import RunPaths
from tests.cli.small import VIT, assert_error
from tests.training.denseruns import dense_cache

pytestmark = pytest.mark.usefixtures("quiet_process")
SHORT = ["--set", "min_steps=null", "--set", "output_px=16", "--set", "batch_size=8", "--device", "cpu"]


def test_from_train_to_evaluate(command, tmp_path):
    cache, run = dense_cache(tmp_path / "cache", missing=(3, 25)).paths.root, tmp_path / "run"
    train = ["train", cache, "--head", "dense-linear", *SHORT, "--out", run, "--protocol", "linear-fixed"]
    code, out, err = command(*train, "--json")
    assert code == 0, err
    *lines, last = out.splitlines()
    assert lines[0].startswith("mean IoU ")
    assert any(line.startswith("pixel accuracy ") for line in lines)
    assert "protocol linear-fixed: outputs of 16 px, measured at the labels' own size; 33 parameters" in lines
    assert "images of split test without a target 'mask': 1, left out" in lines
    assert f"written to {run}: results.json, predictions-dense.parquet, seed-0/head.safetensors" in lines
    assert f"  loffta evaluate {run} --split train" in lines
    results = json.loads(last)
    assert (results["task"], results["protocol"], results["n"]) == ("segmentation", "linear-fixed", 11)

    code, out, err = command("evaluate", run, "--output-px", "32")
    assert code == 0, err
    assert "protocol linear-fixed: outputs of 32 px" in out
    assert json.loads(RunPaths(run).results("test").read_text())["dense"]["output_px"] == 32

    assert_error(command("evaluate", run, "--output-px", "0"), 2, "0 is no side of an output", "--output-px")
    assert_error(command("evaluate", run, "--labels", "mine"), 2, "a dense run is measured by targets", "--labels")
    code, out, err = command("report", run, "--out", tmp_path / "r.html")
    assert code == 0, err
    assert "protocol linear-fixed, 32 px, at own size" in out
    assert_error(command(*train, "--seeds", "2"), 1, "another configuration", "seeds: 1 -> 2", "another --out")


def test_from_images_to_maps_and_back_to_figures(command, tmp_path):
    """A real network: masks, overlays and --online of a run whose cache is gone."""
    scenes, cache, run, out = "demo:scenes#px=32,n=20", tmp_path / "cache", tmp_path / "run", tmp_path / "maps"
    extract = ["extract", scenes, "--cache", cache, *VIT, "--targets", "mask", "--target-px", "16", "--device", "cpu"]
    code, _, err = command(*extract)
    assert code == 0, err
    code, cached, err = command("train", cache, "--head", "dense-linear", *SHORT, "--out", run, "--json")
    assert code == 0, err
    shutil.rmtree(cache)
    code, found, err = command("evaluate", run, "--online", scenes, "--device", "cpu", "--json")
    assert code == 0, err
    cached, found = (json.loads(text.splitlines()[-1]) for text in (cached, found))
    assert found["metrics"]["miou"]["per_seed"] == pytest.approx(cached["metrics"]["miou"]["per_seed"], abs=1e-3)
    assert found["dense"]["targets"] == cached["dense"]["targets"]
    slide = ["--windows", "32/16", "--device", "cpu"]
    code, slid, err = command("evaluate", run, "--online", scenes, *slide, "--json")
    assert code == 0, err
    assert json.loads(slid.splitlines()[-1])["dense"]["geometry"] == {"windows": "32/16"}
    assert_error(command("evaluate", run, *slide), 2, "--windows is for --online SOURCE")
    assert_error(command("predict", run, scenes, "--out", out, "--windows", "32"), 2, "'32' is no side and stride")
    predict = ["predict", run, scenes, "--out", out, "--device", "cpu"]
    code, text, err = command(*predict, "--overlay", "--json")
    assert code == 0, err
    *lines, last = text.splitlines()
    assert lines == ["segmentation: maps; number of a class", f"20 images, 0 bad; {out}"]
    assert json.loads(last)["means"] == {"unit": "number of a class"}
    assert len(list((out / "maps").iterdir())) == len(list((out / "overlays").iterdir())) == 20
    assert_error(command(*predict, "--per-seed"), 2, "--per-seed is not for heads that give maps")
    assert_error(command(*predict, "--calibrated"), 2, "--calibrated is not for heads that give maps")


def test_what_cannot_be_trained_is_said_before_it_is(command, tmp_path):
    cache, out = dense_cache(tmp_path / "cache", kinds=("mask", "depth")).paths.root, ["--out", tmp_path / "run"]
    both = command("train", cache, "--head", "deap", *SHORT, *out)
    assert_error(both, 2, "targets for segmentation, depth", "--task segmentation")
    whole = command("train", cache, "--head", "linear", "--task", "depth", *out)
    assert_error(whole, 2, "'linear' sees an image as a whole", "deap")
    online = ["train", "--online", "demo:digits", "--backbone", "test_vit", "--weights", "random:0", "--head", "deap"]
    assert_error(command(*online, *out, "--device", "cpu"), 2, "image set does not have any targets", "a column 'mask'")
    few = command("train", cache, "--head", "deap", "--task", "depth", "--shots", "1", *SHORT, *out)
    assert_error(few, 2, "no share", "--shots")
    named = command("train", cache, "--head", "deap", "--protocol", "a\x1b[31m", *out)
    assert_error(named, 2, "protocol: it must be a word of up to 100 characters that can be printed")
    assert not (tmp_path / "run").exists()

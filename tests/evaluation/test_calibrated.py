"""The calibration in results.json against scikit-learn and loops; temperatures against their neighbours."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from loffta.config import TrainConfig
from loffta.errors import NotSaved
from loffta.evaluation.evaluate import evaluate
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths, read_results
from loffta.runs.temperature import read_temperatures
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table
from tests.tasks.scores import softmax

SEEDS = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Classes that can be told apart only in part: 60 images to train on, 90 to validate, 90 to test."""
    root = tmp_path_factory.mktemp("calibrated")
    labels = np.arange(240) % 3
    grids = np.random.default_rng(0).normal(size=(240, 1, 1, 6)).astype(np.float32)
    grids[np.arange(240), :, :, labels] += 1.0
    table = make_table(labels, ["train"] * 60 + ["val"] * 90 + ["test"] * 90)
    make_cache(root / "cache", table, [FakeStore("net", {"s.0": grids})])
    return root


def trained(root, name, **options):
    recipe = {"epochs": 30, "batch_size": 20, "lr": 0.05}
    values = {"cache": root / "cache", "head": "linear", "seeds": SEEDS, "device": "cpu", "recipe": recipe}
    config = TrainConfig(**{**values, **options})
    train(config, root / name, StopFlag())
    return RunPaths(root / name), config


@pytest.fixture(scope="module")
def validated(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "1")
        return trained(root, "run", validate_on="val")


def logits_of(paths, split):
    columns = pq.read_table(paths.predictions(split)).to_pydict()
    return np.array(columns["logits"], np.float32).reshape(SEEDS, -1, 3), np.array(columns["label"][:90])


def slow_figures(logits, labels):
    """Of one seed."""
    chances = softmax(logits)
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    gaps, ece = [], 0.0
    for m in range(15):
        rows = (sure > m / 15) & (sure <= (m + 1) / 15)
        if rows.any():
            gaps.append(abs(right[rows].mean() - sure[rows].mean()))
            ece += gaps[-1] * rows.mean()
    order = np.argsort(-sure)
    return {
        "ece_width15": ece,
        "mce_width15": max(gaps),
        "log_loss": log_loss(labels, chances, labels=range(3)),
        "brier_sum": brier_score_loss(labels, chances, labels=range(3)),
        "aurc": np.mean([1 - right[order[:n]].mean() for n in range(1, len(labels) + 1)]),
        "top1_surest_90": right[order[: round(0.9 * len(labels))]].mean(),
    }


def test_figures_of_all_seeds_as_trained_and_calibrated(validated):
    paths, config = validated
    found = read_results(paths.results("test"))["calibration"]
    logits, labels = logits_of(paths, "test")
    fitted = read_temperatures(paths, config)
    for part, divisors in (("as_trained", [1, 1]), ("calibrated", fitted.per_seed)):
        expected = [slow_figures(z.astype(float) / t, labels) for z, t in zip(logits, divisors, strict=True)]
        for name in expected[0]:
            values = [of_seed[name] for of_seed in expected]
            told = found[part]["figures"][name]
            assert told["per_seed"] == pytest.approx(values), name
            assert told["mean"] == pytest.approx(np.mean(values))
            assert told["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
    top1 = read_results(paths.results("test"))["metrics"]["top1"]["mean"]
    assert 0.4 < top1 < 0.95, "neither chance nor all"
    assert found["as_trained"]["risks"][-1] == pytest.approx(1 - top1)
    assert found["as_trained"]["risks"][-1] > found["as_trained"]["risks"][9]


def test_bins_hold_the_images_of_all_seeds(validated):
    paths, _ = validated
    bins = read_results(paths.results("test"))["calibration"]["as_trained"]["bins"]
    logits, labels = logits_of(paths, "test")
    chances = softmax(logits).reshape(-1, 3)
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == np.tile(labels, SEEDS)
    assert sum(found["images"] for found in bins) == SEEDS * 90
    for m, found in enumerate(bins):
        rows = (sure > m / 15) & (sure <= (m + 1) / 15)
        assert found["images"] == rows.sum()
        if rows.any():
            assert found["confidence"] == pytest.approx(sure[rows].mean(), abs=1e-6)
            assert found["accuracy"] == pytest.approx(right[rows].mean())
        else:
            assert found["confidence"] is found["accuracy"] is None


def test_temperatures_are_the_best_for_the_validation_split(validated):
    paths, config = validated
    logits, labels = logits_of(paths, "val")
    fitted = read_temperatures(paths, config)
    assert (fitted.split, fitted.n_images) == ("val", 90)
    mean = np.log(softmax(logits).mean(axis=0))
    for z, t in zip((*logits, mean), (*fitted.per_seed, fitted.of_mean), strict=True):
        losses = [log_loss(labels, softmax(z / u), labels=range(3)) for u in (0.97 * t, t, 1.03 * t)]
        assert losses[1] < min(losses[0], losses[2])
    told = read_results(paths.results("test"))["calibration"]["temperature"]
    assert told == {"split": "val", "images": 90, "per_seed": list(fitted.per_seed), "of_mean": fitted.of_mean}


def test_a_holdout_serves_as_well_and_the_test_split_never(root, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    paths, config = trained(root, "held", holdout=0.3, seeds=1)
    assert read_temperatures(paths, config).split == "holdout"
    assert "calibrated" in read_results(paths.results("test"))["calibration"]
    learnt = evaluate(paths.root, "train", device="cpu")
    assert learnt["n"] - learnt["images"]["trained_on"] == read_results(paths.results("holdout"))["n"] > 0
    plain, config = trained(root, "plain", seeds=1)
    assert read_temperatures(plain, config) is None
    evaluate(plain.root, "val", device="cpu")
    assert read_temperatures(plain, config) is None, "nobody said that it is held out"
    assert set(read_results(plain.results("val"))["calibration"]) == {"as_trained"}


def test_a_run_of_before_gets_its_temperature_by_evaluate(validated, tmp_path):
    paths, config = validated
    copy = RunPaths(shutil.copytree(paths.root, tmp_path / "run"))
    before = read_temperatures(paths, config)
    copy.temperature.unlink()
    for split in ("test", "val"):  # as an older version wrote them
        results = json.loads(copy.results(split).read_text())
        del results["calibration"]
        copy.results(split).write_text(json.dumps(results))
    assert "calibration" not in read_results(copy.results("test"))
    assert set(evaluate(copy.root, "test", device="cpu")["calibration"]) == {"as_trained"}
    evaluate(copy.root, "val", device="cpu")
    assert read_temperatures(copy, config).per_seed == pytest.approx(before.per_seed)
    assert "calibrated" in evaluate(copy.root, "test", device="cpu")["calibration"]


def test_images_that_are_all_right_have_no_temperature(tmp_path, monkeypatch, capsys):
    """Sharper would be ever better there, and ever worse elsewhere."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    labels = np.arange(40) % 2
    grids = np.zeros((40, 1, 1, 2), np.float32)
    grids[np.arange(40), :, :, labels] = 5
    splits = ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    make_cache(tmp_path / "cache", make_table(labels, splits), [FakeStore("net", {"s.0": grids})])
    paths, config = trained(tmp_path, "run", validate_on="val", seeds=1)
    assert read_temperatures(paths, config) is None
    assert "no temperature can be fitted on the 10 images of split 'val'" in capsys.readouterr().err


def test_a_temperature_that_cannot_be_written_is_told_with_the_results(validated, tmp_path, monkeypatch):
    from loffta.errors import LofftaError

    def refuse(*_):
        raise LofftaError("no room", where=tmp_path, remedy="make some")

    paths, _ = validated
    monkeypatch.setattr("loffta.evaluation.calibrated.write_temperatures", refuse)
    copy = shutil.copytree(paths.root, tmp_path / "run")
    with pytest.raises(NotSaved, match="no room") as caught:
        evaluate(copy, "val", device="cpu")
    assert caught.value.results["calibration"]["temperature"]["split"] == "val"

"""Numbers from a cache: every head learns them in their unit; what is chosen, resumed, held out, mixed, refused."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loffta.door.run import load_run
from loffta.errors import LofftaError, Stopped, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.heads import HEADS, IMAGE_HEADS, build_head
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths, load_head, read_predictions
from loffta.tasks import TASKS
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table
from tests.heads.test_contract import make_specs
from tests.online.runs import assert_same_weights
from tests.training.runs import SMALL, go, make_config

N_TRAIN, N_TEST = 40, 20
MEAN, STD = 1000.0, 5.0


def draw_values(n_images=N_TRAIN + N_TEST, seed=0):
    return MEAN + STD * np.random.default_rng(seed).normal(size=n_images)


def value_cache(root, values=None, **options):
    """Two taps whose means tell the value, and a class token that does; one image has no value."""
    values = draw_values() if values is None else np.asarray(values, float)
    rng, signal = np.random.default_rng(1), (np.nan_to_num(values, nan=MEAN) - MEAN) / STD
    grids = {tap: rng.normal(scale=0.2, size=(len(values), 2, 2, dim)) for tap, dim in (("a.0", 6), ("a.1", 4))}
    for grid in grids.values():
        grid[..., 1] += signal[:, None, None]
    prefixes = {tap: grid.mean(axis=(1, 2))[:, None] for tap, grid in grids.items()}
    splits = ["train"] * (len(values) - N_TEST) + ["test"] * N_TEST
    table = make_table([-1] * len(values), splits, classes=())
    store = FakeStore("good", grids, kinds=("grid", "prefix"), prefixes=prefixes)
    return make_cache(root, dataclasses.replace(table, values=values), [store], **options)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return value_cache(tmp_path_factory.mktemp("values") / "cache")


QUICK = {"epochs": 20, "batch_size": 16, "min_steps": None, "min_batches": None, "lr": 0.03}


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_every_head_learns_numbers_in_their_unit(head, cache, tmp_path):
    results = go(cache, tmp_path / "run", head, recipe=QUICK | SMALL.get(head, {}))
    assert (results["task"], results["recipe"]["loss"]) == ("regression", "mse")
    assert results["metrics"]["r2"]["mean"] > 0.3
    values = cache.table.values
    scale = load_head(RunPaths(tmp_path / "run").head(0))
    assert float(scale["values.mean"]) == pytest.approx(values[:N_TRAIN].mean(), rel=1e-12)
    assert float(scale["values.deviation"]) == pytest.approx(values[:N_TRAIN].std(), rel=1e-12)
    found = read_predictions(RunPaths(tmp_path / "run").predictions("test"))
    np.testing.assert_array_equal(found["label"], values[N_TRAIN:])
    mae = np.abs(found["predicted"] - found["label"]).mean()
    assert results["metrics"]["mae"]["mean"] == pytest.approx(mae)
    assert set(found) == {"row", "key", "label", "seed", "predicted"}


@pytest.mark.parametrize("name", IMAGE_HEADS)
def test_heads_without_classes_have_one_output_and_a_scale(name):
    recipe = HEADS[name].recipe(**{k: v for k, v in SMALL.get(name, {}).items() if k != "grid"})
    one, number = (build_head(name, make_specs(name), n, recipe, 0) for n in (1, 0))
    assert one.scale is None
    assert {*number.state_dict()} == {*one.state_dict(), "values.mean", "values.deviation"}
    assert all(torch.equal(number.state_dict()[key], tensor) for key, tensor in one.state_dict().items())
    number.scale.set(1e9, 2.0)
    number.half().to(torch.float32)
    assert number.scale.to_values(torch.tensor([0.25])).tolist() == [1e9 + 0.5]
    assert number.scale.standardise(torch.tensor([1e9 + 0.5], dtype=torch.float64)).tolist() == [0.25]


def test_members_are_what_they_are_alone_and_an_old_run_is_measured_again(cache, tmp_path):
    both = go(cache, tmp_path / "both", seeds=2, recipe=QUICK)
    alone = go(cache, tmp_path / "alone", recipe=QUICK)
    assert_same_weights(tmp_path / "both", tmp_path / "alone", 0)
    assert both["metrics"]["r2"]["per_seed"][0] == alone["metrics"]["r2"]["per_seed"][0]
    again = evaluate(tmp_path / "both", "test", device="cpu")
    assert again["metrics"] == both["metrics"]
    predicted = load_run(tmp_path / "both", device="cpu").predict_cached("test")
    kept = read_predictions(RunPaths(tmp_path / "both").predictions("test"))["predicted"].reshape(2, -1)
    assert predicted.predicted == pytest.approx(kept.mean(axis=0))
    assert (predicted.probabilities.shape, predicted.classes) == ((N_TEST, 0), ())


def test_a_training_that_is_cut_off_goes_on_to_the_same_weights(cache, tmp_path, monkeypatch):
    go(cache, tmp_path / "whole", recipe=QUICK)
    stop = StopFlag()
    config = make_config(cache, recipe=QUICK, checkpoint_s=1e-6)
    monkeypatch.setattr("loffta.training.checkpoint.Keeper.save", _stopping(stop))
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", stop)
    monkeypatch.undo()
    train(config, tmp_path / "run", StopFlag())
    assert_same_weights(tmp_path / "run", tmp_path / "whole", 0)


def _stopping(stop, after=5):
    from loffta.training.checkpoint import Keeper

    save, saved = Keeper.save, []

    def save_and_stop(self, members, position):
        saved.append(position)
        if len(saved) == after:
            stop.signal = signal.SIGTERM
        return save(self, members, position)

    return save_and_stop


def test_huber_is_another_training_and_takes_outliers(tmp_path):
    values = draw_values()
    wild = values.copy()
    wild[:4] += 1000  # of images to train on: a broken scale
    cache = value_cache(tmp_path / "cache", wild)
    errors = {}
    for name, recipe in (("mse", {}), ("huber", {"loss": "huber", "huber_delta": 0.05})):
        results = go(cache, tmp_path / name, recipe=QUICK | {"epochs": 30} | recipe)
        errors[name] = results["metrics"]["mae"]["mean"]
    assert errors["huber"] < 0.5 * errors["mse"]


@pytest.mark.parametrize(("metric", "choose"), [("r2", max), ("mae", min)])
def test_a_search_chooses_the_better_whichever_way_that_is(metric, choose, cache, tmp_path, monkeypatch):
    task = TASKS["regression"]._replace(main_metric=metric)
    monkeypatch.setitem(TASKS, "regression", task)
    recipe = QUICK | {"epochs": 3, "search_lr": [1e-5, 0.03, 1e-3]}
    results = go(cache, tmp_path / "run", search=True, recipe=recipe)
    table = json.loads(RunPaths(tmp_path / "run").search.read_text())
    scores = {entry["lr"]: entry["score"] for entry in table["settings"]}
    assert results["search"]["chosen"]["lr"] == choose(scores, key=scores.get) == 0.03
    assert table["metric"] == metric


def test_holdout_mixing_selection_and_images_without_a_value(tmp_path):
    values = draw_values()
    values[3] = np.nan
    cache = value_cache(tmp_path / "cache", values)
    go(cache, tmp_path / "run", holdout=0.3, augment={"mixup_alpha": 0.4}, recipe=QUICK)
    held = json.loads(RunPaths(tmp_path / "run").holdout.read_text())["rows"]
    assert 0 < len(held) < 25
    left = np.setdiff1d(np.flatnonzero(~np.isnan(values[:N_TRAIN])), held)
    scale = load_head(RunPaths(tmp_path / "run").head(0))
    assert float(scale["values.mean"]) == pytest.approx(values[left].mean(), rel=1e-12)
    assert json.loads(RunPaths(tmp_path / "run").results("holdout").read_text())["n"] == len(held)
    assert "without a label: 1, left out" in RunPaths(tmp_path / "run").log.read_text()
    scored = go(cache, tmp_path / "combo", "combo", recipe=QUICK | SMALL["combo"] | {"relevance_weight": 0.01})
    assert [entry["backbone"] for entry in scored["relevance"]["backbones"]] == ["good"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([7.0] * N_TRAIN + [*range(N_TEST)], "all 40 images of split 'train' have the value 7: numbers are learnt"),
        ([*range(N_TRAIN)] + [7.0] * N_TEST, "all 20 images of split 'test' have the value 7"),
        ([np.nan] * 39 + [1.0] + [*range(N_TEST)], "split 'train' has one image: numbers are learnt"),
    ],
)
def test_values_that_cannot_be_learnt_are_refused_before_a_run_is_begun(values, message, tmp_path):
    with pytest.raises(LofftaError, match=message):
        go(value_cache(tmp_path / "cache", values), tmp_path / "run", one_class=True)
    assert not (tmp_path / "run").exists()


def test_what_is_for_classes_is_refused(cache, tmp_path):
    with pytest.raises(UsageError, match="class weights need one class per image"):
        go(cache, tmp_path / "run", recipe=QUICK | {"class_weights": True})
    with pytest.raises(LofftaError, match="are regression, and classification needs one class per image"):
        go(cache, tmp_path / "run", task="classification")


def test_labels_of_classes_do_not_measure_it(cache, tmp_path):
    go(cache, tmp_path / "run", recipe=QUICK | {"epochs": 1})
    rows = [f"{key},{'ab'[i % 2]}" for i, key in enumerate(cache.table.keys)]
    (tmp_path / "classes.csv").write_text("\n".join(["image,label", *rows]))
    with pytest.raises(LofftaError, match="regression needs a number per image"):
        evaluate(tmp_path / "run", "test", labels=str(tmp_path / "classes.csv"))


def test_another_value_is_another_training(tmp_path):
    """A checkpoint does not go on with other values of the same images."""
    from loffta.training.objective import digest_of

    values = draw_values()
    table = dataclasses.replace(make_table([-1] * 60, ["train"] * 60, classes=()), values=values)
    other = dataclasses.replace(table, values=values + (np.arange(60) == 5))
    assert digest_of(table, np.arange(5)) == digest_of(other, np.arange(5))
    assert digest_of(table, np.arange(6)) != digest_of(other, np.arange(6))


def test_the_linear_head_is_as_good_as_ridge(tmp_path):
    """The digit's number from its 64 pixels; in large batches, for a batch's mean moves."""
    digits = load_digits()
    pixels, values = digits.images.reshape(-1, 64) / 16, digits.target.astype(float)
    order = np.random.default_rng(0).permutation(len(values))
    pixels, values, n_train = pixels[order], values[order], 1000
    splits = ["train"] * n_train + ["test"] * (len(values) - n_train)
    table = dataclasses.replace(make_table([-1] * len(values), splits, classes=()), values=values)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("px", {"x": pixels[:, None, None]})])
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))).fit(pixels[:n_train], values[:n_train])
    ridge = model.score(pixels[n_train:], values[n_train:])
    recipe = {"batch_size": 1000, "epochs": 300, "lr": 0.01}
    found = go(cache, tmp_path / "run", recipe=recipe)["metrics"]["r2"]["mean"]
    assert found == pytest.approx(ridge, abs=0.02)
    assert ridge > 0.4

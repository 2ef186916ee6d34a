"""Metrics of numbers against scikit-learn and scipy, on the images as they are and in resamples."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from loffta.tasks import TASKS
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.regression import details, huber, loss, metrics, notes, recount, resampled


def theirs(predicted, values):
    return {
        "mae": mean_absolute_error(values, predicted),
        "rmse": root_mean_squared_error(values, predicted),
        "r2": r2_score(values, predicted),
        "spearman": spearmanr(values, predicted).statistic,
    }


def draw(n_images=80, n_seeds=2, digits=1, offset=1e6):
    """Rounded values and predictions [S, B, 1], far from zero and with many ties."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=n_images).round(digits)
    predicted = (values + rng.normal(scale=0.7, size=(n_seeds, n_images))).round(digits)
    return values + offset, predicted[..., None] + offset


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_metrics_are_those_of_scikit_learn_and_scipy(offset):
    values, outputs = draw(offset=offset)
    for of_seed in outputs:
        assert metrics(of_seed, values, ()) == pytest.approx(theirs(of_seed[:, 0], values), rel=1e-6)
    assert notes(values, ()) == {}


def test_resamples_are_those_of_images_drawn():
    values, outputs = draw(n_images=30)
    (weights,) = image_weights(30, 20)
    found = resampled(outputs, values, (), iter([weights[:7], weights[7:]]))
    again = recount(values, outputs[..., 0], None)(weights)
    for i, of_image in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(30), of_image)
        expected = [theirs(of_seed[rows, 0], values[rows]) for of_seed in outputs]
        for name in ("mae", "rmse", "r2", "spearman"):
            assert found[name][i] == pytest.approx(np.mean([e[name] for e in expected]), rel=1e-6), name
        assert again[i] == pytest.approx([e["r2"] for e in expected], rel=1e-6)


def test_values_that_are_all_the_same_have_errors_alone():
    values, outputs = np.full(4, 0.1), np.array([[0.1], [0.2], [0.3], [0.1]])
    assert metrics(outputs, values, ()) == pytest.approx({"mae": 0.075, "rmse": np.sqrt(0.05 / 4)})
    assert notes(values, ()) == dict.fromkeys(("r2", "spearman"), "left out: all 4 images have the value 0.1")
    assert notes(values[:1], ())["r2"] == "left out: there is one image"
    two = np.array([0.1, 0.7])
    weights = np.array([[2, 0], [1, 1]], np.float32)
    found = resampled(np.array([[[0.1], [0.2]]]), two, (), [weights])
    assert np.isnan(found["r2"]).tolist() == np.isnan(found["spearman"]).tolist() == [True, False]


def test_one_number_for_all_images_orders_nothing():
    values = np.arange(5.0)
    found = metrics(np.full((5, 1), 2.0), values, ())
    assert (found["r2"], found["spearman"]) == (pytest.approx(0), 0)


def test_losses():
    outputs, values = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([0.5, 1.0, 1.0])
    assert loss(outputs, values).tolist() == [0.25, 0, 9]
    assert huber(outputs, values, 2.0).tolist() == [0.125, 0, 2 * (3 - 1)]
    assert loss(outputs.bfloat16(), values).dtype == torch.float32


def test_details_tell_the_spread_of_the_values():
    assert details(np.zeros((1, 2, 1)), np.array([1.0, 3.0]), ()) == {
        "values": {"mean": 2, "std": 1, "min": 1, "max": 3}
    }


def test_decisions_are_the_numbers():
    outputs = np.array([[[1.5], [2.5]]])
    assert TASKS["regression"].decide(outputs).tolist() == [[1.5, 2.5]]
    assert TASKS["regression"].activation(torch.tensor(outputs)).tolist() == outputs.tolist()

"""Metrics against scikit-learn, intervals against a plain bootstrap over images."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from loffta.tasks import TASKS
from loffta.tasks.classification import METRICS, bootstrap_ci95, loss, metrics, predict


def draw(n_seeds=3, n_images=120, n_classes=4):
    """Labels of uneven frequency, and predictions that are right about half the time."""
    rng = np.random.default_rng(0)
    labels = rng.choice(n_classes, n_images, p=[0.6, 0.25, 0.1, 0.05])
    guesses = rng.integers(n_classes, size=(n_seeds, n_images))
    return np.where(rng.random((n_seeds, n_images)) < 0.4, labels, guesses), labels


def index_bootstrap(predicted, labels, n_resamples):
    """Draws image indices; averages the seeds' correctness per image."""
    rng = np.random.default_rng(1)
    right = (predicted == labels).mean(axis=0)
    top1, balanced = [], []
    for _ in range(n_resamples):
        rows = rng.integers(len(labels), size=len(labels))
        top1.append(right[rows].mean())
        balanced.append(np.mean([right[rows][labels[rows] == label].mean() for label in np.unique(labels[rows])]))
    return {"top1": np.quantile(top1, [0.025, 0.975]), "balanced_accuracy": np.quantile(balanced, [0.025, 0.975])}


def test_loss_is_plain_cross_entropy():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2])
    odds = np.exp(logits.numpy())
    expected = -np.log([odds[0, 0] / odds[0].sum(), odds[1, 2] / odds[1].sum()]).mean()
    assert loss(logits, labels).mean().item() == pytest.approx(expected)
    assert predict(logits)[0] == 0


def test_metrics_equal_sklearn():
    predicted, labels = draw()
    assert metrics(predicted[0], labels) == pytest.approx(
        {
            "top1": accuracy_score(labels, predicted[0]),
            "balanced_accuracy": balanced_accuracy_score(labels, predicted[0]),
        }
    )
    assert set(metrics(predicted[0], labels)) == set(METRICS)


def test_balanced_accuracy_ignores_classes_without_images():
    assert metrics(np.array([7, 1, 1]), np.array([0, 1, 1])) == pytest.approx({"top1": 2 / 3, "balanced_accuracy": 0.5})


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_intervals_equal_a_plain_bootstrap(n_seeds):
    """20,000 resamples each; what remains is their own noise, below 0.01 in 0.15 wide intervals."""
    predicted, labels = draw(n_seeds)
    ours = bootstrap_ci95(predicted, labels, n_resamples=20_000)
    plain = index_bootstrap(predicted, labels, n_resamples=20_000)
    for name in METRICS:
        assert ours[name] == pytest.approx(plain[name], abs=0.01)


def test_intervals_hold_the_estimate_and_repeat():
    predicted, labels = draw()
    bounds = bootstrap_ci95(predicted, labels)
    for name in METRICS:
        low, high = bounds[name]
        assert low < np.mean([metrics(row, labels)[name] for row in predicted]) < high
    assert bounds == bootstrap_ci95(predicted, labels, seed=0)
    assert bounds != bootstrap_ci95(predicted, labels, seed=1)
    order = np.random.default_rng(3).permutation(len(labels))
    assert bounds == bootstrap_ci95(predicted[:, order], labels[order])


def test_no_spread_where_all_are_right():
    labels = np.array([0, 0, 3])
    assert bootstrap_ci95(labels[None], labels) == {"top1": (1.0, 1.0), "balanced_accuracy": (1.0, 1.0)}


def test_registry():
    task = TASKS["classification"]
    assert (task.loss, task.predict, task.metrics, task.ci95) == (loss, predict, metrics, bootstrap_ci95)

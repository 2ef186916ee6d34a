"""Metrics against scikit-learn, intervals against a plain bootstrap over images."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from loffta.tasks.bootstrap import image_weights, interval
from loffta.tasks.classification import (
    Kappa,
    activation,
    among_top,
    decide,
    details,
    loss,
    metrics,
    notes,
    resampled,
)

from .scores import area, draw_labels, draw_scores, index_bootstrap, quadratic_kappa

SEVEN = (0.3, 0.2, 0.15, 0.15, 0.1, 0.05, 0.05)


def test_loss_is_plain_cross_entropy():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2])
    odds = np.exp(logits.numpy())
    expected = -np.log([odds[0, 0] / odds[0].sum(), odds[1, 2] / odds[1].sum()])
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(activation(logits.bfloat16()), odds / odds.sum(axis=1, keepdims=True), rtol=1e-6)
    assert decide(logits.numpy()).tolist() == [0, 0]


def test_metrics_equal_sklearn():
    labels = draw_labels(shares=SEVEN)
    (scores,) = draw_scores(labels, 7, n_seeds=1, digits=9)
    predicted = decide(scores)
    assert metrics(scores, labels) == pytest.approx(
        {
            "top1": accuracy_score(labels, predicted),
            "top5": top_k_accuracy_score(labels, scores, k=5),
            "balanced_accuracy": balanced_accuracy_score(labels, predicted),
            "macro_recall": recall_score(labels, predicted, average="macro"),
            "kappa": cohen_kappa_score(labels, predicted, weights="quadratic"),
            "roc_auc": roc_auc_score(labels, scores / scores.sum(1, keepdims=True), multi_class="ovr"),
        }
    )
    assert notes(labels, tuple("abcdefg")) == {}


def test_two_classes_have_the_curve_of_the_second():
    labels = draw_labels(shares=(0.7, 0.3))
    (scores,) = draw_scores(labels, 2, n_seeds=1)
    found = metrics(scores, labels)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels, scores[:, 1]))
    assert "top5" not in found


def test_top_of_equal_scores_is_the_first_class():
    scores, labels = np.array([[0.25, 0.25, 0.25, 0.25]] * 4, np.float32), np.arange(4)
    assert among_top(scores, labels, 1).tolist() == (decide(scores) == labels).tolist() == [True, False, False, False]
    assert among_top(scores, labels, 3).tolist() == [True, True, True, False]


def test_absent_classes():
    """Balanced accuracy leaves them out, macro recall counts them as 0, a curve of them does not exist."""
    labels = np.array([0, 1, 1])
    scores = np.eye(4, dtype=np.float32)[[2, 1, 1]]
    found = metrics(scores, labels)
    assert (found["balanced_accuracy"], found["macro_recall"]) == pytest.approx((0.5, 0.25))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["macro_recall"] == recall_score(labels, [2, 1, 1], labels=range(4), average="macro")
    assert "roc_auc" not in found
    assert notes(labels, ("a", "b", "c", "d")) == {
        "macro_recall": "2 of 4 classes do not occur in the labels (c, d) and count as 0",
        "roc_auc": "left out: 2 of 4 classes do not occur in the labels (c, d)",
    }
    values = resampled(scores[None], labels, image_weights(3, 50))
    assert values.keys() == found.keys()
    np.testing.assert_allclose(values["macro_recall"], values["balanced_accuracy"] / 2)


def test_one_class_alone():
    labels, scores = np.zeros(3, np.int64), np.ones((3, 1), np.float32)
    assert metrics(scores, labels) == {"top1": 1.0, "balanced_accuracy": 1.0, "macro_recall": 1.0}
    assert notes(labels, ["a"]).keys() == {"roc_auc", "kappa"}
    assert set(resampled(scores[None], labels, image_weights(3, 5))) == {"top1", "balanced_accuracy", "macro_recall"}


@pytest.mark.parametrize(("n_classes", "n_seeds"), [(7, 2), (2, 1)])
def test_intervals_equal_a_plain_bootstrap(n_classes, n_seeds):
    """What remains is the noise of the quantiles, and the first order of the curve."""
    labels = draw_labels(200, shares=SEVEN if n_classes == 7 else (0.7, 0.3))
    scores = draw_scores(labels, n_classes, n_seeds)

    def plain(scores, labels):
        """A class that a resample lacks is left out of means over classes."""
        there = np.unique(labels)
        found = {"top1": [], "balanced_accuracy": [], "kappa": [], "roc_auc": []}
        for of_seed in scores:
            predicted = of_seed.argmax(axis=1)
            found["top1"].append((predicted == labels).mean())
            found["balanced_accuracy"].append(np.mean([(predicted[labels == c] == c).mean() for c in there]))
            found["kappa"].append(quadratic_kappa(predicted, labels))
            curves = [1] if n_classes == 2 else there
            found["roc_auc"].append(np.mean([area(of_seed[:, c], labels == c) for c in curves]))
        return {name: np.mean(values) for name, values in found.items()}

    expected = index_bootstrap(plain, scores, labels, 600)
    values = resampled(scores, labels, image_weights(len(labels), 20_000))
    for name, bounds in expected.items():
        width = bounds[1] - bounds[0]
        assert interval(values[name]) == pytest.approx(bounds, abs=0.15 * width), name
        assert width > 0.02


def test_every_resample_of_counts_equals_sklearn_on_its_images():
    labels = draw_labels(40, shares=SEVEN)
    scores = draw_scores(labels, 7, 2)
    (weights,) = image_weights(40, 10)
    found = resampled(scores, labels, [weights])
    for i, drawn in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), drawn)
        each = [metrics(of_seed[rows], labels[rows]) for of_seed in scores]
        for name in ("top1", "top5", "balanced_accuracy", "kappa"):
            assert found[name][i] == pytest.approx(np.mean([of_seed[name] for of_seed in each]), abs=1e-6)


def test_kappa_where_a_resample_has_one_class_only():
    kappa = Kappa(np.array([[0, 1, 1]]), np.array([0, 1, 0]), 3)
    weights = np.array([[3, 0, 0], [1, 1, 1]], np.float32)
    expected = cohen_kappa_score([0, 1, 0], [0, 1, 1], weights="quadratic")
    np.testing.assert_allclose(kappa(weights), [np.nan, expected])


def test_no_spread_where_all_are_right():
    labels = np.array([0, 0, 1, 2])
    values = resampled(np.eye(3, dtype=np.float32)[labels][None], labels, image_weights(4, 100))
    assert all(interval(of_metric) == (1.0, 1.0) for of_metric in values.values())


def test_confusion_is_summed_over_seeds():
    labels = draw_labels(shares=SEVEN)
    scores = draw_scores(labels, 8, 3)
    found = details(scores, labels, tuple("abcdefgh"))
    assert found["confusion"]["classes"] == list("abcdefgh")
    expected = sum(confusion_matrix(labels, of_seed.argmax(axis=1), labels=range(8)) for of_seed in scores)
    assert found["confusion"]["counts"] == expected.tolist()


def test_of_many_classes_the_most_frequent_confusions_are_kept():
    labels = np.arange(60).repeat(10)
    predicted = labels.copy()
    predicted[:4], predicted[10:13], predicted[20:] = 7, 8, labels[20:]
    found = details(
        np.eye(60, dtype=np.float32)[np.stack([predicted, predicted])], labels, [f"c{i}" for i in range(60)]
    )
    assert found == {
        "confused_pairs": [
            {"label": "c0", "predicted": "c7", "count": 8, "of": 20},
            {"label": "c1", "predicted": "c8", "count": 6, "of": 20},
        ]
    }

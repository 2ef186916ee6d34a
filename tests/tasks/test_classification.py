"""Metrics against scikit-learn, intervals against a plain bootstrap over images."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from loffta.tasks.bootstrap import image_weights, interval
from loffta.tasks.classification import activation, among_top, decide, details, loss, metrics, notes, resampled

from .scores import area, draw_labels, draw_logits, index_bootstrap, quadratic_kappa, softmax

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
    (logits,) = draw_logits(labels, 7, n_seeds=1, digits=9)
    predicted, scores = decide(logits), softmax(logits)
    assert metrics(logits, labels, "0123456") == pytest.approx(
        {
            "top1": accuracy_score(labels, predicted),
            "top5": top_k_accuracy_score(labels, logits, k=5),
            "balanced_accuracy": balanced_accuracy_score(labels, predicted),
            "f1": f1_score(labels, predicted, average="macro"),
            "log_loss": log_loss(labels, scores),
            "kappa": cohen_kappa_score(labels, predicted, weights="quadratic"),
            "roc_auc": roc_auc_score(labels, scores, multi_class="ovr"),
        }
    )
    assert notes(labels, "0123456") == {}


def test_two_classes_have_the_curve_of_the_second():
    labels = draw_labels(shares=(0.7, 0.3))
    (logits,) = draw_logits(labels, 2, n_seeds=1)
    found = metrics(logits, labels, "ab")
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    assert not {"top5", "kappa"} & set(found)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_head_that_is_sure_of_itself_makes_no_ties(n_classes):
    """The same logits, sharper, rank in the same order; their probabilities in float32 are half of them 1.0."""
    labels = draw_labels(400, shares=(1 / n_classes,) * n_classes)
    (logits,) = draw_logits(labels, n_classes, n_seeds=1, digits=9)
    sharp = 60 * logits
    found = metrics(sharp, labels, "abcd"[:n_classes])["roc_auc"]
    odds = sharp.astype(np.float64) - [
        [np.logaddexp.reduce(np.delete(row, c)) for c in range(n_classes)] for row in sharp.astype(np.float64)
    ]
    one_hot = labels[:, None] == np.arange(n_classes)
    columns = [1] if n_classes == 2 else range(n_classes)
    assert found == pytest.approx(np.mean([roc_auc_score(one_hot[:, c], odds[:, c]) for c in columns]))
    saturated = activation(torch.tensor(sharp)).numpy()
    assert (saturated.max(axis=1) == 1).mean() > 0.4
    tied = np.mean([roc_auc_score(one_hot[:, c], saturated[:, c]) for c in columns])
    assert found > tied + 0.01
    values = resampled(sharp[None], labels, "abcd"[:n_classes], image_weights(400, 300))["roc_auc"]
    assert np.mean(values) == pytest.approx(found, abs=0.005), "the interval is about the same metric"


def test_top_of_equal_logits_is_the_first_class():
    logits, labels = np.full((4, 4), 0.25, np.float32), np.arange(4)
    assert among_top(logits, labels, 1).tolist() == (decide(logits) == labels).tolist() == [True, False, False, False]
    assert among_top(logits, labels, 3).tolist() == [True, True, True, False]


def test_absent_classes():
    """Recall is of the classes that occur, F1 of those that occur or are predicted; others have no curve."""
    labels = np.array([0, 1, 1])
    logits = 9 * np.eye(4, dtype=np.float32)[[2, 1, 1]]
    found = metrics(logits, labels, "abcd")
    assert (found["balanced_accuracy"], found["f1"]) == pytest.approx((1 / 2, 1 / 3))
    assert found["f1"] == pytest.approx(f1_score(labels, [2, 1, 1], average="macro"))
    assert "roc_auc" not in found
    assert notes(labels, "abcd") == {
        "balanced_accuracy": "2 of 4 classes do not occur in the labels (c, d) and are left out",
        "roc_auc": "left out: 2 of 4 classes do not occur in the labels (c, d)",
    }
    assert resampled(logits[None], labels, "abcd", image_weights(3, 50)).keys() == found.keys()


def test_one_class_alone():
    labels, logits = np.zeros(3, np.int64), np.ones((3, 1), np.float32)
    assert metrics(logits, labels, ["0"]) == {"top1": 1.0, "balanced_accuracy": 1.0, "f1": 1.0, "log_loss": 0.0}
    assert notes(labels, ["0"]).keys() == {"roc_auc", "kappa"}
    assert notes(labels, ["cat"]).keys() == {"roc_auc"}, "kappa is no metric of cats"
    assert resampled(logits[None], labels, ["0"], image_weights(3, 5)).keys() == metrics(logits, labels, ["0"]).keys()


@pytest.mark.parametrize(("n_classes", "n_seeds"), [(7, 2), (2, 1)])
def test_intervals_equal_a_plain_bootstrap(n_classes, n_seeds):
    """What remains is the noise of the quantiles, and the first order of the curve."""
    labels = draw_labels(200, shares=SEVEN if n_classes == 7 else (0.7, 0.3))
    logits = draw_logits(labels, n_classes, n_seeds)

    def plain(logits, labels):
        """A class that a resample lacks is left out of means over classes."""
        there = np.unique(labels)
        found = {"top1": [], "balanced_accuracy": [], "kappa": [], "roc_auc": [], "log_loss": []}
        for of_seed in logits:
            predicted, scores = of_seed.argmax(axis=1), softmax(of_seed)
            found["top1"].append((predicted == labels).mean())
            found["balanced_accuracy"].append(np.mean([(predicted[labels == c] == c).mean() for c in there]))
            found["kappa"].append(quadratic_kappa(predicted, labels))
            found["log_loss"].append(-np.log(scores[np.arange(len(labels)), labels]).mean())
            curves = [1] if n_classes == 2 else there
            found["roc_auc"].append(np.mean([area(scores[:, c], labels == c) for c in curves]))
        return {name: np.mean(values) for name, values in found.items()}

    expected = index_bootstrap(plain, logits, labels, 600)
    values = resampled(logits, labels, "0123456"[:n_classes], image_weights(len(labels), 20_000))
    for name, bounds in expected.items():
        width = bounds[1] - bounds[0]
        assert interval(values[name]) == pytest.approx(bounds, abs=0.15 * width), name
        assert width > 0.02


def test_every_resample_of_counts_equals_sklearn_on_its_images():
    labels = draw_labels(40, shares=SEVEN)
    logits = draw_logits(labels, 7, 2)
    (weights,) = image_weights(40, 10)
    found = resampled(logits, labels, "0123456", [weights])
    for i, drawn in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), drawn)
        each = [metrics(of_seed[rows], labels[rows], "0123456") for of_seed in logits]
        for name in ("top1", "top5", "balanced_accuracy", "f1", "log_loss", "kappa"):
            assert found[name][i] == pytest.approx(np.mean([of_seed[name] for of_seed in each]), abs=1e-6), name


def test_no_spread_where_all_are_right():
    labels = np.array([0, 0, 1, 2])
    values = resampled(99 * np.eye(3, dtype=np.float32)[labels][None], labels, "012", image_weights(4, 100))
    assert values.pop("log_loss").max() < 1e-12
    assert all(interval(of_metric) == (1.0, 1.0) for of_metric in values.values())


def test_confusion_is_summed_over_seeds():
    labels = draw_labels(shares=SEVEN)
    scores = draw_logits(labels, 8, 3)
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

"""Metrics put together for results.json, and predictions for whoever wants to look closer."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from loffta.errors import LofftaError
from loffta.evaluation.measure import PROBABILITY_CLASSES, measure, prediction_columns, summary
from loffta.tasks import TASKS
from tests.tasks.scores import softmax

CLASSIFICATION, MULTI_LABEL = TASKS["classification"], TASKS["multi-label"]


def draw(n_seeds=3, n_images=40, n_classes=3):
    rng = np.random.default_rng(0)
    labels = np.arange(n_images) % n_classes
    logits = rng.normal(size=(n_seeds, n_images, n_classes)) + np.eye(n_classes)[labels]
    return logits.astype(np.float32), labels


def test_mean_deviation_and_interval_of_every_metric():
    scores, labels = draw()
    found = measure(CLASSIFICATION, scores, labels, "012")
    assert list(found) == ["metrics", "notes", "confusion"]
    assert list(found["metrics"]) == ["top1", "balanced_accuracy", "f1", "log_loss", "kappa", "roc_auc"]
    expected = [accuracy_score(labels, of_seed.argmax(axis=1)) for of_seed in scores]
    top1 = found["metrics"]["top1"]
    assert top1["per_seed"] == pytest.approx(expected)
    assert (top1["mean"], top1["std"]) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    for metric in found["metrics"].values():
        low, high = metric["ci95"]
        assert low < metric["mean"] < high
    assert json.loads(json.dumps(found)) == found


def test_the_seed_decides_the_resamples_alone():
    scores, labels = draw()
    one, again, other = (
        measure(CLASSIFICATION, scores, labels, "012", seed=seed)["metrics"]["roc_auc"] for seed in (1, 1, 2)
    )
    assert one == again
    assert one["ci95"] != other["ci95"]
    assert one["per_seed"] == other["per_seed"]


def test_one_seed_has_no_deviation():
    assert summary([0.5]) == {"mean": 0.5, "std": None, "per_seed": [0.5]}


def test_notes_say_what_is_left_out():
    scores, _ = draw()
    found = measure(CLASSIFICATION, scores, np.zeros(40, np.int64), "012")
    assert set(found["metrics"]) == {"top1", "balanced_accuracy", "f1", "log_loss"}
    assert set(found["notes"]) == {"balanced_accuracy", "kappa", "roc_auc"}


def test_heads_that_give_no_numbers():
    scores, labels = draw()
    scores[1, [7, 9]] = np.nan
    with pytest.raises(
        LofftaError, match=r"head of seed 1 gives no finite score for 2 of 40 images(.|\n)*where:  image 7\n"
    ):
        measure(CLASSIFICATION, scores, labels, "012")
    with pytest.raises(LofftaError, match=r"image 07\.png"):
        measure(CLASSIFICATION, scores, labels, "012", keys=[f"{i:02d}.png" for i in range(40)])


def test_labels_that_define_nothing():
    with pytest.raises(
        LofftaError, match=r"map is not defined on these 40 images(.|\n)*3 of 3 classes are on no image"
    ):
        measure(MULTI_LABEL, draw()[0], np.zeros((40, 3), np.int8), "abc")


def test_predictions_of_one_class_per_image():
    scores, labels = draw(n_seeds=2, n_images=3)
    columns = prediction_columns(CLASSIFICATION, scores, labels, np.array([4, 5, 9]), ["x", "y", "z"])
    assert list(columns) == ["row", "key", "label", "seed", "predicted", "confidence", "logits", "probabilities"]
    assert columns["row"].tolist() == [4, 5, 9, 4, 5, 9]
    assert columns["key"] == ["x", "y", "z"] * 2
    assert columns["label"].tolist() == [0, 1, 2] * 2
    assert columns["seed"].tolist() == [0, 0, 0, 1, 1, 1]
    assert columns["predicted"].tolist() == scores.argmax(axis=2).reshape(-1).tolist()
    np.testing.assert_array_equal(columns["logits"][4], scores[1, 1])
    np.testing.assert_allclose(columns["probabilities"], softmax(scores.reshape(6, 3)), rtol=1e-6)
    np.testing.assert_allclose(columns["confidence"], softmax(scores.reshape(6, 3)).max(axis=1), rtol=1e-6)


def test_predictions_of_several_classes_per_image():
    scores = np.array([[[2.0, -1.0, 0.0], [-3.0, -2.0, -1.0]]], np.float32)
    has_class = np.array([[1, 0, 1], [0, 1, 0]], np.int8)
    columns = prediction_columns(MULTI_LABEL, scores, has_class, np.array([0, 1]), ["x", "y"])
    assert columns["label"] == [[0, 2], [1]]
    assert columns["predicted"] == [[0, 2], []]
    assert columns["confidence"].tolist() == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.e)])


def test_probabilities_of_many_classes_are_not_kept():
    for n_classes in (PROBABILITY_CLASSES, PROBABILITY_CLASSES + 1):
        scores = np.full((1, 2, n_classes), 1 / n_classes, np.float32)
        columns = prediction_columns(CLASSIFICATION, scores, np.array([0, 1]), np.arange(2), ["x", "y"])
        kept = {"logits", "probabilities"} & set(columns)
        assert len(kept) == (2 if n_classes == PROBABILITY_CLASSES else 0)

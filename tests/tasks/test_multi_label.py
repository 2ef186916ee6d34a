"""Multi-label metrics against scikit-learn, intervals against a plain bootstrap over images."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

from loffta.tasks.bootstrap import image_weights, interval
from loffta.tasks.multi_label import activation, decide, details, loss, metrics, notes, resampled

from .scores import area, average_precision, index_bootstrap


def draw(n_images=150, shares=(0.5, 0.2, 0.1), n_seeds=2):
    rng = np.random.default_rng(0)
    has_class = (rng.random((n_images, len(shares))) < shares).astype(np.int8)
    logits = rng.normal(size=(n_seeds, n_images, len(shares))).round(1) + 1.5 * has_class
    return (logits - 0.7).astype(np.float32), has_class


def test_loss_is_the_mean_of_the_classes_binary_cross_entropies():
    logits, has_class = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1, 0], [0, 1]], dtype=torch.int8)
    p = 1 / (1 + np.exp(-logits.numpy()))
    y = has_class.numpy()
    np.testing.assert_allclose(loss(logits, has_class), -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(1), rtol=1e-6)
    assert loss(logits.bfloat16(), has_class).dtype == torch.bfloat16
    np.testing.assert_allclose(activation(logits), p, rtol=1e-6)
    assert decide(logits.numpy()).tolist() == [[True, False], [True, True]]


def test_metrics_equal_sklearn():
    (logits, _), has_class = draw()
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert metrics(logits, has_class, "abc") == pytest.approx(
        {
            "map": average_precision_score(has_class, p, average="macro"),
            "f1": f1_score(has_class, p >= 0.5, average="macro"),
            "log_loss": np.mean([log_loss(has_class[:, c], p[:, c]) for c in range(3)]),
            "roc_auc": roc_auc_score(has_class, p, average="macro"),
        }
    )
    assert notes(has_class, ["a", "b", "c"]) == {}


def test_a_head_that_is_sure_of_itself_makes_no_ties():
    (logits, _), has_class = draw(400)
    sharp = 40 * (logits + 2)
    found, plain = metrics(sharp, has_class, "abc"), metrics(logits, has_class, "abc")
    tied = (1 / (1 + np.exp(-sharp.clip(-80)))).astype(np.float32)
    assert (tied == 1).mean() > 0.4
    for name, score in (("map", average_precision_score), ("roc_auc", roc_auc_score)):
        assert found[name] == pytest.approx(plain[name])
        assert abs(score(has_class, tied, average="macro") - plain[name]) > 0.01


def test_classes_without_images_are_left_out():
    logits, has_class = draw(n_seeds=1)
    has_class[:, 0], has_class[:, 2], logits[..., 2] = 1, 0, -9
    found = metrics(logits[0], has_class, "abc")
    second = average_precision_score(has_class[:, 1], logits[0, :, 1])
    assert found["map"] == pytest.approx((1 + second) / 2)
    assert found["roc_auc"] == pytest.approx(roc_auc_score(has_class[:, 1], logits[0, :, 1]))
    each = [f1_score(has_class[:, c], logits[0, :, c] >= 0) for c in (0, 1)]
    assert found["f1"] == pytest.approx(np.mean(each)), "the third is on no image and never predicted"
    assert notes(has_class, ["a", "b", "c"]) == {
        "map": "1 of 3 classes are on no image (c) and are left out",
        "roc_auc": "2 of 3 classes are on no image or on all (a, c) and are left out",
    }
    rows = details(logits, has_class, ["a", "b", "c"])["per_class"]
    assert [row["ap"] for row in rows] == [1.0, pytest.approx(second), None]
    assert [row["images"] for row in rows] == has_class.sum(axis=0).tolist()
    assert resampled(logits, has_class, "abc", image_weights(150, 5)).keys() == found.keys()


def test_little_can_be_said_without_labels():
    logits, has_class = draw(n_seeds=1)
    assert metrics(logits[0], 0 * has_class, "abc").keys() == {"log_loss"}
    assert notes(0 * has_class, ["a", "b", "c"])["map"] == "left out: 3 of 3 classes are on no image (a, b, c)"
    assert resampled(logits, 0 * has_class, "abc", image_weights(150, 5)).keys() == {"log_loss"}


def test_every_resample_equals_sklearn_on_its_images():
    logits, has_class = draw(40)
    (weights,) = image_weights(40, 10)
    found = resampled(logits, has_class, "abc", [weights])
    for i, drawn in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(40), drawn)
        each = [metrics(of_seed[rows], has_class[rows], "abc") for of_seed in logits]
        for name in ("map", "f1", "log_loss"):
            assert found[name][i] == pytest.approx(np.mean([of_seed[name] for of_seed in each]), abs=1e-6), name


def test_per_class_precision_is_the_mean_over_seeds():
    scores, has_class = draw(n_seeds=3)
    rows = details(scores, has_class, ["a", "b", "c"])["per_class"]
    for c, row in enumerate(rows):
        expected = np.mean([average_precision_score(has_class[:, c], of_seed[:, c]) for of_seed in scores])
        assert (row["class"], row["ap"]) == ("abc"[c], pytest.approx(expected))


def test_intervals_equal_a_plain_bootstrap():
    scores, has_class = draw()

    def plain(scores, has_class):
        each = [(of_seed[:, c], has_class[:, c] > 0) for of_seed in scores for c in range(3)]
        return {
            "map": np.mean([average_precision(*one) for one in each]),
            "roc_auc": np.mean([area(*one) for one in each]),
        }

    expected = index_bootstrap(plain, scores, has_class, 600)
    values = resampled(scores, has_class, "abc", image_weights(150, 5000))
    for name, bounds in expected.items():
        width = bounds[1] - bounds[0]
        assert interval(values[name]) == pytest.approx(bounds, abs=0.15 * width), name
        assert width > 0.02

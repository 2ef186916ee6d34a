"""Ranking metrics of resamples against scikit-learn on the images drawn, repeated as often as they were."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from loffta.tasks import ranking
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.ranking import RocAreas, average_precisions, log_odds, placements


def draw(n_images=60, share=0.3, decimals=1):
    """Scores with ties, and positives that score higher."""
    rng = np.random.default_rng(0)
    positive = rng.random(n_images) < share
    return (rng.normal(size=n_images) + positive).round(decimals).astype(np.float32), positive


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_placements_equal_counting_pairs(decimals):
    scores, positive = draw(decimals=decimals)
    found = placements(scores, positive)
    for score, is_positive, placement in zip(scores, positive, found, strict=True):
        others = scores[positive != is_positive]
        sign = 1 if is_positive else -1
        expected = ((sign * score > sign * others) + 0.5 * (score == others)).mean()
        assert placement == pytest.approx(expected, abs=1e-6)
    area = roc_auc_score(positive, scores)
    assert found[positive].mean() == pytest.approx(area, abs=1e-6)
    assert found[~positive].mean() == pytest.approx(area, abs=1e-6)


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_average_precision_of_a_resample_equals_sklearns_of_its_images(decimals):
    scores, positive = draw(decimals=decimals)
    (weights,) = image_weights(len(scores), 40)
    found = average_precisions(scores, positive, np.ascontiguousarray(weights.T))
    for drawn, precision in zip(weights.astype(int), found, strict=True):
        rows = np.repeat(np.arange(len(scores)), drawn)
        assert precision == pytest.approx(average_precision_score(positive[rows], scores[rows]))


def test_average_precision_without_positives():
    scores, positive = draw()
    without = (~positive).astype(np.float32)[:, None]
    assert np.isnan(average_precisions(scores, positive, without)).all()
    assert np.isnan(average_precisions(scores, np.zeros_like(positive), without)).all()
    only_lowest = np.zeros((3, 1), np.float32)
    only_lowest[0] = 3  # nothing was drawn above the positive image
    assert average_precisions(np.array([1.0, 2.0, 3.0]), np.array([True, True, False]), only_lowest) == [1.0]


def test_roc_areas_are_exact_on_the_images_and_near_on_resamples():
    """First order: an error of the size 1 / n where the spread is 1 / sqrt(n)."""
    rng = np.random.default_rng(2)
    positive = rng.random((300, 3)) < [0.5, 0.2, 0.05]
    scores = (rng.normal(size=(2, 300, 3)) + positive).astype(np.float32)
    areas = RocAreas(scores, positive)
    ones = np.ones((1, 300), np.float32)
    expected = [np.mean([roc_auc_score(positive[:, c], s[:, c]) for s in scores]) for c in range(3)]
    np.testing.assert_allclose(areas(ones)[0], expected, atol=1e-6)
    (weights,) = image_weights(300, 60)
    exact = []
    for drawn in weights.astype(int):
        rows = np.repeat(np.arange(300), drawn)
        exact.append([np.mean([roc_auc_score(positive[rows, c], s[rows, c]) for s in scores]) for c in range(3)])
    error = areas(weights) - np.array(exact)
    assert (np.abs(error.mean(axis=0)) < 0.005).all()
    assert (error.std(axis=0) < 0.15 * np.std(exact, axis=0)).all()


def test_roc_areas_leave_out_what_has_no_curve():
    positive = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]], dtype=bool)
    areas = RocAreas(np.zeros((1, 3, 3), np.float32), positive)
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0]], np.float32)
    np.testing.assert_array_equal(areas(weights), [[0.5], [np.nan], [np.nan]])


def test_a_resample_is_never_beyond_a_perfect_curve():
    scores, positive = np.array([[[3.0], [1.0], [2.0], [0.0]]], np.float32), np.array([[1], [1], [0], [0]], dtype=bool)
    without_the_fault = np.array([[4, 0, 0, 0.0]], np.float32) + np.array([[0, 0, 0, 1.0]], np.float32)
    assert RocAreas(scores, positive)(without_the_fault) == [[1.0]]


@pytest.mark.parametrize("scale", [1, 50, 5000])
def test_log_odds_are_those_of_exact_probabilities(monkeypatch, scale):
    """Each class against the sum of the others by a plain loop; ties, two classes alike, and sums that underflow."""
    monkeypatch.setattr(ranking, "_VALUES", 10)  # two images at once
    logits = (scale * np.random.default_rng(0).normal(size=(9, 5))).astype(np.float32)
    logits[1], logits[2, 0] = 0, logits[2, 1:].max()
    found = log_odds(logits)
    for row, odds in zip(logits.astype(np.float64), found, strict=True):
        for c, value in enumerate(odds):
            assert value == pytest.approx(row[c] - np.logaddexp.reduce(np.delete(row, c)), rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(log_odds(logits[:, :2])[:, 1], logits[:, 1] - logits[:, 0], rtol=1e-6, atol=1e-6)

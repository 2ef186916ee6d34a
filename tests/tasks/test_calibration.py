"""Figures of calibration against loops over images, scikit-learn, and answers that are known."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from loffta.tasks.calibration import calibration, equal_mass, equal_width, fit_temperature, log_of_mean, refuse, risks

from .scores import draw_labels, draw_logits, softmax


def drawn(n_images=300, n_classes=4, **values):
    labels = draw_labels(n_images)[:n_images]
    return draw_logits(labels, n_classes, 1, **values)[0], labels


def slow_ece(logits, labels, n_bins=15):
    """Guo et al.'s formula, bin by bin; and the largest gap."""
    chances = softmax(logits)
    found, worst = 0.0, 0.0
    for m in range(1, n_bins + 1):
        rows = [i for i, p in enumerate(chances) if (m - 1) / n_bins < p.max() <= m / n_bins]
        if rows:
            gap = abs(np.mean([chances[i].argmax() == labels[i] for i in rows]) - np.mean(chances[rows].max(axis=1)))
            found += len(rows) / len(labels) * gap
            worst = max(worst, gap)
    return found, worst


@pytest.mark.parametrize("signal", [0.2, 1.5, 4.0])
def test_figures_equal_loops_and_scikit_learn(signal):
    logits, labels = drawn(signal=signal)
    found, chances = calibration(logits, labels), softmax(logits)
    ece, mce = slow_ece(logits, labels)
    assert found["ece_width15"] == pytest.approx(ece)
    assert found["mce_width15"] == pytest.approx(mce)
    assert found["log_loss"] == pytest.approx(log_loss(labels, chances, labels=range(4)))
    assert found["brier_sum"] == pytest.approx(brier_score_loss(labels, chances, labels=range(4)))
    assert found["brier_sum"] == pytest.approx(
        np.mean([((chances[i] - np.eye(4)[labels[i]]) ** 2).sum() for i in range(300)])
    )
    order = np.argsort(chances.max(axis=1), kind="stable")
    parts = [order[i : i + 20] for i in range(0, 300, 20)]
    gaps = [abs((chances[rows].argmax(1) == labels[rows]).mean() - chances[rows].max(1).mean()) for rows in parts]
    assert found["ece_mass15"] == pytest.approx(np.mean(gaps))
    assert (equal_mass(logits, labels).n_images == 20).all()


def test_bins_are_open_below_and_closed_above():
    """Of two classes with odds 1 : 1 the confidence is 0.5, the upper end of the fifth of ten bins."""
    bins = equal_width(np.zeros((4, 2)), np.array([0, 0, 0, 1]), 10)
    assert bins.n_images.tolist() == [0, 0, 0, 0, 4, 0, 0, 0, 0, 0]
    assert (bins.confidence[4], bins.accuracy[4]) == (0.5, 0.75)
    assert np.isnan(bins.accuracy[0])


def test_labels_drawn_from_the_probabilities_are_calibrated_at_temperature_one():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20_000, 5))
    labels = (softmax(logits).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert calibration(logits, labels)["ece_width15"] < 0.015
    for factor in (0.3, 1.0, 4.0):
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)
    assert calibration(4 * logits, labels)["ece_width15"] > 0.1
    assert calibration(4 * logits / fit_temperature(4 * logits, labels), labels)["ece_width15"] < 0.015


def test_the_temperature_is_the_best_of_a_fine_grid():
    logits, labels = drawn()
    grid = np.exp(np.linspace(-2, 2, 4001))
    losses = [log_loss(labels, softmax(logits / t), labels=range(4)) for t in grid[::10]]
    near = np.argmin(losses) * 10
    fine = grid[max(0, near - 10) : near + 11]
    best = fine[np.argmin([log_loss(labels, softmax(logits / t), labels=range(4)) for t in fine])]
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=2e-3)


def test_there_is_no_temperature_where_sharper_or_flatter_is_ever_better():
    labels = np.array([0, 1, 1])
    right = np.eye(2)[labels] * 3
    assert fit_temperature(right, labels) is None
    assert fit_temperature(-right, labels) is None


def test_blocks_change_nothing(monkeypatch):
    logits, labels = drawn()
    whole, temperature = calibration(logits, labels), fit_temperature(logits, labels)
    monkeypatch.setattr("loffta.tasks.calibration._VALUES", 7 * logits.shape[1])
    assert calibration(logits, labels) == pytest.approx(whole)
    assert fit_temperature(logits, labels) == pytest.approx(temperature)


def test_log_of_mean_has_the_mean_of_the_seeds_probabilities():
    logits = np.stack([drawn(signal=signal)[0] for signal in (0.2, 1.5, 4.0)])
    np.testing.assert_allclose(softmax(log_of_mean(logits)), softmax(logits).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(softmax(log_of_mean(logits[:1])), softmax(logits[0]), atol=1e-12)
    far = np.array([[[2000.0, 0.0]], [[2000.0, 0.0]]])
    np.testing.assert_allclose(log_of_mean(far), [[0, -2000]])


def test_risks_equal_a_loop_that_sorts_by_confidence():
    logits, labels = drawn(digits=6)
    chances = softmax(logits)
    order = sorted(range(300), key=lambda i: -chances[i].max())
    slow = [np.mean([chances[i].argmax() != labels[i] for i in order[:n]]) for n in range(1, 301)]
    np.testing.assert_allclose(risks(logits, labels), slow, atol=1e-12)
    assert calibration(logits, labels)["aurc"] == pytest.approx(np.mean(slow))
    assert refuse(logits, labels, 0.1) == pytest.approx(1 - slow[269])
    assert calibration(logits, labels)["top1_surest_90"] == pytest.approx(1 - slow[269])
    assert refuse(logits, labels, 0.0) == pytest.approx((chances.argmax(axis=1) == labels).mean())
    assert refuse(logits, labels, 0.9999) == pytest.approx(1 - slow[0])


def test_equally_sure_images_count_as_drawn_by_chance():
    """Where all are equally sure no order helps; and logits of 100 are told apart where a softmax is 1."""
    labels = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(risks(np.tile([3.0, 1.0], (4, 1)), labels), 0.25)
    far = np.array([[100.0, 0], [110, 0], [120, 0], [90, 0]])
    np.testing.assert_allclose(risks(far, labels), [0, 0, 0, 0.25])

"""Weights of resamples against drawing images one by one."""

import numpy as np
import pytest

from loffta.tasks import bootstrap
from loffta.tasks.bootstrap import image_weights, interval, mean_of_defined, ratio


def test_a_resample_draws_as_many_images_as_there_are():
    (weights,) = image_weights(30, 200)
    assert weights.shape == (200, 30)
    assert (weights.sum(axis=1) == 30).all()
    assert (weights == weights.round()).all()
    assert weights.var() == pytest.approx(1 - 1 / 30, abs=0.05)  # multinomial: n p (1 - p)


def test_blocks_change_nothing(monkeypatch):
    whole = np.concatenate(list(image_weights(50, 101, seed=3)))
    monkeypatch.setattr(bootstrap, "_BLOCK", 50 * 7)
    blocks = list(image_weights(50, 101, seed=3))
    assert [len(block) for block in blocks] == [7] * 14 + [3]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert not np.array_equal(np.concatenate(list(image_weights(50, 101, seed=4))), whole)


def test_mean_of_resamples_has_the_textbook_error():
    values = np.random.default_rng(0).normal(size=400).astype(np.float32)
    (weights,) = image_weights(400, 4000)
    low, high = interval(weights.astype(np.float64) @ values / 400)
    error = values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.01)


def test_what_is_undefined_is_left_out():
    shares = ratio(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0], [4.0, 5.0]]))
    np.testing.assert_array_equal(shares, [[0.5, np.nan], [0.75, 0.0]])
    np.testing.assert_array_equal(mean_of_defined(shares), [0.5, 0.375])
    assert np.isnan(mean_of_defined(np.array([[np.nan, np.nan]]))).all()
    assert interval(np.array([np.nan, 0.25, 0.25])) == (0.25, 0.25)

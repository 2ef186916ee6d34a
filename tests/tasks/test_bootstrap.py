"""Weights of resamples against drawing images one by one."""

import numpy as np
import pytest

from loffta.tasks import bootstrap
from loffta.tasks.bootstrap import group_weights, image_weights, interval, mean_of_defined, ratio


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


def test_groups_are_drawn_whole_and_every_image_of_a_group_as_often():
    groups = ["b", "a", "b", "c", "a", "b", "d"]
    sizes = {"a": 2, "b": 3, "c": 1, "d": 1}
    rows = np.concatenate(list(group_weights(groups, 200, seed=3)))
    by_group = np.concatenate(list(image_weights(4, 200, seed=3)))
    for row, times in zip(rows, by_group, strict=True):
        drawn = dict(zip("abcd", times, strict=True))
        n_images = sum(drawn[name] * sizes[name] for name in "abcd")
        assert row == pytest.approx([drawn[name] * 7 / n_images for name in groups])
    assert rows.sum(axis=1) == pytest.approx(np.full(200, 7.0))


def test_an_interval_over_groups_holds_the_truth_where_one_over_images_does_not():
    """Patients who are all right or all wrong, 40 of them with 10 images each: the truth is 0.7."""
    held = {"groups": 0, "images": 0}
    for trial in range(60):
        right = np.repeat(np.random.default_rng(trial).random(40) < 0.7, 10).astype(float)
        groups = np.repeat([f"p{i}" for i in range(40)], 10).tolist()
        for name, blocks in (("groups", group_weights(groups, 200)), ("images", image_weights(400, 200))):
            low, high = interval(np.concatenate([weights @ right for weights in blocks]) / 400)
            held[name] += low <= 0.7 <= high
    assert held["groups"] > 0.85 * 60
    assert held["images"] < 0.6 * 60

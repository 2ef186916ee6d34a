"""Codes and what they stand for, against the formula written out in numpy float64."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loffta.store.quantise import dequantise, fit_scales, quantise
from loffta.store.scales import CODES, MISSING_CODE, Scales


def fit(values):
    """Scales of [n, L, cells, D] from its own range."""
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return fit_scales(tensor.amin(dim=(0, 2)), tensor.amax(dim=(0, 2)))


def round_trip(values, scales):
    tensor = torch.as_tensor(values, dtype=torch.float32)
    codes = quantise(tensor, scales)
    return dequantise(codes.values, scales).numpy(), codes


def plain_codes(values, scales):
    """One value at a time, in float64."""
    codes, saturated = np.empty(values.shape, np.int64), np.zeros(values.shape[:2], np.int64)
    for place in np.ndindex(values.shape):
        tap, channel = place[1], place[-1]
        nearest = round(float(values[place]) / float(scales.scale[tap, channel]) + float(scales.zero[tap, channel]))
        codes[place] = min(max(nearest, -127), 127)
        saturated[place[:2]] += nearest != codes[place]
    return codes, saturated


def test_codes_and_values_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    sample = (rng.normal(size=(4, 2, 9, 3)) * [0.1, 1, 40]).astype(np.float32)
    scales = fit(sample)
    unseen = (rng.normal(size=(3, 2, 3, 5, 3)) * [0.1, 2, 90]).astype(np.float32)
    values, codes = round_trip(unseen, scales)
    expected, saturated = plain_codes(unseen, scales)
    assert np.abs(codes.values.numpy() - expected).max() <= 1  # a tie in float32 may be none in float64
    assert (codes.values.numpy() == expected).mean() > 0.99
    np.testing.assert_array_equal(codes.saturated.numpy(), saturated)
    assert saturated.sum() > 0
    shape = (1, 2, 1, 1, 3)
    by_hand = (codes.values.numpy().astype(np.float32) - scales.zero.reshape(shape)) * scales.scale.reshape(shape)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, by_hand)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=12))
def test_a_value_in_the_range_is_off_by_half_a_step_and_zero_by_nothing(values):
    sample = np.array(values, np.float32).reshape(1, 1, -1, 1)
    scales = fit(sample)
    decoded, codes = round_trip(np.concatenate([sample, np.zeros((1, 1, 1, 1), np.float32)], axis=2), scales)
    step = float(scales.scale[0, 0])
    assert decoded[0, 0, -1, 0] == 0
    assert codes.saturated.sum() == 0
    # half a step, and what float32 rounds in the division and in the product
    assert np.abs(decoded[0, 0, :-1, 0].astype(np.float64) - sample[0, 0, :, 0]).max() <= step * 0.5001
    assert float(scales.zero[0, 0]).is_integer()
    assert abs(scales.zero[0, 0]) <= CODES


def test_every_code_comes_back_as_itself():
    scales = Scales(np.array([[0.03]], np.float32), np.array([[17]], np.float32))
    codes = torch.arange(-127, 128, dtype=torch.int8).reshape(1, 1, -1, 1)
    again = quantise(dequantise(codes, scales), scales)
    assert torch.equal(again.values, codes)
    assert again.saturated.tolist() == [[0]]


def test_the_missing_code_is_nan_and_nothing_else_is():
    codes = torch.arange(-128, 128).to(torch.int8).reshape(1, 1, -1, 1)
    values = dequantise(codes, fit(np.ones((1, 1, 1, 1)))).flatten()
    assert values.isnan().nonzero().flatten().tolist() == [0]
    assert int(codes.flatten()[0]) == MISSING_CODE


def test_relu_wastes_no_codes_below_zero():
    sample = np.random.default_rng(0).exponential(size=(8, 1, 50, 1)).astype(np.float32)
    sample[:, :, ::2] = 0
    scales = fit(sample)
    assert scales.zero[0, 0] == -CODES
    np.testing.assert_allclose(scales.scale[0, 0], 1.1 * sample.max() / 254, rtol=1e-6)
    decoded, _ = round_trip(sample, scales)
    assert (decoded[:, :, ::2] == 0).all()


def test_the_range_is_wider_than_the_sample_by_a_tenth_at_each_end():
    sample = np.array([-2.0, 0.5, 6.0]).reshape(1, 1, 3, 1)
    decoded, codes = round_trip(np.array([-2.75, 6.75, -3.0, 7.0]).reshape(1, 1, 4, 1), fit(sample))
    assert codes.saturated.tolist() == [[2]]
    np.testing.assert_allclose(decoded.flatten(), [-2.75, 6.75, -2.8, 6.8], atol=9.6 / 254 / 2 + 1e-6)


def test_a_dead_channel_has_its_neighbours_range():
    """Else a value in a later image is lost, or a step of 1e-38 makes every value the end of the range."""
    sample = np.zeros((2, 2, 4, 4), np.float32)
    sample[..., 1], sample[..., 2], sample[..., 3] = 1, 2, 300
    sample[:, 1] = 0
    scales = fit(sample)
    assert scales.scale[0, 0] == scales.scale[0, 2]
    assert scales.zero[0, 0] == 0
    assert (scales.scale[1] == 1).all()  # nothing is known of this tap
    later = np.array([[0.5, 0, 0, 0], [-0.5, 0, 0, 0], [1e9, 0, 0, 0]], np.float32).reshape(1, 1, 3, 4)
    decoded, codes = round_trip(np.concatenate([later, later], axis=1), scales)
    np.testing.assert_allclose(decoded[0, 0, :2, 0], [0.5, -0.5], atol=scales.scale[0, 0] / 2)
    assert codes.saturated.tolist() == [[1, 1]]
    assert (decoded[..., 1:] == 0).all()


@pytest.mark.parametrize("value", [5.0, -0.25, 1e-45, 3e38, -1e-39])
def test_one_value_is_a_range(value):
    sample = np.full((1, 1, 1, 1), value, np.float32)
    decoded, codes = round_trip(sample, fit(sample))
    assert codes.saturated.tolist() == [[0]]
    assert np.isfinite(decoded).all()
    np.testing.assert_allclose(decoded, sample, rtol=0.01, atol=1e-37)


def test_a_loud_channel_does_not_drown_the_others():
    """Per tensor, one channel of 30 times the spread leaves the others 8 codes."""
    sample = np.random.default_rng(0).normal(size=(16, 1, 49, 64)).astype(np.float32)
    sample[..., 7] *= 30
    decoded, _ = round_trip(sample, fit(sample))
    errors = np.sqrt(((decoded - sample) ** 2).mean(axis=(0, 1, 2)) / (sample**2).mean(axis=(0, 1, 2)))
    assert errors.max() < 0.015


def test_scales_of_some_taps():
    scales = fit(np.random.default_rng(0).normal(size=(4, 3, 5, 2)))
    codes = torch.randint(-128, 128, (2, 3, 4, 4, 2), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    expected = dequantise(codes, scales)[:, [2, 0]]
    np.testing.assert_array_equal(dequantise(codes[:, [2, 0]], scales.take([2, 0])), expected)


def test_the_digest_knows_scale_from_zero():
    ones, twos = np.full((1, 1), 1, np.float32), np.full((1, 1), 2, np.float32)
    digests = {Scales(a, b).digest for a in (ones, twos) for b in (ones, twos)}
    assert len(digests) == 4
    assert {len(digest) for digest in digests} == {32}
    assert Scales(ones, twos).digest == hashlib.blake2b(bytes.fromhex("0000803f00000040"), digest_size=16).hexdigest()


def test_half_precision_tokens_are_measured_in_float32():
    scales = fit(np.array([-3.0, 3.0]).reshape(1, 1, 2, 1))
    tokens = torch.linspace(-3, 3, 41).reshape(1, 1, 41, 1).half()
    assert torch.equal(quantise(tokens, scales).values, quantise(tokens.float(), scales).values)

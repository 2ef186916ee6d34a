"""Parameters as they are drawn: their ranges, probabilities, order, and that nothing else decides them."""

import hashlib

import numpy as np
import pytest
import safetensors.torch
import torch

from loffta.augment import PRESETS, AugmentConfig, Parameters, apply, draw, from_preset
from loffta.augment.matrix import N_DRAWS, make_matrix
from loffta.augment.ops import invert
from tests.augment.shown import CPU, generator, move, spec


def parts(config, n_images=4000):
    """Linear part and shift of the forward maps."""
    matrix = invert(draw(config, n_images, generator(), CPU).matrix.double()).numpy()
    return matrix[:, :, :2], matrix[:, :, 2]


def assert_fills(values, low, high):
    """All within the range, uniformly: extremes are reached, and the mean is the middle."""
    span = high - low
    assert low - 1e-5 <= values.min() < low + 0.02 * span
    assert high - 0.02 * span < values.max() <= high + 1e-5
    assert abs(values.mean() - (low + high) / 2) < 0.02 * span


def test_ranges_of_turn_shear_shift_and_scale():
    linear, shift = parts(AugmentConfig(rotation_deg=30))
    assert_fills(np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0])), -30, 30)
    np.testing.assert_allclose(np.linalg.det(linear), 1, atol=1e-5)
    assert abs(shift).max() < 1e-6

    linear, _ = parts(AugmentConfig(shear=0.2))
    assert_fills(-linear[:, 0, 1], -0.2, 0.2)
    assert_fills(-linear[:, 1, 0], -0.2, 0.2)

    linear, shift = parts(AugmentConfig(translation=0.1))
    assert_fills(shift, -0.2, 0.2)  # of an image that is 2 wide
    np.testing.assert_allclose(linear, np.broadcast_to(np.eye(2), linear.shape), atol=1e-6)

    linear, _ = parts(AugmentConfig(scale=(0.8, 1.2)))
    assert_fills(linear[:, 0, 0], 0.8, 1.2)
    np.testing.assert_allclose(linear[:, 0, 0], linear[:, 1, 1], atol=1e-6)


@pytest.mark.parametrize(("axis", "config"), [(0, AugmentConfig(hflip_p=0.3)), (1, AugmentConfig(vflip_p=0.3))])
def test_flips_come_with_their_probability(axis, config):
    linear, _ = parts(config)
    flipped = linear[:, axis, axis] < 0
    assert abs(flipped.mean() - 0.3) < 0.03
    assert (linear[:, 1 - axis, 1 - axis] == 1).all()


def test_crops_are_windows_of_the_image():
    matrix = draw(AugmentConfig(crop_area=(0.25, 0.81)), 4000, generator(), CPU).matrix.numpy()
    side, centre = matrix[:, 0, 0], matrix[:, :, 2]
    assert_fills(side**2, 0.25, 0.81)
    assert (abs(centre).max(1) <= 1 - side + 1e-6).all(), "nothing from beside the image"
    assert_fills(centre / (1 - side)[:, None], -1, 1)
    quarter = Parameters(1, matrix=torch.tensor([[[0.5, 0, -0.5], [0, 0.5, 0.5]]]))  # the lower left
    rows = torch.tensor([1.75, 2.25, 2.75, 3.0])  # of 4; the last lies beyond the last centre, yet inside the image
    columns = torch.tensor([0.0, 0.25, 0.75, 1.25])
    grid = torch.arange(16.0).reshape(1, 1, 4, 4, 1)
    assert torch.equal(move(grid, quarter)[0, 0, :, :, 0], 4 * rows[:, None] + columns)


def test_trivial_does_one_thing_per_image():
    """TrivialAugment's own ranges; kinds of maps told apart by their matrix alone."""
    linear, shift = parts(PRESETS["trivial"], 6000)
    turned = np.isclose(np.linalg.norm(linear[:, 0], axis=1), 1, atol=1e-6) & (abs(linear[:, 0, 1]) > 1e-6)
    found = {
        "turn": turned,
        "shear x": (abs(linear[:, 0, 1]) > 1e-6) & ~turned,
        "shear y": (abs(linear[:, 1, 0]) > 1e-6) & ~turned,
        "shift x": abs(shift[:, 0]) > 1e-6,
        "shift y": abs(shift[:, 1]) > 1e-6,
    }
    counts = np.stack(list(found.values())).sum(0)
    assert counts.max() == 1
    for images in (*found.values(), counts == 0):
        assert abs(images.mean() - 1 / 6) < 0.02
    assert_fills(np.degrees(np.arctan2(linear[turned, 1, 0], linear[turned, 0, 0])), -135, 135)
    assert_fills(-linear[found["shear x"], 0, 1], -0.99, 0.99)
    assert_fills(-linear[found["shear y"], 1, 0], -0.99, 0.99)
    assert_fills(shift[found["shift y"], 1], -2 / 7, 2 / 7)


def test_order_of_the_parts():
    """crop, shear, scale and flip, turn, shift, trivial: written out as matrices, one after the other."""
    config = AugmentConfig(
        hflip_p=1.0,
        vflip_p=0.0,
        rotation_deg=40,
        shear=0.3,
        translation=0.2,
        scale=(0.7, 1.4),
        crop_area=(0.3, 0.6),
        trivial=True,
    )
    drawn = np.random.default_rng(0).random((N_DRAWS, 1))
    drawn[11] = 1.5 / 6  # the second operation: shear along x
    u = 2 * drawn[:, 0] - 1

    def affine(linear, shift=(0, 0)):
        return np.block([[np.array(linear, float), np.array(shift, float)[:, None]], [np.zeros((1, 2)), np.ones(1)]])

    side = np.sqrt(0.3 + 0.3 * drawn[8, 0])
    angle, size = np.radians(40) * u[2], 0.7 + 0.7 * drawn[7, 0]
    crop = affine(np.eye(2) / side, -(1 - side) * u[9:11] / side)
    shear = affine([[1, 0], [-0.3 * u[4], 1]]) @ affine([[1, -0.3 * u[3]], [0, 1]])
    flip = affine([[-size, 0], [0, size]])
    turn = affine([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = affine(np.eye(2), 0.4 * u[5:7])
    trivial = affine([[1, -0.99 * u[12]], [0, 1]])
    expected = np.linalg.inv(trivial @ shift @ turn @ flip @ shear @ crop)[None, :2]
    np.testing.assert_allclose(make_matrix(config, torch.from_numpy(drawn)), expected, atol=1e-5)


def test_same_state_same_parameters_and_the_generator_moves_on():
    config = from_preset("loff-ta", {"mixup_alpha": 0.2, "token_drop": 0.1})
    rng, again = generator(3), generator(3)
    first, second = draw(config, 6, rng, CPU), draw(config, 6, rng, CPU)
    same = draw(config, 6, again, CPU).to_tensors()
    assert all(torch.equal(same[name], value) for name, value in first.to_tensors().items())
    for name in ("matrix", "partner", "weight", "seeds"):
        assert not torch.equal(first.to_tensors()[name], second.to_tensors()[name])
    rng.set_state(again.get_state())  # a training that is resumed
    assert torch.equal(draw(config, 6, rng, CPU).matrix, second.matrix)


def test_a_changed_range_leaves_the_other_draws():
    flips = draw(AugmentConfig(hflip_p=0.5), 50, generator(), CPU).matrix[:, 0, 0]
    config = AugmentConfig(hflip_p=0.5, translation=0.2, mixup_alpha=0.3, noise_std=1)
    assert torch.equal(draw(config, 50, generator(), CPU).matrix[:, 0, 0], flips)


def test_replay(tmp_path):
    """Written to a file and read back, the parameters give the very same features."""
    features = [torch.randn(4, 2, 6, 6, 3), torch.randn(4, 1, 3, 3, 5), torch.randn(4, 1, 2, 3)]
    specs = [spec(shape=(6, 6, 3), taps=("a", "b")), spec(shape=(3, 3, 5)), spec("prefix", (2, 3))]
    config = from_preset("loff-ta", {"mixup_alpha": 0.2, "token_drop": 0.2, "fill": "reflect"})
    parameters = draw(config, 4, generator(), CPU)
    safetensors.torch.save_file(parameters.to_tensors(), tmp_path / "drawn.safetensors")
    replayed = Parameters.from_tensors(safetensors.torch.load_file(tmp_path / "drawn.safetensors"))
    assert replayed.fill == "reflect"
    for a, b in zip(apply(features, specs, parameters), apply(features, specs, replayed), strict=True):
        assert torch.equal(a, b)
    plain = Parameters.from_tensors(Parameters(7).to_tensors())
    assert plain == Parameters(7)


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("mps", True)])
def test_only_cuda_copies_what_may_be_gone_before_it_is_read(monkeypatch, device, waits):
    """CUDA stages pageable memory before `to` returns; MPS reads it later, when these tensors are freed."""
    drawn = draw(AugmentConfig(hflip_p=0.5, mixup_alpha=0.2), 3, generator(), CPU)
    copied = []

    def to(tensor, where, *, non_blocking):
        copied.append((where.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    drawn.to(torch.device(device))
    assert copied == [(device, not waits)] * 3  # matrix, partner, weight


def test_global_generators_have_no_part():
    config = from_preset("loff-ta", {"mixup_alpha": 0.2, "token_drop": 0.2})
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    parameters = draw(config, 4, generator(), CPU)
    move(torch.ones(4, 1, 4, 4, 2), parameters)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_parameters_do_not_change_with_the_release():
    """Runs are repeated from their seeds: a digest of what seed 0 draws, rounded to what all machines agree on."""
    parameters = draw(from_preset("loff-ta", {"mixup_alpha": 0.2}), 5, generator(), CPU)
    rounded = (parameters.matrix * 1000).round().to(torch.int64).numpy().tobytes()
    found = hashlib.sha256(rounded + parameters.partner.numpy().tobytes()).hexdigest()[:16]
    assert found == "1b315862e910e8fa"

"""Class tokens, means and patch tokens as vectors, against loops."""

import math

import pytest
import torch
from torch import nn

from loffta.errors import UsageError
from loffta.heads.vectors import apply_batch_norm, check_vectors, count_vectors, jitter, take_vectors, unit_vectors
from loffta.tokens import FeatureSpec

PREFIX = FeatureSpec("vit", ("1", "2"), "prefix", (5, 4), 32)
ALONE = FeatureSpec("naflex", ("1",), "prefix", (4, 3), 32, registers_only=True)
MEAN = FeatureSpec("vit", ("1", "2"), "mean", (4,), 32)
GRID = FeatureSpec("net", ("1", "2"), "grid", (2, 3, 3), 32)
SPECS = [PREFIX, MEAN, ALONE, GRID]


def draw(specs, n_images=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng) for spec in specs]


def test_registers_are_never_taken():
    prefix, mean, alone, grid = draw(SPECS)
    assert torch.equal(take_vectors(PREFIX, prefix), torch.stack([prefix[:, 0, 0], prefix[:, 1, 0]], dim=1))
    assert torch.equal(take_vectors(MEAN, mean), mean)
    assert take_vectors(ALONE, alone).shape == (2, 0, 3)
    expected = [grid[:, tap, row, column] for tap in range(2) for row in range(2) for column in range(3)]
    assert torch.equal(take_vectors(GRID, grid), torch.stack(expected, dim=1))
    assert [count_vectors(spec) for spec in SPECS] == [2, 2, 0, 12]


def test_unit_vectors_equal_a_loop():
    features = draw(SPECS)
    features[1][0, 1] = 0  # a vector of zeros has no direction
    found = unit_vectors(SPECS, features, 5)
    for image in range(2):
        vectors = [features[0][image, tap, 0] for tap in range(2)] + [features[1][image, tap] for tap in range(2)]
        vectors += [features[3][image, tap, row, column] for tap in range(2) for row in range(2) for column in range(3)]
        for token, vector in enumerate(vectors):
            length = math.sqrt(sum(value.item() ** 2 for value in vector)) or 1.0
            expected = [value.item() / length for value in vector] + [0.0] * (5 - len(vector))
            assert found[image, token].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.shape == (2, 16, 5)


def test_a_backbone_without_class_token():
    check_vectors("linear", SPECS[:2], remedy="")
    check_vectors("linear", [ALONE, FeatureSpec("naflex", ("1",), "mean", (3,), 32)], remedy="")
    with pytest.raises(UsageError) as caught:
        check_vectors("linear", SPECS, remedy="use means")
    assert caught.value.what == "naflex has no class token: its prefix tokens are registers"
    assert (caught.value.where, caught.value.remedy) == ("head 'linear'", "use means")


@pytest.mark.parametrize("affine", [True, False])
def test_one_image_in_training_is_normalised_by_running_statistics(affine):
    norm = nn.BatchNorm1d(3, affine=affine)
    rng = torch.Generator().manual_seed(0)
    if affine:
        nn.init.uniform_(norm.weight, generator=rng)
        nn.init.uniform_(norm.bias, generator=rng)
    many = torch.randn(20, 3, generator=rng)
    assert torch.equal(apply_batch_norm(norm, many), nn.BatchNorm1d.forward(norm, many))
    before = norm.running_mean.clone()
    trained = apply_batch_norm(norm, many[:1])
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(trained, norm.eval()(many[:1]))


@pytest.mark.parametrize("shape", [(30,), (3, 10)])
def test_jitter_is_one_coin_per_image(shape):
    vectors = torch.ones(2000, *shape)
    noise = (jitter(vectors, 0.05, 0.3, torch.Generator().manual_seed(0)) - 1).flatten(1)
    chosen = noise.any(dim=1)
    assert chosen.float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert noise[chosen].std().item() == pytest.approx(0.05, rel=0.02)
    assert abs(noise[chosen].mean().item()) < 1e-3
    assert (noise[chosen] != 0).float().mean() > 0.999  # all tokens, all channels
    assert torch.equal(vectors, torch.ones(2000, *shape))

"""The linear probe against numpy."""

import numpy as np
import pytest
import torch

from loffta.heads.linear import LinearHead, LinearRecipe
from loffta.tokens import FeatureSpec

SPECS = [FeatureSpec("vit", ("1", "last"), "mean", (3,), 32), FeatureSpec("net", ("last",), "mean", (4,), 64)]


def draw(n_images, scale=1.0):
    rng = torch.Generator().manual_seed(n_images)
    return [scale * torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng) + 5 for spec in SPECS]


def test_prepare_concatenates_specs_then_taps():
    vit, net = draw(6)
    prepared = LinearHead(SPECS, 2, rng=torch.Generator()).prepare([vit, net])
    assert torch.equal(prepared, torch.cat([vit[:, 0], vit[:, 1], net[:, 0]], dim=1))


def test_logits_are_an_affine_map_of_standardised_vectors():
    head = LinearHead(SPECS, 7, rng=torch.Generator().manual_seed(0)).train()
    prepared = head.prepare(draw(50, scale=30.0))
    vectors = prepared.double().numpy()
    standard = (vectors - vectors.mean(axis=0)) / np.sqrt(vectors.var(axis=0) + 1e-5)
    weight, bias = head.classify.weight.detach().numpy(), head.classify.bias.detach().numpy()
    np.testing.assert_allclose(head(prepared).detach(), standard @ weight.T + bias, atol=1e-5)


def test_one_leftover_image_is_standardised_by_running_statistics():
    head = LinearHead(SPECS, 7, rng=torch.Generator().manual_seed(0)).train()
    head(head.prepare(draw(50)))
    running = {name: value.clone() for name, value in head.named_buffers()}
    single = head.prepare(draw(1))
    trained = head(single)
    assert all(torch.equal(value, running[name]) for name, value in head.named_buffers())
    assert torch.equal(trained, head.eval()(single))


def test_initial_weights():
    specs = [FeatureSpec("vit", ("last",), "mean", (768,), 224)]
    head = LinearHead(specs, 100, rng=torch.Generator().manual_seed(0))
    assert head.classify.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert sum(parameter.numel() for parameter in head.parameters()) == 768 * 100 + 100
    assert head.no_decay() == {"classify.bias"}


def test_learns_a_small_difference_on_a_large_offset():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    vectors = 100 + torch.randn(64, 1, 16, generator=rng)
    vectors[:, 0, 3] += 4 * labels
    head = LinearHead([FeatureSpec("vit", ("last",), "mean", (16,), 32)], 2, rng=rng).train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(head.prepare([vectors])), labels).backward()
        optimiser.step()
    assert (head.eval()(head.prepare([vectors])).argmax(dim=1) == labels).float().mean() > 0.95


def test_default_recipe():
    recipe = LinearRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (100, 64, 1e-3, 1e-4)
    assert recipe.head_arguments() == {}

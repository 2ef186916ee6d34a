"""Head2Toe: penalty, selection and second phase against numpy and a plain linear probe."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from loffta.heads import HEADS, build_head
from loffta.heads.head2toe import Head2ToeHead, Head2ToeRecipe
from loffta.tokens import FeatureSpec
from loffta.training.optim import lr_at

SPECS = [
    FeatureSpec("vit", ("blocks.0", "blocks.1"), "grid", (2, 2, 6), 32),
    FeatureSpec("vit", ("blocks.0", "blocks.1"), "prefix", (1, 6), 32),
    FeatureSpec("net", ("stages.0",), "grid", (2, 2, 4), 32),
]
K = 6 + 6 + 4  # with pooled_size 4, all taps are means


def draw(n_images=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng) for spec in SPECS]


def build(seed=0, **arguments):
    return Head2ToeHead(SPECS, 3, rng=torch.Generator().manual_seed(seed), **{"pooled_size": 4} | arguments)


def test_penalty_is_the_sum_of_the_features_norms():
    head = build(lasso_weight=0.5)
    weight = head.classify.weight.detach().double().numpy()
    expected = 0.5 * sum(math.sqrt((weight[:, i] ** 2).sum()) for i in range(K))
    assert head.penalty().item() == pytest.approx(expected, rel=1e-6)
    assert build(lasso_weight=0).penalty() is None


def test_penalty_of_a_feature_without_weights_has_no_slope():
    head = build()
    head.classify.weight.data[:, 3] = 0
    head.penalty().backward()
    gradient = head.classify.weight.grad
    assert not gradient[:, 3].any()
    np.testing.assert_allclose(gradient[:, [0, 5, 15]].norm(dim=0), head.lasso_weight, rtol=1e-5)


def kept_shares(head):
    return {f"{kept['backbone']}:{kept['tap']}": kept["value"] for kept in head.findings(None)["kept"]}


@pytest.mark.parametrize(("fraction", "n_kept"), [(0.01, 1), (0.3, 4), (0.5, 8), (1, 16)])  # 4.8 is 4, as in the code
def test_keeps_the_features_with_the_largest_squares(fraction, n_kept):
    head = build(keep_fraction=fraction)
    weight = head.classify.weight.detach().numpy()
    best = np.argsort(-(weight**2).sum(axis=0))[:n_kept]
    head.start_phase(1, torch.Generator().manual_seed(1))
    assert set(np.flatnonzero(head.kept)) == set(best)
    shares = kept_shares(head)
    assert list(shares) == ["vit:blocks.0", "vit:blocks.1", "net:stages.0"]
    ranges = {"vit:blocks.0": (0, 6), "vit:blocks.1": (6, 12), "net:stages.0": (12, 16)}
    for name, (start, stop) in ranges.items():
        assert shares[name] == pytest.approx(sum(start <= i < stop for i in best) / (stop - start))


def test_all_is_kept_before_the_selection():
    assert set(kept_shares(build()).values()) == {1.0}


def test_second_phase_has_new_weights_for_what_is_kept():
    head = build(keep_fraction=0.5)
    old = head.classify.weight.detach().clone()
    head.start_phase(1, torch.Generator().manual_seed(1))
    weight = head.classify.weight.detach()
    assert not weight[:, ~head.kept].any()
    assert weight[:, head.kept].all()
    assert not torch.equal(weight[:, head.kept], old[:, head.kept])
    assert weight.abs().max() <= math.sqrt(6 / (8 + 3))
    assert not head.classify.bias.any()
    assert head.penalty() is None
    other = build(keep_fraction=0.5)
    other.start_phase(1, torch.Generator().manual_seed(1))
    assert torch.equal(other.classify.weight, weight)


def test_second_phase_scales_what_is_kept_of_each_tap():
    head = build(keep_fraction=0.4)
    head.start_phase(1, torch.Generator().manual_seed(1))
    prepared = head.prepare(draw())
    weight, bias = head.classify.weight.detach().double().numpy(), head.classify.bias.detach().numpy()
    kept = head.kept.numpy()
    for image, logits in zip(prepared.double().numpy(), head(prepared).detach(), strict=True):
        expected = bias.astype(np.float64)
        for start, stop in ((0, 6), (6, 12), (12, 16)):
            part = image[start:stop][kept[start:stop]]
            if len(part):
                expected = expected + weight[:, start:stop][:, kept[start:stop]] @ (part / np.sqrt((part**2).sum()))
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def optimise(parameters, compute_loss, n_steps=60):
    recipe = Head2ToeRecipe()
    optimizer = torch.optim.Adam(parameters, lr=recipe.lr)
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = lr_at(step, n_steps, recipe)
        optimizer.zero_grad()
        compute_loss().backward()
        optimizer.step()


def test_with_everything_kept_it_is_a_linear_probe():
    """methods.md 9.9: F = 1 and c = 0; the probe is torch's own layer on the taps' means, scaled to length 1."""
    features, labels = draw(), torch.arange(8) % 3
    head = build(keep_fraction=1, lasso_weight=0).train()
    prepared = head.prepare(features)
    optimise(head.parameters(), lambda: F.cross_entropy(head(prepared), labels))
    head.start_phase(1, torch.Generator().manual_seed(1))
    tokens = torch.cat([features[1], features[0].flatten(2, 3)], dim=2)  # class token, then patches
    vectors = [tokens[:, 0].mean(1), tokens[:, 1].mean(1), features[2][:, 0].mean((1, 2))]
    inputs = torch.cat([vector / vector.norm(dim=1, keepdim=True) for vector in vectors], dim=1)
    probe = nn.Linear(K, 3)
    probe.load_state_dict({name: head.classify.state_dict()[name].clone() for name in ("weight", "bias")})
    optimise(head.parameters(), lambda: F.cross_entropy(head(prepared), labels))
    optimise(probe.parameters(), lambda: F.cross_entropy(probe(inputs), labels))
    torch.testing.assert_close(head(prepared), probe(inputs), atol=1e-4, rtol=1e-4)
    assert (probe(inputs).argmax(dim=1) == labels).all()


def test_features_left_out_stay_out_while_it_trains():
    head = build(keep_fraction=0.3).train()
    head.start_phase(1, torch.Generator().manual_seed(1))
    prepared, labels = head.prepare(draw()), torch.arange(8) % 3
    optimise(head.parameters(), lambda: F.cross_entropy(head(prepared), labels))
    assert not head.classify.weight[:, ~head.kept].any()


@pytest.mark.parametrize("fraction", [0.3, 1])
def test_phase_and_selection_are_in_the_state(fraction):
    """`evaluate` builds a head and loads its state, and starts no phase."""
    head = build(keep_fraction=fraction, lasso_weight=1)
    fresh = build(seed=5, keep_fraction=fraction, lasso_weight=1)
    fresh.load_state_dict(head.state_dict())
    assert fresh.penalty() is not None
    head.start_phase(1, torch.Generator().manual_seed(1))
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(fresh.kept, head.kept)
    assert fresh.penalty() is None
    prepared = head.prepare(draw())
    assert torch.equal(fresh(prepared), head(prepared))


def test_finds_the_features_that_matter():
    """Of 16 features, the classes differ in two: they are among the four that a first phase keeps."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = [0.3 * torch.randn(60, len(spec.taps), *spec.shape, generator=rng) + 0.3 for spec in SPECS]
    features[0][:, 1, :, :, 2] += 3.0 * (labels == 1)[:, None, None]
    features[2][:, 0, :, :, 3] += 3.0 * (labels == 2)[:, None, None]
    head = build(keep_fraction=4 / K, lasso_weight=0.01).train()
    head.classify.weight.data *= 0.1  # a hundred steps would not undo what was drawn
    prepared = head.prepare(features)
    optimise(head.parameters(), lambda: F.cross_entropy(head(prepared), labels) + head.penalty(), n_steps=100)
    head.start_phase(1, rng)
    assert {6 + 2, 12 + 3} <= set(np.flatnonzero(head.kept))
    optimise(head.parameters(), lambda: F.cross_entropy(head(prepared), labels), n_steps=100)
    assert (head.eval()(prepared).argmax(dim=1) == labels).float().mean() > 0.8


def test_recipe_of_the_code():
    recipe = Head2ToeRecipe()
    assert (recipe.batch_size, recipe.lr, recipe.weight_decay, recipe.min_steps) == (128, 0.01, 0.0, 500)
    sizes = {"pooled_size": 512, "keep_fraction": 0.1, "lasso_weight": 1e-4}
    assert recipe.head_arguments() == sizes | {"tensors": None}
    assert recipe.resolve(SPECS).head_arguments() == sizes | {"tensors": "code"}
    assert Head2ToeRecipe(tensors="taps").resolve(SPECS).tensors == "taps"
    assert (recipe.adam, recipe.same_batches, recipe.divide_by_whole_batch) == ("keras", True, True)
    assert (recipe.search_lr, recipe.search_weight_decay) == ((0.1, 0.01), None)
    rates = [lr_at(step, 500, recipe) for step in range(501)]
    assert rates[0] == 0.01  # no warm-up
    assert rates[500] == pytest.approx(0, abs=1e-12)
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 500)) / 2 for step in range(501)])
    assert (Head2ToeHead.n_phases, Head2ToeHead.default_taps) == (2, "every")
    for fraction in (0, 1.5):
        with pytest.raises(ValidationError, match="keep_fraction"):
            Head2ToeRecipe(keep_fraction=fraction)
    assert isinstance(build_head("head2toe", SPECS, 3, recipe, 0), HEADS["head2toe"].head)

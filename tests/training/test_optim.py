"""The schedule against pl_bolts' recursion, steps and parameter groups."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loffta.heads.attentive import AttentiveHead
from loffta.heads.combo import ComboHead, ComboRecipe
from loffta.heads.fusion import FusionHead, FusionRecipe
from loffta.heads.head2toe import Head2ToeRecipe
from loffta.heads.linear import LinearHead
from loffta.heads.recipe import Recipe
from loffta.tokens import FeatureSpec
from loffta.training.optim import (
    adam_eps,
    fit_to_images,
    fit_to_part,
    lr_at,
    lr_factor,
    make_optimizer,
    n_steps,
    parameter_groups,
)


def pl_bolts_recursion(total, n_warmup, base, start, final):
    """Each learning rate from the one before, as that scheduler's get_lr defines it."""
    half = math.pi / (total - n_warmup)
    rates = [start]
    for step in range(1, total):
        before = rates[-1]
        if step < n_warmup:
            rates.append(before + (base - start) / (n_warmup - 1))
        elif step == n_warmup:
            rates.append(base)
        else:
            shrink = (1 + math.cos(half * (step - n_warmup))) / (1 + math.cos(half * (step - n_warmup - 1)))
            rates.append(final + shrink * (before - final))
    return rates


@pytest.mark.parametrize(
    ("n_images", "batch_size", "epochs", "steps"), [(800, 64, 100, 1300), (1000, 64, 100, 1600), (64, 64, 1, 1)]
)
def test_steps(n_images, batch_size, epochs, steps):
    assert n_steps(n_images, batch_size, epochs) == steps


# of 1,306, 768 and 39 steps a tenth is 130.6, 76.8 and 3.9: the code takes the whole part
@pytest.mark.parametrize(("total", "n_warmup"), [(1300, 130), (1600, 160), (20, 2), (1306, 130), (768, 76), (39, 3)])
def test_schedule_equals_pl_bolts(total, n_warmup):
    recipe = ComboRecipe()
    expected = pl_bolts_recursion(total, n_warmup, base=1e-3, start=1e-5, final=1e-6)
    assert [lr_at(step, total, recipe) for step in range(total)] == pytest.approx(expected, rel=1e-6)


def test_landmarks_of_the_schedule():
    recipe = ComboRecipe(lr=0.5)
    factors = [lr_factor(step, 1300, recipe) for step in range(1301)]
    assert factors[0] == 0.01
    assert factors[129] == factors[130] == 1
    assert factors[131] < 1
    assert factors[715] == pytest.approx(0.5005)  # half way down the cosine
    assert factors[1300] == pytest.approx(0.001)
    assert lr_at(130, 1300, recipe) == 0.5


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 3, 9])
def test_short_trainings_have_positive_rates(total, fraction):
    recipe = ComboRecipe(warmup_fraction=fraction)
    factors = [lr_factor(step, total, recipe) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    if fraction == 0:
        assert factors[0] == 1


def test_groups_by_name():
    specs = [FeatureSpec("vit", ("1",), "grid", (2, 2, 4), 32)]
    head = ComboHead(specs, 3, rng=torch.Generator(), depth=1)
    names = {id(parameter): name for name, parameter in head.named_parameters()}
    decay, no_decay = parameter_groups(head, 0.1)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.1)
    assert (no_decay["name"], no_decay["weight_decay"]) == ("no_decay", 0.0)
    decayed = [names[id(parameter)] for parameter in decay["params"]]
    assert decayed == [
        "project.weight",
        *(f"blocks.0.{n}.weight" for n in ("qkv", "proj", "fc1", "fc2")),
        "classify.weight",
    ]
    assert {names[id(parameter)] for parameter in no_decay["params"]} == set(names.values()) - set(decayed)


def test_adamw_takes_the_groups():
    head = LinearHead([FeatureSpec("vit", ("1",), "mean", (4,), 32)], 3, rng=torch.Generator())
    optimiser = torch.optim.AdamW(parameter_groups(head, 0.5), lr=0.1)
    weight, bias = head.classify.weight.detach().clone(), head.classify.bias.detach().clone()
    for parameter in head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    torch.testing.assert_close(head.classify.weight.detach(), weight * 0.95)
    assert torch.equal(head.classify.bias, bias)


BATCHES = {  # images: batch, last batch; the first eight are those of ALF's own code
    **{100: (20, 20), 1000: (200, 200), 1020: (204, 204), 2753: (500, 253), 3334: (606, 304), 7844: (1426, 714)},
    **{26640: (1973, 991), 65550: (2016, 1038)},
    **{2944: (535, 269), 8144: (1480, 744), 18900: (2100, 2100), 45000: (2048, 1992)},
}


def batch_by_the_words(n_images, given, least):
    """ALF's rule as one reads it, over every batch that there is."""

    def good(batch):
        return n_images % batch == 0 or n_images % batch >= batch / 2

    if n_images // given >= least and good(given):
        return given
    wanted = max(least, n_images // given)
    best = 1
    for batch in range(1, n_images + 1):
        if n_images // batch >= wanted and good(batch):
            best = batch
    return best


@pytest.mark.parametrize("n_images", BATCHES)
def test_batches_of_alf(n_images):
    batch, last = BATCHES[n_images]
    fitted = fit_to_images(FusionRecipe(), n_images)
    assert (fitted.batch_size, n_images % batch or batch) == (batch, last)
    assert batch_by_the_words(n_images, 2048, 5) == batch


@st.composite
def recipes(draw):
    return Recipe(
        **{"epochs": draw(st.integers(1, 60)), "lr": 0.1, "weight_decay": 0.0},
        batch_size=draw(st.integers(1, 2048)),
        min_batches=draw(st.integers(1, 7)),
        min_steps=draw(st.one_of(st.none(), st.integers(1, 2000))),
    )


@settings(deadline=None, max_examples=150)
@given(recipe=recipes(), n_images=st.one_of(st.integers(1, 85), st.integers(86, 4000)))
def test_batches_and_epochs_by_the_words(recipe, n_images):
    fitted = fit_to_images(recipe, n_images)
    assert fitted.batch_size == batch_by_the_words(n_images, recipe.batch_size, recipe.min_batches)
    steps = [n_steps(n_images, fitted.batch_size, epochs) for epochs in (fitted.epochs - 1, fitted.epochs)]
    assert steps[1] >= (recipe.min_steps or 1)
    assert fitted.epochs == recipe.epochs or steps[0] < recipe.min_steps
    assert fit_to_images(fitted, n_images) == fitted


def test_a_recipe_without_a_rule_keeps_its_batch():
    assert fit_to_images(ComboRecipe(), 100) == ComboRecipe()


@pytest.mark.parametrize(
    ("n_images", "n_part", "batch", "epochs"),
    [
        (1000, 800, 200, 250),  # of 4 steps each
        (1000, 801, 201, 250),  # not 4 of 200 and one of a single image
        (50000, 40000, 2040, 50),  # 24 full batches of all images, 20 batches of the part
    ],
)
def test_a_search_has_the_batch_of_all_images(n_images, n_part, batch, epochs):
    fitted = fit_to_part(FusionRecipe(), n_images, n_part)
    assert batch_by_the_words(n_images, 2048, 5) in (batch, batch - 1)
    assert (fitted.batch_size, fitted.epochs) == (batch, epochs)
    assert fit_to_part(ComboRecipe(), n_images, 641).batch_size == 64  # of 641 images one is left over: not ALF's


def test_final_learning_rate_equals_torchs_cosine():
    recipe = Recipe(epochs=1, batch_size=1, lr=0.1, weight_decay=0.0, warmup_fraction=0.0, final_lr=1e-6)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=1000, eta_min=1e-6)
    for step in range(1000):
        assert lr_at(step, 1000, recipe) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimiser.step()
        schedule.step()
    other = recipe.model_copy(update={"lr": 1e-3})
    assert lr_at(1000, 1000, other) == pytest.approx(1e-6)


def test_the_optimiser_is_adam_where_nothing_decays():
    heads = [LinearHead([FeatureSpec("vit", ("1",), "mean", (4,), 32)], 3, rng=torch.Generator()) for _ in range(2)]
    recipe = Recipe(epochs=1, batch_size=1, lr=0.1, weight_decay=0.0)
    optimisers = [
        make_optimizer(heads[0], recipe, torch.device("cpu")),
        torch.optim.Adam(heads[1].parameters(), lr=0.1),
    ]
    for _ in range(3):
        for head, optimiser in zip(heads, optimisers, strict=True):
            optimiser.zero_grad()
            head(torch.arange(20.0).view(5, 4)).square().sum().backward()
            optimiser.step()
    torch.testing.assert_close(heads[0].classify.weight, heads[1].classify.weight)


def test_kerass_adam():
    """Against its update, written out: the epsilon beside the uncorrected moment; gradients near it show the place."""
    recipe = Head2ToeRecipe(lr=0.1)
    rng = torch.Generator().manual_seed(0)
    gradients = (1e-6 * torch.randn(12, 5, generator=rng)).double()
    weight = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimiser = torch.optim.AdamW([weight], lr=recipe.lr, weight_decay=0.0)
    expected, m, v = np.zeros(5), np.zeros(5), np.zeros(5)
    for step, gradient in enumerate(gradients):
        optimiser.param_groups[0]["eps"] = adam_eps(step, recipe)
        weight.grad = gradient
        optimiser.step()
        m, v = 0.9 * m + 0.1 * gradient.numpy(), 0.999 * v + 0.001 * gradient.numpy() ** 2
        rate = 0.1 * np.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        expected -= rate * m / (np.sqrt(v) + 1e-7)
    np.testing.assert_allclose(weight.detach(), expected, rtol=1e-9)
    assert adam_eps(0, ComboRecipe()) == adam_eps(9, ComboRecipe()) == 1e-8


def test_alf_lets_everything_decay():
    spec = FeatureSpec("vit", ("1",), "mean", (16,), 32)
    for head in (
        FusionHead([spec], 3, rng=torch.Generator()),
        AttentiveHead([FeatureSpec("vit", ("1",), "grid", (2, 2, 16), 32)], 3, rng=torch.Generator()),
        LinearHead([spec], 3, rng=torch.Generator(), practice="alf"),
    ):
        decay, no_decay = parameter_groups(head, 0.1)
        assert len(decay["params"]) == len(list(head.parameters()))
        assert not no_decay["params"]

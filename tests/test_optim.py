"""The schedule against pl_bolts' recursion, steps and parameter groups."""

import math

import pytest
import torch

from loffta.heads.combo import ComboHead, ComboRecipe
from loffta.heads.linear import LinearHead
from loffta.heads.recipe import Recipe
from loffta.optim import fit_to_images, lr_at, lr_factor, make_optimizer, n_steps, parameter_groups
from loffta.tokens import FeatureSpec


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


@pytest.mark.parametrize(("total", "n_warmup"), [(1300, 130), (1600, 160), (20, 2)])
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


@pytest.mark.parametrize("n_images", [1, 4, 5, 9, 40, 1000, 2047, 8192, 8193, 10241])
@pytest.mark.parametrize("min_batches", [None, 1, 2, 5, 7])
def test_the_largest_batch_with_so_many_an_epoch(n_images, min_batches):
    recipe = Recipe(epochs=40, batch_size=2048, lr=0.1, weight_decay=0.0, min_batches=min_batches, min_steps=1000)
    fitted = fit_to_images(recipe, n_images)
    sizes = [b for b in range(1, 2049) if math.ceil(n_images / b) >= (min_batches or 1)]
    assert fitted.batch_size == max(sizes, default=1)
    steps = [n_steps(n_images, fitted.batch_size, epochs) for epochs in (fitted.epochs - 1, fitted.epochs)]
    assert steps[1] >= 1000
    assert fitted.epochs == 40 or steps[0] < 1000
    assert fit_to_images(fitted, n_images) == fitted
    assert fit_to_images(ComboRecipe(), n_images) == ComboRecipe()


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

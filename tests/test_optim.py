"""The schedule against pl_bolts' recursion, steps and parameter groups."""

import math

import pytest
import torch

from loffta.heads.combo import ComboHead, ComboRecipe
from loffta.heads.linear import LinearHead
from loffta.optim import lr_at, lr_factor, n_steps, parameter_groups
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

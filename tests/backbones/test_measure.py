"""The constants of the zoo against timm, and shapes from the `meta` device against those of real models."""

from pathlib import Path

import pytest
import timm

from loffta.backbones.measure import measure, render
from loffta.backbones.timm_backbone import load_timm
from loffta.taps import is_inner
from loffta.zoo import facts
from loffta.zoo.facts import FACTS
from loffta.zoo.names import FAMILIES, ZOO

SMALLEST = {min(family.members, key=lambda short: FACTS[short].n_params) for family in FAMILIES.values()}


@pytest.mark.parametrize("short", [short for short in ZOO if short in SMALLEST])
def test_constants_are_what_timm_gives(short):
    assert measure(ZOO[short]) == FACTS[short]


@pytest.mark.long
def test_the_whole_file_is_what_the_program_writes():
    text = Path(facts.__file__).read_text()
    assert render({short: measure(timm_id) for short, timm_id in ZOO.items()}) == text


def test_the_file_is_rendered_from_its_own_facts():
    assert list(FACTS) == list(ZOO)
    assert render(FACTS) == Path(facts.__file__).read_text()


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "test_vit4",
        "tf_efficientnet_lite0",
        "convnext_atto",
        "hiera_tiny_224",
        "eva02_tiny_patch14_224",
    ],
)
def test_shapes_without_values_are_those_of_the_real_model(name):
    facts = measure(name)
    backbone = load_timm(name, weights="random:0")
    outputs = [spec for spec in backbone.specs if not is_inner(spec.tap)]
    assert [spec.tap for spec in outputs] == [f"{facts.kind}.{i}" for i in range(len(facts.taps))]
    assert [(spec.height, spec.dim) for spec in outputs] == list(facts.taps)
    assert {(spec.width - spec.height, spec.n_prefix) for spec in outputs} == {(0, facts.n_prefix)}
    assert backbone.geometry.image_px == facts.px
    assert facts.n_params == round(sum(p.numel() for p in backbone.model.parameters()) / 1e6)


@pytest.mark.parametrize(
    ("name", "n_class", "n_registers"),
    [
        ("vit_small_patch14_reg4_dinov2", 1, 4),
        ("vit_small_patch16_dinov3", 1, 4),
        ("deit_tiny_distilled_patch16_224", 2, 0),
        ("naflexvit_base_patch16_gap", 0, 4),
        ("vit_base_patch16_siglip_224", 0, 0),
        ("resnet18", 0, 0),
    ],
)
def test_class_tokens_and_registers(name, n_class, n_registers):
    facts = measure(name)
    assert (facts.n_class, facts.n_registers) == (n_class, n_registers)


def test_what_cannot_be_measured(monkeypatch):
    with pytest.raises(ValueError, match=r"^it takes 3 x 1024 x 768, not a square of three channels$"):
        measure("vit_base_patch16_sapiens2")
    monkeypatch.delattr(timm.models.EfficientNet, "forward_intermediates")
    with pytest.raises(ValueError, match=r"^timm gives no intermediate outputs of it$"):
        measure("tf_efficientnet_lite0")


def test_measuring_draws_no_random_numbers():
    import torch

    before = torch.get_rng_state()
    measure("test_vit")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unstated_licence_is_empty():
    assert timm.get_pretrained_cfg("csatv2").license is None
    assert measure("csatv2").licence == ""

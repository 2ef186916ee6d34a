"""`loffta models` as a user meets it."""

import json

import pytest
from loffta_cli.main import main

from loffta.zoo import catalogue
from loffta.zoo.facts import FACTS
from loffta.zoo.names import FAMILIES, ZOO


@pytest.fixture
def models(capsys):
    def call(*args):
        code = main(["models", *args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def listed(out):
    return [model["name"] for model in json.loads(out.splitlines()[-1])["models"]]


def test_all_short_names_under_their_families(models):
    code, out, err = models()
    assert (code, err) == (0, "")
    expected = [line for name, family in FAMILIES.items() for line in (f"{name}: {family.advice}", *family.members)]
    lines = out.splitlines()[2:]
    found = [line if line.partition(":")[0] in FAMILIES else line.split("  ")[0] for line in lines if line]
    assert found == expected
    assert all(line.split()[-1] in ZOO.values() for line in lines if line.split("  ")[0] in ZOO)


def test_a_row(models):
    _, out, _ = models("dinov2-reg-b")
    head, _, _, family, row = out.splitlines()
    assert family.startswith("DINOv2 with registers: ")
    cells = "dinov2-reg-b|518|blocks.0-11|37x37|768|1+4|2.1 MB|87 M|apache-2.0|vit_base_patch14_reg4_dinov2.lvd142m"
    assert [cell.strip() for cell in row.split("  ") if cell] == cells.split("|")
    assert row.index("518") == head.index("px")


def test_a_pyramid_says_first_and_last(models):
    _, out, _ = models("hiera_tiny_224")
    assert "hiera-t  224  stages.0-3  56x56..7x7  96..768  0+0     602.1 kB..75.3 kB  27 M " in out


def test_json_says_all_a_program_needs(models):
    code, out, _ = models("sam-b", "--json")
    (model,) = json.loads(out.splitlines()[-1])["models"]
    assert code == 0
    taps = model.pop("taps")
    assert [tap["tap"] for tap in taps] == [f"blocks.{i}" for i in range(12)]
    assert taps[3] == {"tap": "blocks.3", "height": 64, "width": 64, "dim": 768, "bytes": 2 * 64 * 64 * 768}
    assert model == {
        "name": "sam-b",
        "timm_id": "samvit_base_patch16.sa1b",
        "family": "SAM",
        "advice": FAMILIES["SAM"].advice,
        "image_px": 1024,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "licence": "apache-2.0",
        "params_m": FACTS["sam-b"].n_params,
        "class_tokens": 0,
        "registers": 0,
    }


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("DinoV2-S", ["dinov2-s"]),  # a short name, in any case
        ("samvit_", ["sam-b", "sam-l", "sam-h"]),  # an id
        ("satellite images", ["dinov3-l-sat"]),  # the advice
        ("efficientnetv2", ["efficientnetv2-s", "efficientnetv2-m", "efficientnetv2-l"]),
        ("test_vit", ["test_vit"]),  # any timm id
        ("resnet18.tv_in1k", ["resnet18.tv_in1k"]),
        ("vit_small*_dinov2*", ["dinov2-s", "dinov2-reg-s"]),  # a pattern; short names where there are any
        ("test_vit[23]*", ["test_vit2.r160_in1k", "test_vit3.r160_in1k"]),
    ],
)
def test_query(models, query, names):
    code, out, _ = models(query, "--json")
    assert code == 0
    assert listed(out) == names


def test_models_outside_the_zoo_are_measured(models):
    _, out, _ = models("test_vit.r160_in1k")
    assert "\nNot in the zoo\ntest_vit.r160_in1k  160  blocks.0-5  10x10  64     1+0     12.9 kB    " in out


def test_a_model_that_cannot_be_measured_says_why(models):
    code, out, _ = models("vit_base_patch16_sapiens2", "--json")
    reason = "ValueError: it takes 3 x 1024 x 768, not a square of three channels"
    assert code == 0
    assert f"  not measured: {reason}\n" in out
    (model,) = json.loads(out.splitlines()[-1])["models"]
    assert model == {
        "name": "vit_base_patch16_sapiens2",
        "timm_id": "vit_base_patch16_sapiens2",
        "family": None,
        "advice": None,
        "problem": reason,
    }


@pytest.mark.parametrize(
    ("query", "what", "remedy"),
    [
        ("dinov9", "unknown backbone 'dinov9'", "did you mean dinov"),
        ("vit_*nothing*", "no pretrained model of timm matches 'vit_*nothing*'", "try a shorter pattern, or a few"),
        ("vit_*", "models match 'vit_*', and each has to be built", "narrow the pattern to at most 100"),
    ],
)
def test_nothing_or_too_much(models, query, what, remedy):
    code, out, err = models(query)
    assert (code, out) == (2, "")
    assert what in err.splitlines()[0]
    assert err.splitlines()[1] == "  where:  loffta models"
    assert remedy in err.splitlines()[2]


def test_as_many_as_allowed(monkeypatch, models):
    monkeypatch.setattr(catalogue, "MAX_MEASURED", 2)
    assert models("test_vit[23]*")[0] == 0
    monkeypatch.setattr(catalogue, "MAX_MEASURED", 1)
    code, _, err = models("test_vit[23]*")
    assert code == 2
    assert err.startswith("error: 2 models match")

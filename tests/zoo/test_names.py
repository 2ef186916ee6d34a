import json
import subprocess
import sys

import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st
from timm.models import get_pretrained_cfg

from loffta.errors import UsageError
from loffta.zoo.facts import FACTS
from loffta.zoo.names import FAMILIES, ZOO, Facts, resolve_name

QUICK = "natively QuickGELU, use quickgelu model variant for original results"


def test_every_name_is_one_pretrained_model_of_timm():
    pretrained = set(timm.list_pretrained())
    assert [timm_id for timm_id in ZOO.values() if timm_id not in pretrained] == []
    assert len(set(ZOO.values())) == len(ZOO) == sum(len(family.members) for family in FAMILIES.values())
    for short in ZOO:
        assert not timm.is_model(short)  # no short name hides a model of timm
        assert short == short.lower().replace("_", "-").replace(".", "-")


def test_weights_are_on_the_hub_and_terms_are_timms():
    for short, timm_id in ZOO.items():
        config = get_pretrained_cfg(timm_id)
        facts = FACTS[short]
        assert config.hf_hub_id
        assert (facts.licence, facts.px) == (config.license, config.input_size[-1])
        assert (facts.mean, facts.std, facts.interpolation) == (config.mean, config.std, config.interpolation)


def test_clips_trained_with_quickgelu_get_it():
    """timm keeps such weights under two architectures, and says which is the original one."""
    notes = {timm_id: getattr(get_pretrained_cfg(timm_id), "notes", None) or () for timm_id in ZOO.values()}
    native = [timm_id for timm_id, note in notes.items() if QUICK in note]
    assert len(native) == 10
    assert all("_quickgelu_" in timm_id for timm_id in native)
    assert [timm_id for timm_id in ZOO.values() if "_quickgelu_" in timm_id] == native


def test_the_backbones_of_the_papers_are_there():
    """ComBo's four, and the families that the design names."""
    assert ZOO["sam-b"] == "samvit_base_patch16.sa1b"
    assert ZOO["dfn-clip-b16"] == "vit_base_patch16_clip_224.dfn2b"
    assert ZOO["siglip-b16"] == "vit_base_patch16_siglip_224.webli"
    assert ZOO["dinov2-reg-b"] == "vit_base_patch14_reg4_dinov2.lvd142m"


@pytest.mark.parametrize(
    ("name", "timm_id"),
    [
        ("dinov2-b", "vit_base_patch14_dinov2.lvd142m"),
        ("vit_base_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2.lvd142m"),
        ("vit_base_patch14_dinov2", "vit_base_patch14_dinov2"),  # timm's own default tag stays timm's affair
        ("test_vit", "test_vit"),
        ("resnet18.tv_in1k", "resnet18.tv_in1k"),
    ],
)
def test_resolve(name, timm_id):
    assert resolve_name(name) == timm_id


@given(st.sampled_from(sorted(ZOO)))
def test_short_name_and_id_are_one_backbone(short):
    assert resolve_name(resolve_name(short)) == resolve_name(short) == ZOO[short]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("dinov2-bb", "did you mean dinov2-b or "),
        ("dinov2", "did you mean dinov2-"),
        ("vit_tini_patch16_224", "did you mean vit_tiny_patch16_224 or "),
        ("vit_base_patch14_dinov2.lvd142", "did you mean vit_base_patch14_dinov2.lvd142m or vit_base_patch14_dinov2?"),
        ("!", "known names is close; check the spelling"),
    ],
)
def test_misspelt(name, remedy):
    with pytest.raises(UsageError) as caught:
        resolve_name(name)
    assert caught.value.what == f"unknown backbone '{name}'"
    assert caught.value.where == "--backbone"
    assert remedy in caught.value.remedy
    assert caught.value.exit_code == 2


def test_zoo_names_cost_no_import_of_torch():
    names = ["dinov2-b", "vit_base_patch14_dinov2.lvd142m", "tf_efficientnet_lite0"]
    code = (
        "import json, sys; from loffta.zoo.names import resolve_name; from loffta.zoo.facts import FACTS\n"
        f"print(json.dumps([[resolve_name(n) for n in {names}], [m for m in ('torch', 'timm') if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["vit_base_patch14_dinov2.lvd142m", *names[1:]], []]


def test_bytes_of_a_tap_are_those_of_its_arrays():
    facts = Facts(32, 1, "", (0.0,) * 3, (1.0,) * 3, "bicubic", 1, 4, "stages", ((8, 3), (4, 6)))
    assert facts.n_prefix == 5
    assert facts.tap_bytes() == (2 * (8 * 8 * 3 + 5 * 3), 2 * (4 * 4 * 6 + 5 * 6))

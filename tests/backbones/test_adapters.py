"""Real PEFT adapters on a small ViT: merged features against the adapted model's own output."""

import json
import sys
import warnings

import pytest
import timm
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from loffta.backbones.adapters import merge_adapter
from loffta.backbones.timm_backbone import load_timm
from loffta.backbones.weights import digest_state_dict, locate, split_adapter, stamp_adapter
from loffta.errors import LofftaError

NAME = "test_vit"
PIXELS = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
LORA = LoraConfig(r=3, lora_alpha=12, target_modules=["qkv", "fc1"])


def base(**options):
    """As `random:0`, built with nothing of loffta."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = timm.create_model(NAME)
        model = timm.create_model(NAME, **options)
    state = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("head")}
    model.load_state_dict(plain.state_dict() if not options else state, strict=False)
    return model.eval()


def tuned(folder, config=LORA, **options):
    """Saves an adapter whose tensors are all noise, and gives the model with it beside the weights, not merged."""
    adapted = get_peft_model(base(**options), config)
    generator = torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(str(folder))
    return adapted.eval().requires_grad_(False)


def last_block(model):
    model.set_input_size(img_size=(64, 64))
    with torch.no_grad():
        tokens = model.forward_intermediates((PIXELS / 255 - 0.5) / 0.5, indices=1, intermediates_only=True)[0]
    return tokens.permute(0, 2, 3, 1)


def check_tokens(spec, adapted):
    """Tokens of a spec are the un-merged model's, and not the base's."""
    backbone = load_timm(NAME, weights=spec, image_px=64)
    grid = backbone(PIXELS, ["blocks.5"])["blocks.5"].grid
    torch.testing.assert_close(grid, last_block(adapted.base_model.model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(grid, last_block(base()), rtol=1e-2, atol=1e-2)
    return backbone


@pytest.mark.parametrize(
    "config",
    [
        LORA,
        LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["proj"]),
        LoraConfig(r=4, use_dora=True, target_modules=["fc2"]),
        LoraConfig(r=2, lora_alpha=8, target_modules=["patch_embed.proj"], bias="lora_only"),
        IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
    ],
    ids=["lora", "rslora", "dora", "conv-and-bias", "ia3"],
)
def test_merged_features_are_the_adapted_models(tmp_path, config):
    check_tokens(f"random:0+{tmp_path}", tuned(tmp_path, config))


def test_digest_is_over_the_merged_state(tmp_path):
    merged = tuned(tmp_path).merge_and_unload()
    backbone = load_timm(NAME, weights=f"random:0+{tmp_path}", image_px=64)
    assert backbone.weights.digest == digest_state_dict(merged.state_dict())
    assert backbone.weights.digest != load_timm(NAME, weights="random:0").weights.digest
    assert backbone.weights.spec == f"random:0+{tmp_path}"


def test_bases_of_every_kind(tmp_path, monkeypatch):
    save_file(base().state_dict(), tmp_path / "base.safetensors")
    adapter = tmp_path / "with+plus"
    adapted = tuned(adapter)
    digests = {
        check_tokens(f"{b}+{adapter}", adapted).weights.digest for b in ("random:0", tmp_path / "base.safetensors")
    }
    assert len(digests) == 1
    monkeypatch.setattr(
        "loffta.backbones.timm_model.find_file", lambda spec, name: {"hub": tmp_path / "base.safetensors"}[spec]
    )
    assert load_timm(NAME, weights=str(adapter)).weights.digest in digests  # the folder alone means hub+folder


def test_tuned_classifier_comes_along_or_is_left_out(tmp_path):
    config = LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["head"])
    narrow = check_tokens(f"random:0+{tmp_path / 'narrow'}", tuned(tmp_path / "narrow", config, num_classes=10))
    assert isinstance(narrow.model.head, torch.nn.Identity)
    adapted = tuned(tmp_path / "same", config)
    same = check_tokens(f"random:0+{tmp_path / 'same'}", adapted)
    assert torch.equal(same.model.head.weight, adapted.base_model.model.head.modules_to_save["default"].weight)


def test_the_global_generator_is_left_alone(tmp_path):
    tuned(tmp_path)
    before = torch.get_rng_state()
    load_timm(NAME, weights=f"random:0+{tmp_path}", image_px=64)
    assert torch.equal(torch.get_rng_state(), before)


def test_stamps_tell_of_base_and_adapter(tmp_path):
    tuned(tmp_path / "a")
    save_file(base().state_dict(), tmp_path / "base.safetensors")
    spec = f"{tmp_path / 'base.safetensors'}+{tmp_path / 'a'}"
    source = load_timm(NAME, weights=spec, image_px=64).weights
    assert (source.path, source.size, source.mtime_ns) == locate(spec, NAME) == locate(spec.partition("+")[0], NAME)
    files = [(tmp_path / "a" / name).stat() for name in ("adapter_config.json", "adapter_model.safetensors")]
    assert source.adapter == stamp_adapter(tmp_path / "a")
    assert (source.adapter.path, source.adapter.size) == (str(tmp_path / "a"), sum(f.st_size for f in files))
    assert source.adapter.mtime_ns == max(f.st_mtime_ns for f in files)
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    (tmp_path / "a" / "adapter_config.json").write_text(text.replace('"lora_alpha": 12', '"lora_alpha": 120'))
    assert stamp_adapter(tmp_path / "a") != source.adapter


def test_specs_with_and_without_adapter(tmp_path):
    tuned(tmp_path)
    assert split_adapter(str(tmp_path)) == ("hub", tmp_path)
    assert split_adapter(f"package:x+{tmp_path}") == ("package:x", tmp_path)
    assert split_adapter("a+b.safetensors") == ("a+b.safetensors", None)
    assert split_adapter("hub") == ("hub", None)


def refusal(tmp_path, **options):
    with pytest.raises(LofftaError) as caught:
        load_timm(NAME, weights=f"random:0+{tmp_path}", **options)
    return caught.value


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_folder_without_config_or_safetensors(tmp_path, missing):
    tuned(tmp_path)
    (tmp_path / missing).rename(tmp_path / "adapter_model.bin")  # where PEFT would look for a pickle
    error = refusal(tmp_path)
    assert error.what == f"the folder holds no {missing}"
    assert error.where == f"--weights {tmp_path}"
    assert "pickled ones are never loaded" in error.remedy


def edit(folder, **values):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))


def test_modules_that_do_not_exist(tmp_path):
    tuned(tmp_path)
    edit(tmp_path, target_modules=["query"])
    error = refusal(tmp_path)
    assert error.what.startswith("the adapter does not fit: Target modules {'query'} not found")
    assert error.remedy == "pass the backbone and the base weights (BASE+DIR) that it was trained on"
    assert error.exit_code == 1


def test_another_width_depth_or_rank(tmp_path):
    tuned(tmp_path)
    with pytest.raises(LofftaError, match=r"the adapter does not fit: .*size mismatch"):
        load_timm("test_vit3", weights=f"random:0+{tmp_path}")
    state = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.blocks.{}.attn.qkv.lora_A.weight"
    save_file(state | {name.format(6): torch.zeros(3, 64)}, tmp_path / "adapter_model.safetensors")
    assert refusal(tmp_path).what == (
        f"the adapter does not fit: 1 of its tensors have no place in the model, the first: {name.format(6)}"
    )
    del state[name.format(2)]
    save_file(state, tmp_path / "adapter_model.safetensors")
    assert refusal(tmp_path).what.startswith("the adapter does not fit: Found missing adapter keys")


def test_damaged_adapter(tmp_path):
    tuned(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    assert refusal(tmp_path).what.startswith("the adapter does not fit: ")
    (tmp_path / "adapter_config.json").write_text("{")
    assert refusal(tmp_path).exit_code == 1


def test_prompts_cannot_be_merged(tmp_path):
    tuned(tmp_path)
    PromptTuningConfig(num_virtual_tokens=4).save_pretrained(str(tmp_path))
    error = refusal(tmp_path)
    assert error.what == "this adapter (PROMPT_TUNING) cannot be merged into the weights"
    assert error.remedy.startswith("load model and adapter in a function of yours: --backbone custom:")


def test_without_peft_the_remedy_is_its_extra(tmp_path, monkeypatch):
    tuned(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LofftaError) as caught:
        merge_adapter(base(), tmp_path)
    assert (caught.value.what, caught.value.remedy) == (
        "adapters need the package peft",
        "pip install 'loffta[adapters]'",
    )


def test_this_tests_adapter_is_read_by_peft_too(tmp_path):
    adapted = tuned(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = PeftModel.from_pretrained(base(), str(tmp_path))
    torch.testing.assert_close(last_block(again.base_model.model), last_block(adapted.base_model.model))

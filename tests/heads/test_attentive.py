"""AAT: which tokens it takes, how it normalises them, and a training from a real cache."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loffta.config import TrainConfig
from loffta.errors import LofftaError, UsageError
from loffta.heads import build_head
from loffta.heads.attentive import AttentiveHead, AttentiveRecipe
from loffta.heads.fusion import FusionRecipe
from loffta.machine.process import StopFlag
from loffta.tokens import FeatureSpec
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table

SPECS = [
    FeatureSpec("vit", ("last",), "prefix", (5, 8), 32),
    FeatureSpec("vit", ("last",), "grid", (2, 3, 8), 32),
    FeatureSpec("naflex", ("last",), "prefix", (4, 6), 32, registers_only=True),
    FeatureSpec("naflex", ("last",), "grid", (2, 2, 6), 32),
    FeatureSpec("net", ("last",), "grid", (1, 2, 3), 32),
]


def test_tokens_are_class_token_and_patches_normalised_over_channels():
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(2, len(spec.taps), *spec.shape, generator=rng) + 1 for spec in SPECS]
    head = AttentiveHead(SPECS, 3, rng=torch.Generator())
    tokens = head.prepare(features)
    vectors = [features[0][:, 0, 0], *(features[1][:, 0, row, column] for row in range(2) for column in range(3))]
    vectors += [features[3][:, 0, row, column] for row in range(2) for column in range(2)]
    vectors += [features[4][:, 0, 0, column] for column in range(2)]
    expected = torch.stack([F.pad(v / v.norm(dim=1, keepdim=True), (0, 8 - v.shape[1])) for v in vectors], dim=1)
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(tokens.norm(dim=2), torch.ones(2, 13))
    assert head.probe.attention(tokens).shape == (2, 8, 13)
    torch.testing.assert_close(head.probe.attention(tokens).sum(dim=2), torch.ones(2, 8))


def test_size():
    """One head more or fewer changes nothing where heads divide D: q, k, v are 2 D wide together."""
    specs = [
        FeatureSpec("vit", ("last",), "prefix", (1, 768), 224),
        FeatureSpec("vit", ("l",), "grid", (2, 2, 768), 224),
    ]
    for n_heads in (8, 16):
        head = AttentiveHead(specs, 10, rng=torch.Generator(), n_heads=n_heads)
        count = sum(parameter.numel() for name, parameter in head.named_parameters() if "classify" not in name)
        assert count == 4 * 768 * 1536 + 768 + 3 * 2 * 768 + 768 + 2 * 768


def test_recipe_is_that_of_fusion_with_eight_heads():
    recipe, fusion = AttentiveRecipe(), FusionRecipe()
    assert recipe.n_heads == 8
    assert recipe.model_dump(exclude={"n_heads", "normalise"}) == fusion.model_dump(exclude={"n_heads"})
    assert recipe.head_arguments()["normalise"] == "channels"
    assert recipe.kinds() == ("prefix", "grid")
    assert recipe.head_arguments()["n_heads"] == 8


def test_registers_alone_are_no_tokens():
    with pytest.raises(UsageError, match=r"naflex has no class token(.|\n)*patch tokens of this backbone"):
        AttentiveHead(SPECS[:3], 2, rng=torch.Generator())


def make(tmp_path, kinds):
    """The label is in one of nine patches, each time another: the mean hardly shows it."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    grids = rng.normal(scale=0.3, size=(96, 3, 3, 8)).astype(np.float32)
    grids[np.arange(96), rng.integers(3, size=96), rng.integers(3, size=96), labels] += 6
    prefixes = {"blocks.0": rng.normal(size=(96, 5, 8)).astype(np.float32)}
    store = FakeStore("vit", {"blocks.0": grids}, kinds=kinds, prefixes=prefixes)
    return make_cache(tmp_path / "cache", make_table(labels, ["train"] * 64 + ["test"] * 32), [store])


def test_learns_from_a_patch(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    cache = make(tmp_path, ("grid", "prefix"))
    recipe = {"epochs": 40, "batch_size": 16, "min_steps": None}
    config = TrainConfig(cache=cache.paths.root, head="attentive", device="cpu", recipe=recipe)
    results = train(config, tmp_path / "run", StopFlag())
    assert results["metrics"]["top1"]["mean"] > 0.9
    assert results["features"][0]["taps"] == ["blocks.0"]


def test_a_store_without_prefix_says_how_to_extract(tmp_path):
    cache = make(tmp_path, ("grid",))
    with pytest.raises(LofftaError, match=r"not in the cache as 'prefix'(.|\n)*--taps blocks\.0 .*--kinds grid,prefix"):
        train(TrainConfig(cache=cache.paths.root, head="attentive", device="cpu"), tmp_path / "run", StopFlag())


def test_channels_over_all_tokens():
    """As ALF's feature loader has it: class token and patches together, registers without a part."""
    specs = [
        FeatureSpec("vit", ("norm",), "prefix", (3, 6), 32),
        FeatureSpec("vit", ("norm",), "grid", (2, 2, 6), 32),
        FeatureSpec("net", ("s",), "grid", (1, 1, 4), 32),
    ]
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(3, 1, *spec.shape, generator=rng) for spec in specs]
    recipe = AttentiveRecipe(normalise="tokens", n_heads=1).resolve(specs)
    prepared = build_head("attentive", specs, 2, recipe, seed=0).prepare(features)
    for image in range(3):
        tokens = [features[0][image, 0, 0], *features[1][image, 0].reshape(4, 6), features[2][image, 0, 0, 0]]
        for channel in range(6):
            values = [token[channel].item() if channel < len(token) else 0.0 for token in tokens]
            length = sum(value**2 for value in values) ** 0.5
            assert prepared[image, :, channel].tolist() == pytest.approx([value / length for value in values], rel=1e-5)

"""ALF: the paper's sizes, the order of its tokens, and trainings and errors from real caches."""

import numpy as np
import pytest
import torch

from loffta.config import TrainConfig
from loffta.dataset.features import choose_features
from loffta.errors import LofftaError, UsageError
from loffta.heads import build_head
from loffta.heads.fusion import FusionHead, FusionRecipe
from loffta.machine.process import StopFlag
from loffta.tokens import FeatureSpec
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table

N_IMAGES = 144
ALF = ("blocks.1.norm2", "blocks.2.norm2", "norm")


def vit_specs(n_taps, dim):
    taps = tuple(str(i) for i in range(n_taps))
    return [FeatureSpec("vit", taps, "prefix", (1, dim), 224), FeatureSpec("vit", taps, "mean", (dim,), 224)]


@pytest.mark.parametrize(
    ("n_taps", "dim", "count"), [(12, 768, 4_726_272), (12, 384, 1_183_488), (24, 1024, 8_267_776)]
)
def test_parameter_counts_of_the_paper(n_taps, dim, count):
    head = FusionHead(vit_specs(n_taps, dim), 100, rng=torch.Generator())
    of_classifier = sum(parameter.numel() for parameter in head.probe.classify.parameters())
    assert of_classifier == 100 * dim + 100
    assert sum(parameter.numel() for parameter in head.parameters()) - of_classifier == count
    assert len(head.probe.map_key) == 2 * n_taps


def test_tokens_are_unit_vectors_in_the_order_of_their_names():
    specs = [
        FeatureSpec("clip", ("b", "c"), "prefix", (3, 8), 32),
        FeatureSpec("clip", ("head",), "prefix", (3, 4), 32),
        FeatureSpec("clip", ("b", "c"), "mean", (8,), 32),
        FeatureSpec("clip", ("head",), "mean", (4,), 32),
        FeatureSpec("naflex", ("b",), "prefix", (4, 6), 32, registers_only=True),
        FeatureSpec("naflex", ("b",), "mean", (6,), 32),
        FeatureSpec("net", ("s",), "mean", (2,), 32),
    ]
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(2, len(spec.taps), *spec.shape, generator=rng) for spec in specs]
    head = FusionHead(specs, 2, rng=torch.Generator())
    names = head.token_names()
    expected = {
        ("clip", "b", "cls"): features[0][:, 0, 0],
        ("clip", "c", "cls"): features[0][:, 1, 0],
        ("clip", "head", "cls"): features[1][:, 0, 0],
        ("clip", "b", "mean"): features[2][:, 0],
        ("clip", "c", "mean"): features[2][:, 1],
        ("clip", "head", "mean"): features[3][:, 0],
        ("naflex", "b", "mean"): features[5][:, 0],
        ("net", "s", "mean"): features[6][:, 0],
    }
    assert names == list(expected)
    tokens = head.prepare(features)
    assert tokens.shape == (2, 8, 8)
    for token, vector in enumerate(expected.values()):
        width = vector.shape[1]
        torch.testing.assert_close(tokens[:, token, :width], vector / vector.norm(dim=1, keepdim=True))
        assert not tokens[:, token, width:].any()
    assert head.attention(tokens).shape == (2, 8, 8)
    assert head.eval()(tokens).shape == (2, 2)


def test_a_class_token_that_is_not_there():
    alone = FeatureSpec("naflex", ("b",), "prefix", (4, 6), 32, registers_only=True)
    with pytest.raises(UsageError, match=r"naflex has no class token(.|\n)*give it the means of this backbone"):
        FusionHead([alone, *vit_specs(2, 6)], 2, rng=torch.Generator())


def test_recipe_of_the_paper():
    recipe = FusionRecipe()
    assert (recipe.epochs, recipe.min_steps, recipe.batch_size, recipe.min_batches) == (40, 1000, 2048, 5)
    assert (recipe.warmup_fraction, recipe.final_lr, recipe.max_grad_norm) == (0, 1e-6, 5)
    assert recipe.class_weights
    assert recipe.search_lr == (0.1, 0.01, 0.001)
    assert recipe.search_weight_decay == tuple(10.0**exponent for exponent in range(-6, 1))
    noise = {"attention_dropout": 0.0, "jitter_std": 0.05, "jitter_probability": 0.5}
    assert recipe.head_arguments() == {"n_heads": None, **noise}
    specs = vit_specs(5, 16)
    assert recipe.resolve(specs).n_heads == 10
    assert FusionRecipe(n_heads=3).resolve(specs).n_heads == 3
    head = build_head("fusion", specs, 2, FusionRecipe(attention_dropout=0.3, jitter_std=0.1, n_heads=3), seed=0)
    assert (len(head.probe.map_key), head.probe.attention_dropout, head.probe.jitter_std) == (3, 0.3, 0.1)
    with pytest.raises(ValueError, match="attention_dropout"):
        FusionRecipe(attention_dropout=1.0)


def vit(*taps, kinds=("prefix", "mean"), known=(), informative=None, labels=None):
    """Taps of random tokens, of which one's class token tells the label."""
    rng = np.random.default_rng(0)
    grids = {tap: rng.normal(size=(N_IMAGES, 2, 2, 6)).astype(np.float32) for tap in taps}
    prefixes = {tap: rng.normal(size=(N_IMAGES, 2, 6)).astype(np.float32) for tap in taps}
    if informative is not None:
        prefixes[informative][np.arange(N_IMAGES), 0, labels] += 8
    return FakeStore("vit", grids, kinds=kinds, known=known, prefixes=prefixes)


def make(tmp_path, store):
    labels = np.arange(N_IMAGES) % 3
    return make_cache(tmp_path / "cache", make_table(labels, ["train"] * 96 + ["test"] * 48), [store])


def test_learns_from_one_layers_class_token(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    labels = np.arange(N_IMAGES) % 3
    cache = make(tmp_path, vit("blocks.0.norm2", *ALF, informative="blocks.2.norm2", labels=labels))
    features = choose_features(cache, [], FusionRecipe().kinds(), default_taps=FusionHead.default_taps)
    head = FusionHead([feature.spec for feature in features], 3, rng=torch.Generator())
    assert head.token_names() == [("vit", tap, kind) for kind in ("cls", "mean") for tap in ALF]
    recipe = {"epochs": 30, "batch_size": 16, "min_steps": None, "attention_dropout": 0.1}
    config = TrainConfig(cache=cache.paths.root, head="fusion", device="cpu", recipe=recipe)
    results = train(config, tmp_path / "run", StopFlag())
    assert results["metrics"]["top1"]["mean"] > 0.75
    assert results["features"][0]["taps"] == list(ALF)


@pytest.mark.parametrize(
    ("store", "what", "options"),
    [
        (vit("blocks.1.norm2", known=("norm",)), "tap norm of", "--taps norm --image-px 32 --kinds prefix,mean"),
        (vit("blocks.1", known=ALF), f"taps {', '.join(ALF)} of", f"--taps {','.join(ALF)} "),
        (vit("norm", known=ALF[:2]), "taps blocks.1.norm2, blocks.2.norm2 of", "--taps blocks.1.norm2,blocks.2.norm2 "),
        (vit(*ALF, kinds=("grid",)), f"taps {', '.join(ALF)} of", "--kinds grid,prefix"),
        (vit(*ALF, kinds=("prefix",)), f"taps {', '.join(ALF)} of", "--kinds prefix,mean"),
    ],
)
def test_unsuitable_stores_say_how_to_extract(tmp_path, store, what, options):
    cache = make(tmp_path, store)
    config = TrainConfig(cache=cache.paths.root, head="fusion", device="cpu")
    with pytest.raises(LofftaError) as caught:
        train(config, tmp_path / "run", StopFlag())
    assert caught.value.what.startswith(what)
    assert "loffta extract folder:pictures --cache" in caught.value.remedy
    assert options in caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_backbones_without_inner_taps_are_used_by_name(tmp_path):
    net = FakeStore("net", {"stages.0": np.zeros((N_IMAGES, 2, 2, 4)), "stages.1": np.zeros((N_IMAGES, 1, 1, 5))})
    cache = make(tmp_path, net)
    with pytest.raises(UsageError, match=r"'alf' does not exist here(.|\n)*use the outputs of its stages: last"):
        choose_features(cache, [], FusionRecipe().kinds(), default_taps="alf")
    features = choose_features(cache, ["net:all"], FusionRecipe().kinds(), default_taps="alf")
    head = FusionHead([feature.spec for feature in features], 3, rng=torch.Generator())
    assert head.token_names() == [("net", "stages.0", "mean"), ("net", "stages.1", "mean")]

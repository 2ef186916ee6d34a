"""The linear probe against numpy."""

import numpy as np
import pytest
import torch

from loffta.config import TrainConfig
from loffta.dataset.features import choose_features
from loffta.errors import LofftaError, UsageError
from loffta.heads import build_head
from loffta.heads.linear import LinearHead, LinearRecipe
from loffta.machine.process import StopFlag
from loffta.tokens import FeatureSpec
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table

SPECS = [FeatureSpec("vit", ("1", "last"), "mean", (3,), 32), FeatureSpec("net", ("last",), "mean", (4,), 64)]


def draw(n_images, scale=1.0):
    rng = torch.Generator().manual_seed(n_images)
    return [scale * torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng) + 5 for spec in SPECS]


def test_prepare_concatenates_specs_then_taps():
    vit, net = draw(6)
    prepared = LinearHead(SPECS, 2, rng=torch.Generator()).prepare([vit, net])
    assert torch.equal(prepared, torch.cat([vit[:, 0], vit[:, 1], net[:, 0]], dim=1))


def test_logits_are_an_affine_map_of_standardised_vectors():
    head = LinearHead(SPECS, 7, rng=torch.Generator().manual_seed(0)).train()
    prepared = head.prepare(draw(50, scale=30.0))
    vectors = prepared.double().numpy()
    standard = (vectors - vectors.mean(axis=0)) / np.sqrt(vectors.var(axis=0) + 1e-5)
    weight, bias = head.classify.weight.detach().numpy(), head.classify.bias.detach().numpy()
    np.testing.assert_allclose(head(prepared).detach(), standard @ weight.T + bias, atol=1e-5)


def test_one_leftover_image_is_standardised_by_running_statistics():
    head = LinearHead(SPECS, 7, rng=torch.Generator().manual_seed(0)).train()
    head(head.prepare(draw(50)))
    running = {name: value.clone() for name, value in head.named_buffers()}
    single = head.prepare(draw(1))
    trained = head(single)
    assert all(torch.equal(value, running[name]) for name, value in head.named_buffers())
    assert torch.equal(trained, head.eval()(single))


def test_initial_weights():
    specs = [FeatureSpec("vit", ("last",), "mean", (768,), 224)]
    head = LinearHead(specs, 100, rng=torch.Generator().manual_seed(0))
    assert head.classify.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert sum(parameter.numel() for parameter in head.parameters()) == 768 * 100 + 100
    assert head.no_decay() == {"classify.bias"}


def test_learns_a_small_difference_on_a_large_offset():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    vectors = 100 + torch.randn(64, 1, 16, generator=rng)
    vectors[:, 0, 3] += 4 * labels
    head = LinearHead([FeatureSpec("vit", ("last",), "mean", (16,), 32)], 2, rng=rng).train()
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(head.prepare([vectors])), labels).backward()
        optimiser.step()
    assert (head.eval()(head.prepare([vectors])).argmax(dim=1) == labels).float().mean() > 0.95


def test_default_recipe():
    recipe = LinearRecipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (100, 64, 1e-3, 1e-4)
    assert recipe.head_arguments() == {"pooling": "mean", "practice": "mae"}


def test_alfs_baseline_is_torchs_linear_on_unit_vectors():
    """No BatchNorm; every vector of length 1, then concatenated; noise on half of the images, in training alone."""
    recipe = LinearRecipe(practice="alf")
    specs = [FeatureSpec("vit", ("1", "2"), "mean", (300,), 224), FeatureSpec("net", ("1",), "mean", (424,), 64)]
    rng = torch.Generator().manual_seed(0)
    features = [5 + torch.randn(400, len(spec.taps), *spec.shape, generator=rng) for spec in specs]
    head = build_head("linear", specs, 50, recipe, seed=0)
    vectors = [features[0][:, 0], features[0][:, 1], features[1][:, 0]]
    expected = np.concatenate([v.numpy() / np.sqrt((v.numpy() ** 2).sum(1, keepdims=True)) for v in vectors], axis=1)
    prepared = head.prepare(features)
    np.testing.assert_allclose(prepared, expected, rtol=1e-5)
    assert [name for name, _ in head.named_parameters()] == ["classify.weight", "classify.bias"]
    assert not list(head.buffers())
    plain = torch.nn.Linear(1024, 50)
    for ours, other in zip(head.parameters(), plain.parameters(), strict=True):
        assert ours.std().item() == pytest.approx(other.std().item(), rel=0.3 if ours.ndim == 1 else 0.02)
        assert ours.abs().max() <= 1 / 32
    plain.load_state_dict({name: getattr(head.classify, name) for name in ("weight", "bias")})
    torch.testing.assert_close(head(prepared), plain(prepared))
    noisy = (head(prepared, torch.Generator().manual_seed(1)) - plain(prepared)).detach()
    shaken = noisy.any(dim=1)
    assert shaken.float().mean().item() == pytest.approx(0.5, abs=0.1)
    # 1,024 terms of weights with variance 1 / (3 * 1024) and noise of 0.05
    assert noisy[shaken].std().item() == pytest.approx(0.05 / np.sqrt(3), rel=0.05)


POOLED = {"mean": ("mean",), "cls": ("prefix",), "cls+mean": ("prefix", "mean")}


def both_kinds(backbone, dim, **options):
    shapes = {"prefix": (3, dim), "mean": (dim,)}
    return [FeatureSpec(backbone, ("1", "2"), kind, shape, 32, **options) for kind, shape in shapes.items()]


@pytest.mark.parametrize("pooling", POOLED)
def test_pooling(pooling):
    """Two backbones and two taps; tokens behind the first are registers."""
    recipe = LinearRecipe(pooling=pooling)
    assert recipe.kinds() == POOLED[pooling]
    specs = [spec for spec in (*both_kinds("vit", 4), *both_kinds("dino", 5)) if spec.kind in recipe.kinds()]
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(6, 2, *spec.shape, generator=rng) for spec in specs]
    head = build_head("linear", specs, 3, recipe.resolve(specs), seed=0).eval()
    columns = []
    for spec, feature in zip(specs, features, strict=True):
        for tap in range(2):
            columns.append(feature[:, tap, 0] if spec.kind == "prefix" else feature[:, tap])
    prepared = head.prepare(features)
    assert torch.equal(prepared, torch.cat(columns, dim=1))
    expected = prepared / np.sqrt(1 + 1e-5) @ head.classify.weight.T + head.classify.bias
    torch.testing.assert_close(head(prepared), expected)


def test_a_backbone_without_class_token():
    """`cls` refuses it, before a run is begun; `cls+mean` takes its mean alone."""
    registers, mean = both_kinds("naflex", 4, registers_only=True)
    message = r"naflex has no class token: its prefix tokens are registers(.|\n)*--set pooling=mean"
    with pytest.raises(UsageError, match=message):
        LinearRecipe(pooling="cls").resolve([registers, both_kinds("vit", 3)[0]])
    with pytest.raises(UsageError, match=message):
        LinearHead([registers], 2, rng=torch.Generator(), pooling="cls")
    specs = [registers, mean, *both_kinds("vit", 3)]
    LinearRecipe(pooling="cls+mean").resolve(specs)
    head = LinearHead(specs, 2, rng=torch.Generator(), pooling="cls+mean")
    features = [torch.randn(6, 2, *spec.shape) for spec in specs]
    expected = [features[1].flatten(1), features[2][:, :, 0].flatten(1), features[3].flatten(1)]
    assert torch.equal(head.prepare(features), torch.cat(expected, dim=1))


@pytest.mark.parametrize("registers_only", [False, True])
def test_pooling_from_a_cache(tmp_path, registers_only):
    """A transformer beside a convolutional net, which has no prefix at all."""
    rng = np.random.default_rng(0)
    grids = {name: rng.normal(size=(24, 2, 2, 4)).astype(np.float32) for name in ("vit", "net")}
    prefixes = {"blocks.0": rng.normal(size=(24, 2, 4)).astype(np.float32)}
    vit = FakeStore("vit", {"blocks.0": grids["vit"]}, kinds=("grid", "prefix"), prefixes=prefixes)
    vit.registers_only = registers_only
    stores = [vit, FakeStore("net", {"stages.0": grids["net"]})]
    cache = make_cache(tmp_path / "cache", make_table(np.arange(24) % 2, ["train"] * 16 + ["test"] * 8), stores)

    def go(pooling, *features):
        recipe = {"epochs": 1, "pooling": pooling}
        config = TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe=recipe, features=features)
        return train(config, tmp_path / f"run-{pooling}-{'-'.join(features)}", StopFlag())

    assert go("cls+mean")["n"] == 8
    with pytest.raises(LofftaError, match=r"net-.* has no prefix: its backbone has no prefix tokens"):
        go("cls")
    if registers_only:
        with pytest.raises(UsageError, match="vit has no class token"):
            go("cls", "vit")
        assert not (tmp_path / "run-cls-vit").exists()
    else:
        assert go("cls", "vit")["n"] == 8


def test_a_store_of_means_says_how_to_add_class_tokens(tmp_path):
    grids = {"blocks.0": np.zeros((24, 2, 2, 4))}
    store = FakeStore("vit", grids, kinds=("mean",), prefixes={"blocks.0": np.zeros((24, 1, 4))})
    cache = make_cache(tmp_path / "cache", make_table(np.arange(24) % 2, ["train"] * 16 + ["test"] * 8), [store])
    with pytest.raises(
        LofftaError, match=r"blocks\.0 of vit-\w+ is not in the cache as 'prefix'(.|\n)*--kinds mean,prefix "
    ):
        choose_features(cache, [], ("prefix",), default_taps="last")

"""Head2Toe's features against a loop over images and taps."""

from pathlib import Path

import numpy as np
import torch
import yaml

from loffta.heads.pooled_taps import PooledTaps
from loffta.tokens import FeatureSpec

SPECS = [
    FeatureSpec("vit", ("blocks.0.attn", "blocks.0"), "grid", (3, 3, 4), 48),
    FeatureSpec("vit", ("blocks.0.mlp.hidden",), "grid", (3, 3, 16), 48),
    FeatureSpec("vit", ("blocks.0.attn", "blocks.0"), "prefix", (5, 4), 48),
    FeatureSpec("vit", ("blocks.0.mlp.hidden",), "prefix", (5, 16), 48),
    FeatureSpec("siglip", ("blocks.0",), "grid", (3, 3, 4), 48),
    FeatureSpec("net", ("stages.0",), "grid", (6, 6, 2), 48),
]
TARGET = 12


def draw(n_images=3):
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(n_images, len(spec.taps), *spec.shape, generator=rng) + 1 for spec in SPECS]


def unit(vector):
    return vector / np.sqrt((vector**2).sum())


def windows(tokens, size):
    """[N, D] to [windows * D], whole windows alone."""
    return np.concatenate([tokens[i : i + size].mean(axis=0) for i in range(0, len(tokens) - size + 1, size)])


def test_every_tap_is_pooled_and_has_length_1():
    features = draw()
    pooled = PooledTaps("x", SPECS, TARGET).pool(features)
    arrays = [feature.double().numpy() for feature in features]
    for image in range(3):
        expected = []
        for tap in (0, 1):  # 1 + 9 tokens of 4 channels: windows of int(10 / 3); the registers have no part
            tokens = np.concatenate([arrays[2][image, tap, :1], arrays[0][image, tap].reshape(9, 4)])
            expected.append(unit(windows(tokens, 3)))
        hidden = np.concatenate([arrays[3][image, 0, :1], arrays[1][image, 0].reshape(9, 16)])
        expected.append(unit(hidden.mean(axis=0)))  # wider than the target
        expected.append(unit(windows(arrays[4][image, 0].reshape(9, 4), 3)))  # no class token: a sequence all the same
        cells = arrays[5][image, 0]  # a map: floor(sqrt(12 / 2)) = 2 windows of 3 x 3 a side
        expected.append(unit(cells.reshape(2, 3, 2, 3, 2).mean(axis=(1, 3)).reshape(-1)))
        np.testing.assert_allclose(pooled[image], np.concatenate(expected), atol=1e-6)


def test_columns_are_named():
    taps = PooledTaps("x", SPECS, TARGET)
    assert [(spec.backbone, spec.taps, spec.kind, spec.shape) for spec in taps.specs] == [
        ("vit", ("blocks.0.attn",), "mean", (12,)),
        ("vit", ("blocks.0",), "mean", (12,)),
        ("vit", ("blocks.0.mlp.hidden",), "mean", (16,)),
        ("siglip", ("blocks.0",), "mean", (12,)),
        ("net", ("stages.0",), "mean", (8,)),
    ]
    assert sum(taps.sizes) == taps.pool(draw()).shape[1]


def test_scaling_what_is_left():
    taps = PooledTaps("x", SPECS, TARGET)
    pooled = taps.pool(draw())
    kept = torch.rand(pooled.shape[1], generator=torch.Generator().manual_seed(1)) < 0.3
    kept[12:24] = False  # of the second tap nothing is left
    scaled = taps.scale(pooled * kept)
    for image in range(3):
        for start, stop in ((0, 12), (24, 40), (40, 52), (52, 60)):
            part = (pooled * kept)[image, start:stop].numpy()
            np.testing.assert_allclose(scaled[image, start:stop], unit(part), atol=1e-6)
    assert not scaled[:, 12:24].any()
    torch.testing.assert_close(taps.scale(pooled), pooled)


def vit_b_specs(grid=14):
    """The taps of pipelines/vtab1k/head2toe.yaml as a cache gives them."""
    path = Path(__file__).parents[2] / "pipelines/vtab1k/head2toe.yaml"
    taps = yaml.safe_load(path.read_text())["extract"]["inner"]["backbones"][0]["taps"]
    specs = []
    for tap in "".join(taps.split()).split(","):
        dim = 3072 if tap.endswith("hidden") else 768
        specs.append(FeatureSpec("vit", (tap,), "grid", (grid, grid, dim), 224))
        if tap != "module:patch_embed":
            specs.append(FeatureSpec("vit", (tap,), "prefix", (1, dim), 224))
    return specs


def test_tensors_of_the_code():
    """53 of a ViT-B: four of each block, encoded tokens, three of the stem, and the class token as it is."""
    taps = PooledTaps("x", vit_b_specs(), 512, as_in_code=True)
    assert len(taps.specs) == 53
    assert sum(taps.sizes) == 41 * 768 + 12 * 3072
    assert [spec.taps[0] for spec in taps.specs][-2:] == ["norm", "pre_logits"]
    assert len(PooledTaps("x", vit_b_specs(), 512).specs) == 51


def test_stem_and_class_token_of_the_code():
    specs = [
        FeatureSpec("vit", ("module:patch_embed",), "grid", (3, 3, 4), 48),
        FeatureSpec("vit", ("norm",), "grid", (3, 3, 4), 48),
        FeatureSpec("vit", ("norm",), "prefix", (1, 4), 48),
        FeatureSpec("net", ("module:conv",), "grid", (6, 6, 2), 48),
    ]
    rng = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 1, *spec.shape, generator=rng) for spec in specs]
    pooled = PooledTaps("x", specs, TARGET, as_in_code=True).pool(features)
    stem, tokens, cls, cells = (feature.double().numpy()[:, 0] for feature in features)
    for image in range(2):
        sequence = unit(windows(stem[image].reshape(9, 4), 3))  # of 9 tokens int(9 / 3), not 1 x 1 windows of the map
        encoded = unit(windows(np.concatenate([cls[image], tokens[image].reshape(9, 4)]), 3))
        conv = unit(cells[image].reshape(2, 3, 2, 3, 2).mean(axis=(1, 3)).reshape(-1))  # no transformer: a map
        expected = [sequence, sequence, encoded, unit(cls[image, 0]), conv]
        np.testing.assert_allclose(pooled[image], np.concatenate(expected), atol=1e-6)

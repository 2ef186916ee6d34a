"""Head2Toe's features against a loop over images and taps."""

import numpy as np
import torch

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

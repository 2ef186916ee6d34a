"""Taps found again among the features that `choose_features` gives."""

from dataclasses import replace

import pytest
import torch

from loffta.errors import UsageError
from loffta.heads.sources import pair_taps
from loffta.tokens import FeatureSpec

SPECS = [  # of vit the taps lie in two arrays, and its prefix tokens in one; net has none
    FeatureSpec("vit", ("1", "2"), "grid", (2, 3, 4), 32),
    FeatureSpec("vit", ("norm",), "grid", (2, 3, 5), 32),
    FeatureSpec("vit", ("1", "2"), "prefix", (3, 4), 32),
    FeatureSpec("vit", ("norm",), "prefix", (3, 5), 32),
    FeatureSpec("net", ("norm",), "grid", (1, 1, 6), 64),
]


def draw():
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, len(spec.taps), *spec.shape, generator=rng) for spec in SPECS]


def test_every_tap_with_its_class_token():
    sources = pair_taps("x", SPECS)
    assert [(s.backbone, s.tap, s.height, s.width, s.dim, s.image_px, s.has_class_token) for s in sources] == [
        ("vit", "1", 2, 3, 4, 32, True),
        ("vit", "2", 2, 3, 4, 32, True),
        ("vit", "norm", 2, 3, 5, 32, True),
        ("net", "norm", 1, 1, 6, 64, False),
    ]
    features = draw()
    for source, (grid, prefix, place) in zip(sources[:3], [(0, 2, 0), (0, 2, 1), (1, 3, 0)], strict=True):
        assert torch.equal(source.read_grid(features), features[grid][:, place])
        assert torch.equal(source.read_class_token(features)[:, 0], features[prefix][:, place, 0])  # no register
    assert torch.equal(sources[3].read_grid(features), features[4][:, 0])


def test_registers_alone_are_no_class_token():
    specs = [SPECS[0], replace(SPECS[2], registers_only=True)]
    assert [source.has_class_token for source in pair_taps("x", specs)] == [False, False]
    with pytest.raises(UsageError, match=r"there are no patch tokens(.|\n)*features of kind 'grid'"):
        pair_taps("x", specs[1:])


def test_prefix_tokens_need_their_patch_tokens():
    with pytest.raises(UsageError) as caught:
        pair_taps("loff", [SPECS[0], SPECS[3]])
    assert str(caught.value) == (
        "there are prefix tokens of vit:norm, but no patch tokens\n  where:  head 'loff'\n"
        "  remedy: give it this tap's features of kind 'grid', too"
    )

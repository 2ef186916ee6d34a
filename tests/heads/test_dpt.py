"""DPT against a plain version of its levels and of its fusion."""

import pytest
import torch
import torch.nn.functional as F

from loffta.errors import UsageError
from loffta.heads import build_dense_head
from loffta.heads.dpt import DptRecipe, _four_of
from loffta.taps import SETS
from loffta.targets import Readout
from loffta.tokens import FeatureSpec

VIT = FeatureSpec("vit", ("a", "b", "c", "d"), "grid", (3, 5, 6), 48)
STAGES = [
    FeatureSpec("net", (f"stages.{i}",), "grid", shape, 64)
    for i, shape in enumerate([(8, 8, 3), (4, 4, 4), (2, 2, 5), (1, 1, 6)])
]


def build(specs, bias=0.0, **recipe):
    made = DptRecipe(**{"output_px": 40, "width": 4} | recipe)
    return build_dense_head("dpt", specs, Readout((2, 1), bias), made, 0)


def convolve(layer, maps, stride=1):
    return F.conv2d(maps, layer.weight, layer.bias, stride=stride, padding=layer.weight.shape[-1] // 2)


def unit(module, maps):
    return maps + convolve(module.second, convolve(module.first, maps.relu()).relu())


def slow_network(network, levels):
    """Levels with all their resizing done, fine to coarse."""
    (one, two, three, four) = levels
    path = unit(network.fuse[3], four)
    path = convolve(network.project[3], F.interpolate(path, three.shape[2:], mode="bilinear", align_corners=True))
    path = unit(network.fuse[2], path + unit(network.take[2], three))
    path = convolve(network.project[2], F.interpolate(path, two.shape[2:], mode="bilinear", align_corners=True))
    path = unit(network.fuse[1], path + unit(network.take[1], two))
    path = convolve(network.project[1], F.interpolate(path, one.shape[2:], mode="bilinear", align_corners=True))
    path = unit(network.fuse[0], path + unit(network.take[0], one))
    path = convolve(network.project[0], F.interpolate(path, scale_factor=2, mode="bilinear", align_corners=True))
    found = convolve(network.classify, convolve(network.smooth, path).relu())
    return F.interpolate(found, (40, 40), mode="bilinear", align_corners=False)


def test_one_grid_becomes_four_sizes():
    head = build([VIT])
    feature = torch.randn(2, 4, 3, 5, 6)
    taps = [feature[:, i].permute(0, 3, 1, 2) for i in range(4)]
    levels = [convolve(level.project, tap) for level, tap in zip(head.network.levels, taps, strict=True)]
    resize = [level.resize for level in head.network.levels]
    levels[0] = F.conv_transpose2d(levels[0], resize[0].weight, resize[0].bias, stride=4)
    levels[1] = F.conv_transpose2d(levels[1], resize[1].weight, resize[1].bias, stride=2)
    levels[3] = convolve(resize[3], levels[3], stride=2)
    levels = [convolve(level.smooth, maps) for level, maps in zip(head.network.levels, levels, strict=True)]
    assert [tuple(maps.shape[2:]) for maps in levels] == [(12, 20), (6, 10), (3, 5), (2, 3)]
    torch.testing.assert_close(head(head.prepare([feature])), slow_network(head.network, levels), atol=1e-5, rtol=1e-5)


def test_nets_with_several_grids_keep_them():
    head = build(STAGES)
    features = [torch.randn(2, 1, *spec.shape) for spec in STAGES]
    levels = []
    for level, feature in zip(head.network.levels, features, strict=True):
        levels.append(convolve(level.smooth, convolve(level.project, feature[:, 0].permute(0, 3, 1, 2))))
    torch.testing.assert_close(head(head.prepare(features)), slow_network(head.network, levels), atol=1e-5, rtol=1e-5)


def test_levels_of_several_backbones_stand_side_by_side_with_their_class_tokens():
    prefix = FeatureSpec("vit", ("a", "b", "c", "d"), "prefix", (2, 6), 48)
    specs = [*STAGES, VIT, prefix]
    features = [torch.randn(2, len(spec.taps), *spec.shape) for spec in specs]
    prepared = build(specs).prepare(features)
    assert [tuple(maps.shape) for maps in prepared] == [
        (2, 8, 8, 3 + 12), (2, 4, 4, 4 + 12), (2, 3, 5, 5 + 12), (2, 3, 5, 6 + 12)
    ]  # fmt: skip
    torch.testing.assert_close(prepared[2][..., 5:11], features[4][:, 2])
    torch.testing.assert_close(prepared[3][:, 1, 4, -6:], features[5][:, 3, 0])
    assert DptRecipe(class_token=True).kinds() == ("grid", "prefix")


@pytest.mark.parametrize("n", range(5, 30))
def test_takes_the_taps_of_four_even(n):
    taps = [f"blocks.{i}" for i in range(n)]
    assert [taps[i] for i in _four_of(n)] == list(SETS["four-even"](taps))


def test_fewer_taps_serve_twice():
    assert [_four_of(n) for n in (1, 2, 3, 4)] == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]


def test_backbone_without_patches_is_named():
    with pytest.raises(UsageError, match=r"no patch tokens of other(.|\n)*kind 'grid'"):
        build([VIT, FeatureSpec("other", ("a",), "prefix", (1, 6), 48)])


def test_paper_width_and_bias():
    assert DptRecipe().width == 256
    plain, biased = build([VIT]), build([VIT], bias=1.0)
    feature = torch.randn(1, 4, 3, 5, 6)
    torch.testing.assert_close(biased(biased.prepare([feature])), plain(plain.prepare([feature])) + 1)

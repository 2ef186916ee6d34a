"""The dense linear probe against torch's BatchNorm2d and 1x1 convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loffta.errors import UsageError
from loffta.heads import build_dense_head
from loffta.heads.convolution import drop_channels
from loffta.heads.dense_linear import DenseLinearRecipe
from loffta.targets import Readout
from loffta.tokens import FeatureSpec

GRID = FeatureSpec("vit", ("a", "b"), "grid", (3, 4, 5), 48)
PREFIX = FeatureSpec("vit", ("a", "b"), "prefix", (3, 5), 48)


def build(specs, channels=(4,), bias=0.0, **recipe):
    return build_dense_head("dense-linear", specs, Readout(channels, bias), DenseLinearRecipe(output_px=9, **recipe), 0)


@pytest.mark.parametrize("training", [True, False])
def test_is_batch_norm_and_a_1x1_convolution(training):
    head = build([GRID]).train(training)
    norm, convolve = nn.BatchNorm2d(10).train(training), nn.Conv2d(10, 4, 1)
    rng = torch.Generator().manual_seed(0)
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = torch.rand(10, generator=rng)
        getattr(head.standardise, name).data.copy_(value)
        getattr(norm, name).data.copy_(value)
    convolve.weight.data.copy_(head.classify.weight[:, :, None, None])
    convolve.bias.data.copy_(head.classify.bias)
    feature = torch.randn(6, 2, 3, 4, 5, generator=rng)
    maps = torch.cat([feature[:, 0], feature[:, 1]], dim=-1).permute(0, 3, 1, 2)
    wanted = F.interpolate(convolve(norm(maps)), 9, mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(head.prepare([feature])), wanted)
    torch.testing.assert_close(head.standardise.running_var, norm.running_var)


def test_class_token_stands_beside_every_patch():
    head = build([GRID, PREFIX], class_token=True, norm="none")
    assert DenseLinearRecipe(class_token=True).kinds() == ("grid", "prefix")
    grid, prefix = torch.randn(2, 2, 3, 4, 5), torch.randn(2, 2, 3, 5)
    prepared = head.prepare([grid, prefix])
    for row in range(3):
        for column in range(4):
            wanted = [grid[:, 0, row, column], grid[:, 1, row, column], prefix[:, 0, 0], prefix[:, 1, 0]]
            assert torch.equal(prepared[:, row, column], torch.cat(wanted, dim=1))
    assert head.n_adapter_parameters() == 20 * 4 + 4


def test_class_token_of_nobody_is_refused():
    registers = FeatureSpec("naflex", ("last",), "prefix", (4, 5), 48, registers_only=True)
    with pytest.raises(UsageError, match=r"no backbone has a class token(.|\n)*leave class_token out"):
        DenseLinearRecipe(class_token=True).resolve([GRID, registers])
    with pytest.raises(UsageError, match="no backbone has a class token"):
        build([GRID, registers], class_token=True)


def test_begins_as_mmseg_does():
    spec = FeatureSpec("vit", ("a",), "grid", (3, 4, 2000), 48)
    head = build([spec], channels=(4, 1), bias=1.0)
    assert head.classify.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert head.classify.bias.tolist() == 5 * [1.0]


def test_dropped_channels_are_whole_and_the_mean_stays():
    maps = torch.ones(40, 50, 3, 2)
    found = drop_channels(maps, 0.1, torch.Generator().manual_seed(0))
    assert {round(value, 5) for value in found.unique().tolist()} == {0.0, round(1 / 0.9, 5)}
    assert (found.flatten(2).amin(2) == found.flatten(2).amax(2)).all()
    assert found.mean().item() == pytest.approx(1, abs=0.03)
    assert drop_channels(maps, 0.1, None) is maps
    head = build([GRID], dropout=0.5).eval()
    prepared = head.prepare([torch.randn(2, 2, 3, 4, 5)])
    plain = head(prepared)
    assert torch.equal(plain, head(prepared))
    assert not torch.allclose(plain, head(prepared, torch.Generator().manual_seed(0)))

"""DeAP's rivals against plain versions of what its release has: bicubic, deconv, featup."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from loffta.errors import UsageError
from loffta.heads import HEADS, build_dense_head
from loffta.heads.bilateral import GaussianStage, LearnedStage
from loffta.heads.featup import FeatupRecipe
from loffta.targets import Readout
from loffta.tokens import FeatureSpec

THUMB = FeatureSpec("images", ("thumb",), "thumb", (32, 32, 3), 32)


def grid(side, dim):
    return FeatureSpec("net", ("last",), "grid", (side, side, dim), 224)


def build(name, specs, channels=(2,), bias=0.0, **recipe):
    return build_dense_head(name, specs, Readout(channels, bias), HEADS[name].recipe(**recipe), 0).eval()


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        # 768 * 48 + 48, then 48 -> 96 -> 48 and a LayerNorm; a decoder of 48 -> 12 and a skip connection of 48 -> 1
        ("bicubic", 36_912 + 4_704 + 4_656 + 96 + (5_196 + 588 + 2 * (1_308 + 588) + 13) + 49),
        # a GroupNorm of 768, 768 * 48 + 48, a GroupNorm of 56; a decoder of 56 -> 12, a skip connection of 56 -> 1
        ("deconv", 1_536 + 36_912 + 112 + (6_060 + 588 + 2 * (1_308 + 588) + 13) + 57),
    ],
)
def test_parameter_counts(name, n_parameters):
    assert build(name, [grid(14, 768)], channels=(1,)).n_adapter_parameters() == n_parameters


def cubic(x):
    """Keys' kernel with a = -0.75, torch's."""
    x = abs(x)
    if x < 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def slow_bicubic(cells, side):
    """Both grids' outermost centres lie on one another; beyond the edge the outermost cells go on."""
    rows, columns, _ = cells.shape

    def weights(n):
        found = np.zeros((side, n))
        for i in range(side):
            x = i * (n - 1) / (side - 1)
            for k in range(math.floor(x) - 1, math.floor(x) + 3):
                found[i, min(max(k, 0), n - 1)] += cubic(x - k)
        return found

    return np.einsum("ir,jc,rcd->ijd", weights(rows), weights(columns), cells)


def linear(module, tokens):
    return tokens @ module.weight.T + module.bias


def test_bicubic_interpolates_cells_then_mixes_channels():
    head = build("bicubic", [FeatureSpec("net", ("last",), "grid", (3, 4, 6), 64)], output_px=40, dim=5)
    features = [torch.randn(2, 1, 3, 4, 6)]
    network = head.networks[0]
    small = linear(network.project, features[0][:, 0]).detach().double().numpy()
    tokens = torch.tensor(np.stack([slow_bicubic(cells, 5) for cells in small])).float()
    mixed = F.layer_norm(linear(network.fc2, F.relu(linear(network.fc1, tokens))), (5,))
    wanted = network.decode(mixed.permute(0, 3, 1, 2))
    torch.testing.assert_close(head(head.prepare(features)), wanted, atol=1e-5, rtol=1e-5)


def group_norm(maps, n_groups):
    grouped = maps.reshape(len(maps), n_groups, -1)
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    return (centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()).reshape(maps.shape)


@pytest.mark.parametrize(("side", "stride"), [(3, 1), (7, 1), (8, 2), (13, 3)])
def test_deconv_is_convolutions_alone(side, stride):
    """Shrunk by a convolution where the cells are more than the queries, 4 x 4."""
    head = build("deconv", [grid(side, 6)], output_px=32, dim=8)
    features = [torch.randn(2, 1, side, side, 6)]
    network = head.networks[0]
    maps = F.conv2d(group_norm(features[0][:, 0].permute(0, 3, 1, 2), 2), network.project.weight, network.project.bias)
    if stride > 1:
        maps = F.conv2d(maps, network.shrink.weight, network.shrink.bias, stride=stride, padding=1)
    else:
        assert network.shrink is None
    maps = F.interpolate(maps[:, :, None], (1, 4, 4), mode="trilinear")[:, :, 0]
    codes = [
        [w(n * f) for n in (c, r) for f in (1, 0.01) for w in (math.sin, math.cos)] for r in range(4) for c in range(4)
    ]
    code = torch.tensor(codes).T.reshape(1, 8, 4, 4).expand(2, -1, -1, -1)
    wanted = network.decode(group_norm(torch.cat([maps, code], dim=1), 8))
    torch.testing.assert_close(head(head.prepare(features)), wanted, atol=1e-4, rtol=1e-4)


def unfold(maps):
    """[B, D, 49, H, W]: the neighbours of every pixel."""
    height, width = maps.shape[2:]
    return F.unfold(F.pad(maps, [3] * 4, mode="reflect"), 7).reshape(*maps.shape[:2], 49, height, width)


def slow_stage(stage, maps, image):
    """FeatUp's JBULearnedRange as its paper and code describe it, on whole neighbourhoods."""

    def run(layers, x):
        return F.conv2d(F.gelu(F.conv2d(x, layers[0].weight, layers[0].bias)), layers[1].weight, layers[1].bias)

    colours = run(stage.compare, image)
    alike = torch.einsum("bdphw,bdhw->bphw", unfold(colours), colours)
    line = torch.linspace(-1, 1, 7)
    bell = torch.exp(-(line[:, None] ** 2 + line**2) / (2 * stage.sigma**2)).reshape(1, 49, 1, 1)
    weights = (stage.log_temperature.exp() * alike).softmax(dim=1) * bell
    weights = weights / weights.sum(dim=1, keepdim=True)
    weights = weights + 0.1 * run(stage.correct, torch.cat([weights, image], dim=1))
    large = F.interpolate(maps, image.shape[2:], mode="bicubic")
    return torch.einsum("bphw,bdphw->bdhw", weights, unfold(large))


def test_featup_enlarges_cells_by_the_image_then_maps_them():
    """The head maps first and enlarges few channels; here all channels are enlarged, as in FeatUp."""
    head = build("featup", [grid(4, 6), THUMB], bias=1.0, output_px=30, range_dim=5)
    assert len(head.stages) == 3  # 4, 8, 16, 32
    for stage in head.stages:
        stage.sigma.data.fill_(0.7)
        stage.log_temperature.data.fill_(-0.5)
    cells = torch.randn(2, 1, 4, 4, 6)
    thumbs = torch.randint(0, 256, (2, 1, 32, 32, 3), dtype=torch.uint8)
    image = (
        thumbs[:, 0].permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    ) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    maps = cells[:, 0].permute(0, 3, 1, 2)
    for stage, side in zip(head.stages, (8, 16, 32), strict=True):
        maps = slow_stage(stage, maps, F.avg_pool2d(image, 32 // side))
    wanted = F.interpolate(
        F.conv2d(maps, head.classify.weight[:, :, None, None], head.classify.bias), 30, mode="bilinear"
    )
    torch.testing.assert_close(head(head.prepare([cells, thumbs])), wanted, atol=1e-4, rtol=1e-4)


def test_fixed_stage_mixes_pixels_near_in_place_and_colour():
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 8, 10, generator=rng)
    maps = torch.randn(1, 2, 4, 5, generator=rng)
    found = GaussianStage()(maps, image)[0]
    large = F.interpolate(maps, (8, 10), mode="bicubic")[0]
    for row, column in [(0, 0), (3, 4), (7, 9), (5, 1)]:
        total, mass = torch.zeros(2), 0.0
        for dy in range(-3, 4):
            for dx in range(-3, 4):
                y, x = (7 - abs(7 - abs(row + dy))), (9 - abs(9 - abs(column + dx)))  # mirrored
                unlike = sum((image[0, c, y, x] - image[0, c, row, column]) ** 2 for c in range(3))
                weight = math.exp(-(dy**2 + dx**2) / 2 - float(unlike) / (2 * 0.1**2))
                total, mass = total + weight * large[:, y, x], mass + weight
        torch.testing.assert_close(found[:, row, column], total / mass, atol=1e-5, rtol=1e-5)
    assert not list(GaussianStage().parameters())


def test_stages_are_as_many_as_lead_to_the_output_and_no_more_than_four():
    sides = {(14, 224): 4, (14, 448): 4, (37, 224): 3, (37, 448): 4, (64, 64): 1}
    for (side, px), n_stages in sides.items():
        assert len(build("featup", [grid(side, 3), THUMB], output_px=px).stages) == n_stages


def test_stage_drops_channels_only_with_a_generator():
    stage = LearnedStage(8, rng=torch.Generator().manual_seed(0))
    maps, image = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)
    plain = stage(maps, image, None)
    drawn = [stage(maps, image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(plain, stage(maps, image, None))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], plain)


def test_featup_says_what_it_needs():
    with pytest.raises(UsageError, match=r"the last feature is no thumbnail(.|\n)*behind them the images' thumbnails"):
        build("featup", [grid(4, 6)])
    with pytest.raises(ValidationError, match="budget needs kernel=learned"):
        FeatupRecipe(kernel="gaussian", budget=1000)
    with pytest.raises(ValidationError, match="dim 12 is not a multiple of the number of groups, 8"):
        HEADS["deconv"].recipe(dim=12)

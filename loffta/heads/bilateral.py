"""Joint bilateral upsampling: maps become twice as large, and edges of an image say which cells a pixel is mixed from.

In:  maps [B, D, h, w] and an image of twice that size.   Out: maps [B, D, 2 h, 2 w]. Called by `featup`.
FeatUp's stages (Fu, Hamilton et al., ICLR 2024, arXiv 2403.10516) after their official code, and the classic ones of
Kopf et al. (SIGGRAPH 2007) without weights. A stage is linear in the maps, and the same for each of their channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from loffta.heads.convolution import drop_channels, make_conv

RADIUS = 3
N_PLACES = (2 * RADIUS + 1) ** 2
_FIXUP = 0.1  # share of the learned correction
_DROPOUT = 0.1  # of channels of both projections, in training
# of the fixed kernel, ours: pixels of the larger map, and differences of colours from 0 to 1
_SPACE_SIGMA, _COLOUR_SIGMA = 1.0, 0.1

Weights = Float[Tensor, "B 49 H W"]


class LearnedStage(nn.Module):
    """FeatUp's `JBULearnedRange`: weights from colours that a small network compares, times a bell of learned width.

    Args:
        range_dim: channels in which colours are compared; FeatUp has 32.
    """

    def __init__(self, range_dim: int, *, rng: torch.Generator) -> None:
        super().__init__()
        self.compare = nn.ModuleList([make_conv(3, range_dim, 1, rng), make_conv(range_dim, range_dim, 1, rng)])
        self.correct = nn.ModuleList([make_conv(3 + N_PLACES, N_PLACES, 1, rng), make_conv(N_PLACES, N_PLACES, 1, rng)])
        self.log_temperature = nn.Parameter(torch.zeros(1))
        self.sigma = nn.Parameter(torch.ones(1))  # of distances of which 1 is RADIUS pixels

    def forward(
        self, maps: Float[Tensor, "B D h w"], image: Float[Tensor, "B 3 H W"], rng: torch.Generator | None = None
    ) -> Float[Tensor, "B D H W"]:
        """`rng` draws dropout."""
        colours = self._run(self.compare, image, rng)
        alike = torch.stack([(shifted * colours).sum(dim=1) for shifted in _neighbours(colours)], dim=1)
        temperature = self.log_temperature.exp().clamp(1e-4, 1e4)
        bell = torch.exp(-_squared_distances(image.device) / RADIUS**2 / (2 * self.sigma**2))
        weights = (temperature * alike).softmax(dim=1) * bell[:, None, None]
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-7)
        weights = weights + _FIXUP * self._run(self.correct, torch.cat([weights, image], dim=1), rng)
        return mix(enlarge(maps, image), weights)

    def _run(self, layers: nn.ModuleList, maps: Tensor, rng: torch.Generator | None) -> Tensor:
        first, second = layers
        mapped: Tensor = second(drop_channels(F.gelu(first(maps)), _DROPOUT, rng))
        return mapped


class GaussianStage(nn.Module):
    """The classic kernel: a bell over distance times a bell over the difference of colours, which sum to 1."""

    def forward(
        self,
        maps: Float[Tensor, "B D h w"],
        image: Float[Tensor, "B 3 H W"],
        rng: torch.Generator | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "B D H W"]:
        """Nothing is drawn."""
        different = torch.stack([(shifted - image).square().sum(dim=1) for shifted in _neighbours(image)], dim=1)
        distance = _squared_distances(image.device)[:, None, None] / (2 * _SPACE_SIGMA**2)
        return mix(enlarge(maps, image), (-distance - different / (2 * _COLOUR_SIGMA**2)).softmax(dim=1))


def enlarge(maps: Float[Tensor, "B D h w"], image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D H W"]:
    """Bicubic interpolation to the image's size."""
    return F.interpolate(maps, image.shape[2:], mode="bicubic", align_corners=False)


def mix(maps: Float[Tensor, "B D H W"], weights: Weights) -> Float[Tensor, "B D H W"]:
    """Each pixel's weighted sum over its 7 x 7 neighbours, of every channel alike."""
    mixed = torch.zeros_like(maps)
    for place, shifted in enumerate(_neighbours(maps)):
        mixed = mixed + weights[:, place, None] * shifted  # no unfolded copy of the maps, 49 times their size
    return mixed


def _neighbours(maps: Float[Tensor, "B D H W"]) -> Iterator[Float[Tensor, "B D H W"]]:
    """The maps shifted to each place of the window, row by row, mirrored at the edges; views of one copy."""
    height, width = maps.shape[2:]
    mode = "reflect" if min(height, width) > RADIUS else "replicate"
    padded = F.pad(maps, [RADIUS] * 4, mode=mode)
    for row in range(2 * RADIUS + 1):
        for column in range(2 * RADIUS + 1):
            yield padded[:, :, row : row + height, column : column + width]


def _squared_distances(device: torch.device) -> Float[Tensor, "49"]:
    """Of the places of the window from its middle, in pixels."""
    steps = torch.arange(-RADIUS, RADIUS + 1.0)
    return (steps[:, None].square() + steps.square()).flatten().to(device)

"""Convolutions and a dropout that draw from a generator as torch would; the global generator is not touched.

In:  sizes and a generator.   Out: torch's layers, maps with channels dropped. Called by the dense heads.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loffta.heads.block import draw_torch_weight
from loffta.shares import of_share

Layer = TypeVar("Layer", nn.Conv2d, nn.ConvTranspose2d)


def make_conv(n_inputs: int, n_outputs: int, kernel: int, rng: torch.Generator, *, stride: int = 1) -> nn.Conv2d:
    """A convolution with an odd kernel, zero-padded so that stride 1 keeps the size."""
    padding = kernel // 2
    return _draw(nn.Conv2d(n_inputs, n_outputs, kernel, stride=stride, padding=padding, device="meta"), rng)


def make_transposed(n_inputs: int, n_outputs: int, scale: int, rng: torch.Generator) -> nn.ConvTranspose2d:
    """A transposed convolution that enlarges by `scale`; its windows touch and do not overlap."""
    return _draw(nn.ConvTranspose2d(n_inputs, n_outputs, scale, stride=scale, device="meta"), rng)


def drop_channels(
    maps: Float[Tensor, "B D h w"], probability: float | int, rng: torch.Generator | None
) -> Float[Tensor, "B D h w"]:
    """torch's `dropout2d`: whole channels of an image become 0; without `rng`, on the device of `maps`, none does."""
    if rng is None or probability == 0:
        return maps
    n_images, n_channels = maps.shape[:2]
    drawn = of_share(lambda n: torch.rand(n, n_channels, generator=rng, device=maps.device), n_images, rng)
    kept = drawn >= probability
    return maps * (kept / (1 - probability))[:, :, None, None]


def _draw(layer: Layer, rng: torch.Generator) -> Layer:
    """Weights and bias as `reset_parameters` of torch's convolutions draws them: uniform within 1 / sqrt(fan in)."""
    assert layer.bias is not None
    layer.weight, layer.bias = (nn.Parameter(torch.empty(p.shape)) for p in (layer.weight, layer.bias))
    draw_torch_weight(layer.weight, rng)
    bound = 1 / math.sqrt(layer.weight[0].numel())
    nn.init.uniform_(layer.bias, -bound, bound, generator=rng)
    return layer

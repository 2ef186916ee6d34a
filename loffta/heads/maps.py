"""Patch tokens of several taps and backbones as one map, and codes and places of its cells.

In:  features [B, L, H, W, D] of any sizes.   Out: maps [B, H, W, K] on one grid. Called by the dense heads.
Nothing here has weights or draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loffta.tokens import FeatureSpec

CODE_DIM = 8  # of a position: sine and cosine of two frequencies along either axis (DeAP)
_CODE_FREQUENCIES = (1.0, 0.01)  # per cell: 10000 ^ (-2i / 4)


def finest_size(specs: Sequence[FeatureSpec]) -> tuple[int, int]:
    """Rows and columns of the finest grid: that with the most cells; of equals the first."""
    shapes = [spec.shape for spec in specs if spec.kind == "grid"]
    rows, columns, _ = max(shapes, key=lambda shape: math.prod(shape[:2]))
    return rows, columns


def count_channels(specs: Sequence[FeatureSpec]) -> int:
    """K of `join_grids`: all channels of all taps, class tokens included."""
    return sum(len(spec.taps) * spec.dim for spec in specs if spec.kind == "grid" or spec.has_class_token)


def join_grids(
    specs: Sequence[FeatureSpec], features: Sequence[Float[Tensor, "..."]], size: tuple[int, int]
) -> Float[Tensor, "B H W K"]:
    """All taps side by side on one grid of `size`; those of another size are interpolated bilinearly.

    A class token stands beside every patch of its image, as in DINOv2's linear depth; registers are left out.

    Returns:
        float32, columns in the order of specs, taps, channels.
    """
    joined = []
    for spec, feature in zip(specs, features, strict=True):
        if spec.kind == "grid":
            joined.append(_on_grid(feature, size))
        elif spec.has_class_token:
            tokens = feature[:, :, 0].float().flatten(1)
            joined.append(tokens[:, None, None].expand(-1, *size, -1))
    return joined[0] if len(joined) == 1 else torch.cat(joined, dim=-1)


def _on_grid(feature: Float[Tensor, "B L h w D"], size: tuple[int, int]) -> Float[Tensor, "B H W K"]:
    maps = feature.float().permute(0, 1, 4, 2, 3).flatten(1, 2)  # [B, L * D, h, w]
    if feature.shape[2:4] != size:
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return maps.permute(0, 2, 3, 1)


def to_size(maps: Float[Tensor, "B C h w"], px: int) -> Float[Tensor, "B C {px} {px}"]:
    """Outputs at the size that is asked for: bilinear, the outermost pixels beginning at the image's edge."""
    if maps.shape[2:] == (px, px):
        return maps
    return F.interpolate(maps, (px, px), mode="bilinear", align_corners=False)


def code_positions(rows: int, columns: int, device: torch.device) -> Float[Tensor, "N 8"]:
    """DeAP's code of every cell, row by row: sines and cosines of its column's number, then of its row's.

    Each grid counts its own cells from 0, so codes of two grids do not stand for the same places.
    """
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [number.flatten().double() * frequency for number in (column, row) for frequency in _CODE_FREQUENCIES]
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return torch.stack(waves, dim=1).float().to(device)


def place_cells(rows: int, columns: int, device: torch.device) -> Float[Tensor, "N 2"]:
    """Where DeAP's mask has every cell, row by row: its row and its column from 0, the first, to 1, the last."""
    places = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    return torch.stack([place.flatten() for place in places], dim=1).to(device)

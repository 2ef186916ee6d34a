"""Pools, resizes and normalises token grids: pure functions without weights.

In:  patch tokens of taps, as stored or as a batch on the device.   Out: tensors for `extract` (means) and `heads`.
Nothing here draws random numbers; every sum is taken in float32.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Resize: TypeAlias = Literal["auto", "paper"]

_BLOCK = 5 << 16  # values that are averaged at once: 1.3 MB in float32, two images of a ViT-B at 224 px


def pool_mean(grid: Float[Tensor, "*B H W D"]) -> Float[Tensor, "*B D"]:
    """Averages the patch tokens; the sum is taken in float32.

    Args:
        grid: [..., H, W, D], without prefix tokens.

    Returns:
        [..., D] in the dtype of `grid`.
    """
    if grid.dtype == torch.float16 and grid.device.type == "cpu" and grid.ndim > 3 and not grid.requires_grad:
        means = torch.empty((*grid.shape[:-3], grid.shape[-1]))
        _pool_in_blocks(grid, means)
        return means.to(grid.dtype)
    return grid.mean(dim=(-3, -2), dtype=torch.float32).to(grid.dtype)


def _pool_in_blocks(grid: Float[Tensor, "*B H W D"], means: Float[Tensor, "*B D"]) -> None:
    """The same sums, a few images at a time, so that their float32 copy stays in the processor's cache.

    torch converts all of `grid` first, into fresh memory: 0.8 GB/s of ViT-B tokens on a core, in blocks 7 to 8.
    """
    if grid.ndim > 4:
        for i in range(grid.shape[1]):
            _pool_in_blocks(grid[:, i], means[:, i])
        return
    n_images = grid.shape[0]
    n_block = min(n_images, max(1, _BLOCK // max(1, math.prod(grid.shape[1:]))))
    held = torch.empty((n_block, *grid.shape[1:]))
    for first in range(0, n_images, n_block or 1):
        stop = min(first + n_block, n_images)
        torch.mean(held[: stop - first].copy_(grid[first:stop]), dim=(-3, -2), out=means[first:stop])


def pool_grid(grid: Float[Tensor, "*B H W D"], rows: int, columns: int) -> Float[Tensor, "*B h w D"]:
    """Averages windows of rows x columns tokens that do not overlap: LOFF-TA's pooling, 36x36 to 18x18 with 2x2.

    Where the window does not divide the grid, those at its lower and right edge average the fewer tokens they have.

    Returns:
        [..., ceil(H / rows), ceil(W / columns), D] in the dtype of `grid`; sums are taken in float32.
    """
    cells = grid.float().reshape(-1, *grid.shape[-3:]).permute(0, 3, 1, 2)  # [B, D, H, W]
    window = (rows, columns)
    pooled = F.avg_pool2d(cells, window, stride=window, ceil_mode=True, count_include_pad=False).permute(0, 2, 3, 1)
    return pooled.reshape(*grid.shape[:-3], *pooled.shape[1:]).to(grid.dtype)


def resize_grid(
    grid: Float[Tensor, "B L H W D"], size: int, *, resize: Resize = "auto"
) -> Float[Tensor, "B L {size} {size} D"]:
    """Resizes every tap's grid to size x size cells.

    "paper" is bilinear, align_corners=False, no antialias: ComBo's (arXiv 2512.01405). "auto" is the same, but the area
    average where an axis shrinks by 2 or more; ours, because bilinear looks at 4 cells per output cell: from 32x32 to
    4x4 it would see 64 of 1,024. Each axis goes by its own factor.

    Returns:
        float32; the very values of `grid` where the size is right already.
    """
    n_images, n_taps, height, width, n_channels = grid.shape
    cells = grid.float()
    if height == width == size:
        return cells
    cells = cells.flatten(0, 1).permute(0, 3, 1, 2)  # [B * L, D, H, W]; a channels-last view, not a copy
    row_mode, column_mode = _resize_mode(height, size, resize), _resize_mode(width, size, resize)
    if row_mode == column_mode:
        cells = _interpolate(cells, size, size, row_mode)
    else:
        cells = _interpolate(cells, size, width, row_mode)
        cells = _interpolate(cells, size, size, column_mode)
    return cells.permute(0, 2, 3, 1).reshape(n_images, n_taps, size, size, n_channels)


def normalise_layers(tokens: Float[Tensor, "B L N D"], eps: float = 1e-5) -> Float[Tensor, "B L N D"]:
    """Gives each image's every layer mean 0 and variance 1 over all tokens and channels jointly.

    One scalar mean and one scalar population standard deviation, sqrt(variance + eps), per image and layer; ComBo's
    "embed_and_tokens" (arXiv 2512.01405). A LayerNorm per token would be another method.

    Returns:
        float32.
    """
    return F.layer_norm(tokens.float(), tokens.shape[2:], eps=eps)


def normalise_tokens(tokens: Float[Tensor, "B L N D"], eps: float = 1e-5) -> Float[Tensor, "B L N D"]:
    """Gives every token mean 0 and variance 1 over its channels: ComBo's "embed_only", not its paper's setting.

    Returns:
        float32.
    """
    return F.layer_norm(tokens.float(), tokens.shape[3:], eps=eps)


def pool_sequence(tokens: Float[Tensor, "*B N D"], target: int) -> Float[Tensor, "*B K"]:
    """Averages neighbouring tokens of a sequence until about `target` values are left: Head2Toe's pooling of ViTs.

    The mean of all tokens where D >= target, else of windows of int(N / (target / D)) tokens, flattened; the tokens
    behind the last whole window are left out (Evci et al., ICML 2022, and its code). A sequence of fewer than target
    values is kept whole; ours.

    Returns:
        float32, K a multiple of D.
    """
    n_tokens, n_channels = tokens.shape[-2:]
    window = n_tokens if n_channels >= target else max(1, int(n_tokens / (target / n_channels)))
    n_windows = n_tokens // window
    windows = tokens[..., : n_windows * window, :].reshape(*tokens.shape[:-2], n_windows, window, n_channels)
    return windows.mean(dim=-2, dtype=torch.float32).flatten(-2)


def pool_map(grid: Float[Tensor, "*B H W D"], target: int) -> Float[Tensor, "*B K"]:
    """The same for convolutional maps: n x n windows with n = floor(sqrt(target / D)), at least 1.

    A window is floor(H / n) x floor(W / n) cells; cells behind the last whole window are left out, as in the code. A
    map with fewer than n x n cells is kept whole; ours.

    Returns:
        float32, K a multiple of D.
    """
    height, width, n_channels = grid.shape[-3:]
    n = max(1, math.isqrt(target // n_channels))
    rows, columns = max(1, height // n), max(1, width // n)
    cells = grid.float().reshape(-1, height, width, n_channels).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(cells, (rows, columns)).permute(0, 2, 3, 1)
    return pooled.reshape(*grid.shape[:-3], -1)


def average_areas(cells: Float[Tensor, "B D H W"], rows: int, columns: int) -> Float[Tensor, "B D {rows} {columns}"]:
    """Torch's "area" interpolation, axis by axis as a matrix product.

    For MPS, which refuses sizes that do not divide (pytorch/pytorch#96056).
    """
    down, across = _area_weights(cells.shape[2], rows, cells), _area_weights(cells.shape[3], columns, cells)
    return down @ cells @ across.T


def _area_weights(n_cells: int, size: int, like: Tensor) -> Float[Tensor, "{size} {n_cells}"]:
    """Row i averages the cells that its stretch of the axis touches: floor(i n / size) to ceil((i + 1) n / size)."""
    row, cell = torch.arange(size)[:, None], torch.arange(n_cells)
    touched = ((cell + 1) * size > row * n_cells) & (cell * size < (row + 1) * n_cells)
    return (touched / touched.sum(dim=1, keepdim=True)).to(like)


def _resize_mode(cells: int, size: int, resize: Resize) -> Literal["area", "bilinear"]:
    return "area" if resize == "auto" and cells >= 2 * size else "bilinear"


def _interpolate(cells: Tensor, rows: int, columns: int, mode: Literal["area", "bilinear"]) -> Tensor:
    """An axis that keeps its length keeps its values, in either mode."""
    if mode == "area" and cells.device.type == "mps":
        return average_areas(cells, rows, columns)
    if mode == "area":
        return F.interpolate(cells, size=(rows, columns), mode="area")
    return F.interpolate(cells, size=(rows, columns), mode="bilinear", align_corners=False, antialias=False)

"""Moves, mixes and disturbs batches of features by what was drawn for them: pure functions without choices.

In:  features [B, L, *shape] and one affine map per image.   Out: new tensors of the same shape, float32.

A place is (x, y) in the image's own square: x to the right, y down, -1 and 1 its edges. Cell i of n has its centre at
(2 i + 1) / n - 1, which torch calls align_corners=False: one place is the same place of the image on every grid, and
one map moves a 16x16 and a 7x7 grid alike. With align_corners=True -1 and 1 would be the centres of the outermost
cells, which lie elsewhere in the image for every grid size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from loffta.shares import of_share

Fill: TypeAlias = Literal["zero", "border", "reflect"]  # what is seen outside the image
FILLS: tuple[Fill, ...] = get_args(Fill)


class Sources(NamedTuple):
    """Where each cell of a moved grid comes from: in the grid before, in cells.

    Between the outermost centres and the image's edge the outermost cells are seen, as far as the edge. Zeros begin at
    the edge, not half a cell before it: half a cell is another width on every grid.
    """

    rows: Float[Tensor, "B N"]  # 0 to height - 1
    columns: Float[Tensor, "B N"]
    inside: Bool[Tensor, "B N"]  # False: beside the image
    height: int
    width: int


# Sources are rounded to 1/4096 of a cell. Without that a flip, a quarter turn or the identity would blend in a
# millionth of a neighbour; with it they only permute cells, bit for bit.
_STEPS = 4096


def invert(matrix: Float[Tensor, "B r 3"]) -> Float[Tensor, "B 2 3"]:
    """The inverse of affine maps, [B, 2, 3] or [B, 3, 3]; in closed form, which never waits for the device."""
    a, b, x = matrix[:, 0].unbind(1)
    c, d, y = matrix[:, 1].unbind(1)
    inverse = torch.stack([d, -b, b * y - d * x, -c, a, c * x - a * y], dim=1)
    return (inverse / (a * d - b * c)[:, None]).view(-1, 2, 3)


def find_sources(matrix: Float[Tensor, "B 2 3"], height: int, width: int, fill: Fill) -> Sources:
    """Where the cells of a moved grid come from.

    Args:
        matrix: from places of the moved image to places of the image before.
    """
    y = _centres(height, matrix)[:, None]
    x = _centres(width, matrix)
    from_x, from_y = (m[:, 0, None, None] * x + m[:, 1, None, None] * y + m[:, 2, None, None] for m in matrix.unbind(1))
    rows, row_inside = _bring_inside(((from_y + 1) * height - 1) / 2, height, fill)
    columns, column_inside = _bring_inside(((from_x + 1) * width - 1) / 2, width, fill)
    return Sources(rows.flatten(1), columns.flatten(1), (row_inside & column_inside).flatten(1), height, width)


def corners(sources: Sources) -> Iterator[tuple[Int64[Tensor, "B N"], Float[Tensor, "B N"]]]:
    """The four cells around each source and their bilinear weights, all 0 beside the image."""
    top, left = sources.rows.floor(), sources.columns.floor()
    down, across = sources.rows - top, sources.columns - left
    bottom, right = (top + 1).clamp(max=sources.height - 1), (left + 1).clamp(max=sources.width - 1)
    for row, row_weight in ((top, 1 - down), (bottom, down)):
        for column, column_weight in ((left, 1 - across), (right, across)):
            index = row.long() * sources.width + column.long()
            yield index, row_weight * column_weight * sources.inside


def bilinear(sources: Sources) -> tuple[Int64[Tensor, "B N 4"], Float[Tensor, "B N 4"]]:
    """The four cells that each cell of a moved grid is blended of, and their weights: for `move_grid`."""
    found = list(corners(sources))
    return torch.stack([index for index, _ in found], dim=2), torch.stack([weight for _, weight in found], dim=2)


def nearest(sources: Sources) -> Int64[Tensor, "B N"]:
    """The cell that holds each source."""
    return (sources.rows + 0.5).long() * sources.width + (sources.columns + 0.5).long()


def move_grid(
    grid: Float[Tensor, "B L H W D"], index: Int64[Tensor, "B N 4"], weight: Float[Tensor, "B N 4"]
) -> Float[Tensor, "B L H W D"]:
    """Every cell becomes the weighted sum of four others, the same in all taps; float32.

    A weighted sum of rows of a table is what an embedding bag is: one pass that keeps the channels last. `grid_sample`
    wants them first, as kornia's warps do (pipelines/benchmarks/augment.py compares).
    """
    n_images, n_taps, n_channels = grid.shape[0], grid.shape[1], grid.shape[-1]
    table = grid.float().reshape(-1, n_channels)
    first = torch.arange(n_images * n_taps, device=grid.device).view(n_images, n_taps, 1, 1) * index.shape[1]
    cells = (first + index[:, None]).flatten(0, 2)
    weights = weight[:, None].expand(-1, n_taps, -1, -1).flatten(0, 2)
    if grid.device.type == "mps":
        return sum_rows(cells, table, weights).view(grid.shape)
    return F.embedding_bag(cells, table, per_sample_weights=weights, mode="sum").view(grid.shape)


def sum_rows(
    cells: Int64[Tensor, "N 4"], table: Float[Tensor, "M D"], weights: Float[Tensor, "N 4"]
) -> Float[Tensor, "N D"]:
    """The embedding bag in plain steps: on MPS torch 2.6 has none (pytorch/pytorch#162270)."""
    total = table[cells[:, 0]] * weights[:, :1]
    for i in range(1, 4):
        total = torch.addcmul(total, table[cells[:, i]], weights[:, i : i + 1])
    return total


def spread(tokens: Float[Tensor, "B *shape"], *dims: int) -> Float[Tensor, "..."]:
    """Population standard deviation over some axes, which keep length 1; float32.

    From the mean of squares, in a third of the time of `Tensor.std`. Rounding makes it up to 3e-4 of the mean where a
    channel is constant: as noise relative to it, less than a step of half precision.
    """
    values = tokens.float()
    mean = values.mean(dims, keepdim=True)
    return (values.square().mean(dims, keepdim=True) - mean.square()).clamp(min=0).sqrt()


def mix(
    tokens: Float[Tensor, "B *shape"], partner: Int64[Tensor, " B"], weight: Float[Tensor, " B"]
) -> Float[Tensor, "B *shape"]:
    """`weight` of each image and the rest of its partner; float32."""
    values = tokens.float()
    return torch.lerp(values[partner], values, weight.view(-1, *[1] * (tokens.ndim - 1)))


def add_noise(
    tokens: Float[Tensor, "B *shape"], std: Float[Tensor, "..."], rng: torch.Generator
) -> Float[Tensor, "B *shape"]:
    """Gaussian noise on every value; `std` is broadcast; float32."""
    n_images, *shape = tokens.shape
    noise = of_share(lambda n: torch.randn(n, *shape, generator=rng, device=tokens.device), n_images, rng)
    return torch.addcmul(tokens.float(), noise, std)


def drop_tokens(grid: Float[Tensor, "B L H W D"], kept: Bool[Tensor, "B h w"]) -> Float[Tensor, "B L H W D"]:
    """Zeroes the tokens whose centre lies in a cell of the coarser `kept` that is False; the same in all taps."""
    height, width = grid.shape[2:4]
    rows = (_centres(height, kept) + 1) / 2 * kept.shape[1]
    columns = (_centres(width, kept) + 1) / 2 * kept.shape[2]
    on_grid = kept[:, rows.long()][:, :, columns.long()]
    return grid.masked_fill(~on_grid[:, None, :, :, None], 0)


def _centres(n_cells: int, like: Tensor) -> Float[Tensor, " n"]:
    return (2 * torch.arange(n_cells, device=like.device, dtype=torch.float32) + 1) / n_cells - 1


def _bring_inside(
    position: Float[Tensor, "B H W"], length: int, fill: Fill
) -> tuple[Float[Tensor, "B H W"], Bool[Tensor, "B H W"]]:
    """Positions in cells, brought between the outermost centres, and where there is something to see."""
    position = (position * _STEPS).round() / _STEPS
    inside = torch.ones_like(position, dtype=torch.bool)
    if fill == "zero":
        inside = (position >= -0.5) & (position <= length - 0.5)
    elif fill == "reflect":  # at the image's edges, as often as it takes
        position = length - ((position + 0.5).remainder(2 * length) - length).abs() - 0.5
    return position.clamp(0, length - 1), inside

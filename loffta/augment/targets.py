"""Moves dense targets as `augment` moves the features of the same images: masks, depths and boxes.

In:  targets of any resolution that cover the same square as the features, and the maps of `Parameters`.   Out: targets
of the same shape. Nothing here draws; numbers are those of the target, not of the grid.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from loffta.augment.ops import Fill, corners, find_sources, invert, nearest
from loffta.shapes import Boxes

_LEAST_SIDE = 1e-4  # of the image; what is left of a box beside the image by rounding is less


def move_mask(
    mask: Shaped[Tensor, "B H W"], matrix: Float[Tensor, "B 2 3"], fill: Fill, *, outside: int
) -> Shaped[Tensor, "B H W"]:
    """Every pixel takes the value of the nearest one: classes or numbers of instances are never blended.

    Args:
        mask: of any dtype.
        outside: the value where fill `zero` shows no image: the class to ignore, or no instance.
    """
    height, width = mask.shape[1:]
    sources = find_sources(matrix, height, width, fill)
    return mask.flatten(1).gather(1, nearest(sources)).masked_fill(~sources.inside, outside).view(mask.shape)


def move_depth(depth: Float[Tensor, "B H W"], matrix: Float[Tensor, "B 2 3"], fill: Fill) -> Float[Tensor, "B H W"]:
    """Bilinear over the valid pixels alone; 0, invalid, where these hold less than half of the weight.

    Invalid are values that are 0, negative or not finite. Depths are not scaled when the image is: the camera that saw
    the enlarged image is another one.
    """
    height, width = depth.shape[1:]
    valid = (depth.isfinite() & (depth > 0)).flatten(1)
    values = depth.float().flatten(1).where(valid, 0)
    total = torch.zeros_like(values)
    share = torch.zeros_like(values)
    for index, weight in corners(find_sources(matrix, height, width, fill)):
        weight = weight * valid.gather(1, index)
        total += weight * values.gather(1, index)
        share += weight
    return torch.where(share >= 0.5, total / share, 0).view(depth.shape).to(depth.dtype)


def move_boxes(boxes: Boxes, matrix: Float[Tensor, "B 2 3"]) -> Boxes:
    """The upright boxes around the moved ones, clipped to the image; those that have left it are dropped.

    Fills show parts of the image twice; a box stays with the first.
    """
    left, top, right, bottom = (2 * boxes.corners - 1).unbind(1)
    x = torch.stack([left, right, left, right], dim=1)
    y = torch.stack([top, top, bottom, bottom], dim=1)
    forward = invert(matrix)[boxes.image]
    moved_x, moved_y = (m[:, :1] * x + m[:, 1:2] * y + m[:, 2:] for m in forward.unbind(1))
    sides = [moved_x.amin(1), moved_y.amin(1), moved_x.amax(1), moved_y.amax(1)]
    moved = ((torch.stack(sides, dim=1) + 1) / 2).clamp(0, 1).to(boxes.corners.dtype)
    kept = (moved[:, 2:] - moved[:, :2] > _LEAST_SIDE).all(1)
    return Boxes(boxes.image[kept], moved[kept], boxes.number[kept])

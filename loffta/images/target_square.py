"""Brings a dense target onto the square that a backbone sees: the same crop, flip and resize as `to_square`.

In:  a NativeTarget of the whole image.   Out: [S, S] of its dtype, or boxes in fractions of the square. Labels take
the nearest pixel, depth is blended over known pixels alone. What lies outside the image counts nowhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.images.geometry import PixelGeometry, Window, shown_window
from loffta.targets import IGNORE, IGNORE_16, BoxList, NativeTarget

_TIE = 1e-6  # of a pixel: what lies between two takes the second, whatever rounding says
_LEAST_SIDE = 1e-4  # of the square; what is left of a box beside it by rounding is less (as in augment.targets)


def square_target(native: NativeTarget, geometry: PixelGeometry, key: str, target_px: int) -> NDArray[Any] | BoxList:
    """[S, S] of side `target_px` over what `to_square` shows; boxes as fractions, those that are not seen left out.

    Args:
        key: the image's name, from which a view is drawn.
    """
    window = shown_window(geometry, key, native.width, native.height)
    if native.boxes is not None:
        return _boxes(native.boxes, window)
    assert native.map is not None, "a target is a map or boxes"
    x = _centres(window.left, window.right, target_px)
    y = _centres(window.top, window.bottom, target_px)
    if window.mirrored:
        x = x[::-1]
    if native.kind == "depth":
        return _blend(native.map, x, y)
    outside = IGNORE if native.map.dtype == np.uint8 else IGNORE_16
    column, row = np.floor(x + _TIE).astype(np.int64), np.floor(y + _TIE).astype(np.int64)
    found = native.map[np.ix_(row.clip(0, native.height - 1), column.clip(0, native.width - 1))]
    square: NDArray[Any] = np.where(_inside(x, native.width, y, native.height), found, found.dtype.type(outside))
    return square


def _centres(start: float, end: float, n: int) -> NDArray[np.float64]:
    """Where the centres of n pixels between two places lie."""
    return start + (np.arange(n, dtype=np.float64) + 0.5) * ((end - start) / n)


def _inside(x: NDArray[np.float64], width: int, y: NDArray[np.float64], height: int) -> NDArray[np.bool_]:
    return ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]


def _blend(depth: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    """Bilinear over known pixels; 0, unknown, where these hold less than half of the weight (as augment.targets)."""
    height, width = depth.shape
    total, share = np.zeros((len(y), len(x))), np.zeros((len(y), len(x)))
    for row, of_row in _neighbours(y, height):
        for column, of_column in _neighbours(x, width):
            found = depth[np.ix_(row, column)].astype(np.float64)
            weight = of_row[:, None] * of_column[None] * (found > 0)
            total += weight * found
            share += weight
    known = _inside(x, width, y, height) & (share >= 0.5)
    return np.divide(total, share, out=np.zeros_like(total), where=known).astype(np.float32)


def _neighbours(place: NDArray[np.float64], size: int) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """(pixel, weight) of the two pixels whose centres lie around every place; at the edge both are the last one."""
    first = np.floor(place - 0.5).astype(np.int64)
    behind = place - 0.5 - first
    return [(first.clip(0, size - 1), 1 - behind), ((first + 1).clip(0, size - 1), behind)]


def _boxes(boxes: BoxList, window: Window) -> BoxList:
    origin = np.array([window.left, window.top] * 2)
    extent = np.array([window.right - window.left, window.bottom - window.top] * 2)
    corners = (boxes.corners - origin) / extent
    if window.mirrored:
        corners[:, [0, 2]] = 1 - corners[:, [2, 0]]
    corners = corners.clip(0, 1)
    seen = (corners[:, 2:] - corners[:, :2] > _LEAST_SIDE).all(1)
    return BoxList(corners[seen], boxes.classes[seen], boxes.crowd[seen])

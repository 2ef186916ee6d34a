"""Outlines and runs of COCO's annotations as masks, pixel for pixel as pycocotools makes them.

In:  a polygon, or counts of runs, and the image's size.   Out: [H, W] bool, or ValueError with what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FINE = 5  # steps a pixel of the lattice on which outlines are drawn (COCO's maskApi)
_CENTRE = 2  # the step of a pixel's centre
_MOST_STEPS = 20_000_000  # of one outline: one around every pixel of a photograph has fewer
_MARGIN = 2  # an outline lies within so many images, or is none of this image


def fill_polygon(corners: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels inside a closed outline; where it crosses itself, those inside an odd number of times.

    The corners are rounded to fifths of a pixel. Down each column of pixel centres every crossing of the outline begins
    or ends the inside, from the next pixel centre on.

    Args:
        corners: x, y, x, y, ... in pixels.
    Raises:
        ValueError: fewer than three corners, or far outside of the image.
    """
    if len(corners) < 6 or len(corners) % 2:
        raise ValueError(f"a polygon of {len(corners)} numbers")
    reach = np.tile([width, height], len(corners) // 2) * _MARGIN
    if not (np.abs(corners) <= reach).all():
        raise ValueError("a polygon far outside of the image")
    fine = np.trunc(_FINE * corners + 0.5).astype(np.int64).reshape(-1, 2)
    u, v, edge = _steps(fine, np.roll(fine, -1, axis=0))
    crossing = (u[1:] != u[:-1]) & (edge[1:] == edge[:-1])
    column = np.minimum(u[1:], u[:-1])[crossing] - _CENTRE
    below = (np.minimum(v[1:], v[:-1])[crossing] + 0.5) / _FINE - 0.5
    at_centre = (column % _FINE == 0) & (column >= 0) & (column < _FINE * width)
    row = np.ceil(below[at_centre].clip(0, height)).astype(np.int64)
    return _between(column[at_centre] // _FINE * height + row, height, width)


def fill_runs(counts: Sequence[Any], height: int, width: int) -> NDArray[np.bool_]:
    """Pixels by runs down the columns, of outside and inside in turn.

    Raises:
        ValueError: the runs do not make up the image.
    """
    if any(type(n) is not int or n < 0 for n in counts) or sum(counts) != height * width:
        raise ValueError(f"runs that are not those of {width} x {height} pixels")
    return _between(np.cumsum(np.array(counts, np.int64)), height, width)


def unpack_counts(text: str) -> list[int]:
    """Counts of runs from COCO's short form: five bits a character, and from the third on differences to the last but
    one.

    Raises:
        ValueError: it ends within a number, or has characters of no such text.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("runs in no known form")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("runs that are cut off")
    return counts


def _steps(
    start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(u, v, edge) of every step of every edge, drawn along its longer side from its smaller end."""
    extent = np.abs(end - start)
    along = (extent[:, 1] > extent[:, 0]).astype(np.int64)  # 0: along x
    edges = np.arange(len(start))
    n_steps = extent.max(axis=1)
    if int(n_steps.sum()) > _MOST_STEPS:
        raise ValueError("a polygon longer than any outline")
    turned = start[edges, along] > end[edges, along]
    first, last = np.where(turned[:, None], end, start), np.where(turned[:, None], start, end)
    across = 1 - along
    slope = (last[edges, across] - first[edges, across]) / np.maximum(n_steps, 1)
    edge = np.repeat(edges, n_steps + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(n_steps + 1) - n_steps - 1, n_steps + 1)
    main = first[edge, along[edge]] + step
    other = np.trunc(first[edge, across[edge]] + slope[edge] * step + 0.5).astype(np.int64)
    is_x = along[edge] == 0
    return np.where(is_x, main, other), np.where(is_x, other, main), edge


def _between(places: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """[H, W]: inside begins and ends at every place, counted down the columns."""
    turns = np.bincount(places, minlength=height * width)[: height * width] & 1
    inside = np.bitwise_xor.accumulate(turns.astype(np.uint8)).astype(np.bool_)
    return inside.reshape(width, height).T

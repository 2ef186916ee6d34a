"""Paints a scene of `demo:scenes`: its picture, and exactly which pixel is what, of whom and how far away.

In:  a Scene, scikit-learn's digits, and photos.   Out: a Painting of px x px pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loffta.images.scene_plan import PHOTO_PART, Digit, Scene
from loffta.targets import NO_INSTANCE

BACKGROUND = 0  # class of the ground; digit d is class d + 1
INK = 0.4  # of full ink: what has as much belongs to the digit
SEEN = 0.25  # of a digit's pixels; one of which nearer digits leave less is not in the scene
_LEAST_PIXELS = 4  # of a digit that is in the scene
_EDGE = 0.2  # of full ink, over which a digit's colour fades into what is behind it; half of it is within the digit
_PHOTO_PX_A_METRE = 120.0  # of the ground
_CELLS = 8  # of a digit's side
_MIDDLE_GREY = 128.0


class Painting(NamedTuple):
    """One scene at one resolution."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    classes: NDArray[np.uint8]  # BACKGROUND, or 1 to 10
    instances: NDArray[np.uint16]  # 1, 2, ... from the farthest to the nearest
    depth: NDArray[np.float32]  # metres


class Patch(NamedTuple):
    """The pixels around one digit."""

    digit: Digit
    rows: slice
    columns: slice
    ink: NDArray[np.float64]  # of 0 to 1

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which of them belong to the digit."""
        return self.ink >= INK


def paint(
    scene: Scene,
    px: int,
    digits: NDArray[np.float64],
    labels: NDArray[np.int64],
    photos: Sequence[NDArray[np.uint8]],
) -> Painting:
    """The picture and its targets.

    Args:
        digits: [n, 8, 8], 0 to 1.
        labels: 0 to 9 of each.
        photos: [H, W, 3] each, for the ground.
    """
    depth = _ground_depth(scene, px)
    canvas = _ground(scene, depth, photos)
    classes = np.full((px, px), BACKGROUND, np.uint8)
    instances = np.full((px, px), NO_INSTANCE, np.uint16)
    for number, patch in enumerate(_seen([_patch(digit, px, digits) for digit in scene.digits], px), start=1):
        here = patch.rows, patch.columns
        inside = patch.inside
        _colour(canvas[here], patch)
        classes[here][inside] = labels[patch.digit.number] + 1
        instances[here][inside] = number
        depth[here][inside] = patch.digit.distance
    return Painting(np.rint(canvas.clip(0, 255)).astype(np.uint8), classes, instances, depth.astype(np.float32))


def _centres(px: int) -> NDArray[np.float64]:
    return (np.arange(px) + 0.5) / px


def _ground_depth(scene: Scene, px: int) -> NDArray[np.float64]:
    place, ground = _centres(px), scene.ground
    return 1 / (ground.far + ground.rise * place[:, None] + ground.roll * (place[None] - 0.5))


def _ground(scene: Scene, depth: NDArray[np.float64], photos: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """A photo laid on the plane, mirrored at its edges: the farther, the finer."""
    px = len(depth)
    photo = photos[int(scene.ground.photo * len(photos))]
    start, end = (round(share * photo.shape[1]) for share in PHOTO_PART[scene.split])
    part = photo[:, start:end]
    across = (_centres(px)[None] - 0.5) * depth * _PHOTO_PX_A_METRE
    along = depth * _PHOTO_PX_A_METRE
    column, row = (
        _mirrored(metres + share * size, size)
        for metres, share, size in zip((across, along), scene.ground.origin, part.shape[1::-1], strict=True)
    )
    return part[row, column].astype(np.float32)


def _mirrored(place: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    folded = np.floor(place).astype(np.int64) % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def _patch(digit: Digit, px: int, digits: NDArray[np.float64]) -> Patch:
    """Ink of one digit, bilinear between the centres of its cells, without any beyond them."""
    reach = digit.side / math.sqrt(2) + 1 / px
    rows, columns = (
        slice(max(0, math.floor((middle - reach) * px)), min(px, math.ceil((middle + reach) * px)))
        for middle in (digit.y, digit.x)
    )
    dy = (_centres(px)[rows, None] - digit.y) / digit.side
    dx = (_centres(px)[None, columns] - digit.x) / digit.side
    cosine, sine = math.cos(digit.turn), math.sin(digit.turn)
    x = (dx * cosine + dy * sine) * _CELLS + _CELLS / 2 + 0.5  # of the digit with an empty cell around it
    y = (dy * cosine - dx * sine) * _CELLS + _CELLS / 2 + 0.5
    padded = np.pad(digits[digit.number], 1)
    x, y = x.clip(0, _CELLS + 1 - 1e-9), y.clip(0, _CELLS + 1 - 1e-9)
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, below = x - column, y - row
    upper = padded[row, column] * (1 - right) + padded[row, column + 1] * right
    lower = padded[row + 1, column] * (1 - right) + padded[row + 1, column + 1] * right
    return Patch(digit, rows, columns, upper * (1 - below) + lower * below)


def _seen(patches: list[Patch], px: int) -> list[Patch]:
    """Those of which enough is seen, in the same order; one that is not there hides none."""
    covered = np.zeros((px, px), np.bool_)
    kept: list[Patch] = []
    for patch in reversed(patches):
        inside, here = patch.inside, (patch.rows, patch.columns)
        n_seen = int((inside & ~covered[here]).sum())
        if n_seen >= max(_LEAST_PIXELS, SEEN * inside.sum()):
            covered[here] |= inside
            kept.append(patch)
    return kept[::-1]


def _colour(canvas: NDArray[np.float32], patch: Patch) -> None:
    """Paints one digit over what is behind it: as much lighter or darker than that as its contrast says."""
    behind = canvas[patch.inside].mean(axis=0)
    lighter = 1.0 if behind.mean() < _MIDDLE_GREY else -1.0
    colour = behind + lighter * patch.digit.contrast + np.array(patch.digit.tint)
    share = ((patch.ink - INK) / _EDGE + 0.5).clip(0, 1)[..., None].astype(np.float32)
    canvas += share * (colour.astype(np.float32) - canvas)

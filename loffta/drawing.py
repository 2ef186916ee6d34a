"""Dense predictions and targets as colours, for people: alone, or over their image.

In:  maps [h, w] of classes, metres, probabilities or numbers, embeddings [D, h, w], boxes.   Out: [h, w, 3] uint8.
Called by `online` for the files of `predict`, and by `reporting`. Nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.targets import IGNORE, IGNORE_16, NO_INSTANCE

Pixels = NDArray[np.uint8]  # [h, w, 3]
VOID = (224, 224, 192)  # pixels of no class, as Pascal VOC shows them
LINE = (255, 64, 0)  # boxes and borders
# matplotlib's viridis (CC0) at nine even steps, from the least to the most
_RAMP = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
_UNKNOWN = (0, 0, 0)  # depth that nobody knows
_OVER = 0.5  # of a map over its image


def class_colours(n: int) -> NDArray[np.uint8]:
    """[n, 3]: those of Pascal VOC's devkit, whose bits are those of the class's number in turn."""
    found = np.zeros((n, 3), np.uint8)
    numbers = np.arange(n)
    for place in range(8):
        for channel in range(3):
            found[:, channel] |= ((numbers >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return found


def colour_classes(mask: NDArray[Any]) -> Pixels:
    """A colour a class; what is ignored is VOID."""
    ignored = IGNORE if mask.dtype == np.uint8 else IGNORE_16
    numbers = np.where(mask == ignored, 0, mask).astype(np.int64)
    found = class_colours(int(numbers.max(initial=0)) + 1)[numbers]
    found[mask == ignored] = VOID
    return found


def colour_instances(numbers: NDArray[Any]) -> Pixels:
    """A colour an object; black where there is none."""
    narrow = np.where(numbers == IGNORE_16, NO_INSTANCE, numbers).astype(np.int64)
    found = class_colours(int(narrow.max(initial=0)) + 1)[narrow]
    found[numbers == IGNORE_16] = VOID
    return found


def colour_depth(metres: NDArray[Any], near: float | None = None, far: float | None = None) -> Pixels:
    """Dark is near, light is far; black is not known.

    Args:
        near: the depth that is darkest; None: the least that there is; `far` likewise.
    """
    known = np.isfinite(metres) & (metres > 0)
    there = metres[known]
    near = float(there.min(initial=np.inf)) if near is None else near
    far = float(there.max(initial=0.0)) if far is None else far
    share = np.where(known, metres, 0.0) - (near if np.isfinite(near) else 0.0)
    found = _ramp(share / max(far - near, 1e-9) if np.isfinite(near) else share)
    found[~known] = _UNKNOWN
    return found


def colour_shares(shares: NDArray[Any]) -> Pixels:
    """Grey: black is 0, white is 1."""
    grey = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def colour_embedding(embedded: NDArray[np.floating[Any]]) -> Pixels:
    """[D, h, w] by the first three principal components of its pixels: what is of one colour lies close together.

    Each component is stretched over two standard deviations; its sign is that which makes its largest weight positive.
    """
    dim, height, width = embedded.shape
    pixels = embedded.reshape(dim, -1).astype(np.float64)
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    _, vectors = np.linalg.eigh(pixels @ pixels.T)
    first = vectors[:, ::-1][:, :3]
    first = first * np.sign(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])])
    shown = first.T @ pixels
    spread = shown.std(axis=1, keepdims=True)
    shown = (shown / np.where(spread > 0, spread, 1) / 4 + 0.5).clip(0, 1)
    found = np.zeros((height, width, 3), np.uint8)
    found[..., : len(shown)] = np.rint(255 * shown).astype(np.uint8).reshape(-1, height, width).transpose(1, 2, 0)
    return found


def blend(image: Pixels, colours: Pixels) -> Pixels:
    """Half of each."""
    found: Pixels = np.rint((1 - _OVER) * image + _OVER * colours).astype(np.uint8)
    return found


def draw_borders(image: Pixels, shares: NDArray[Any]) -> Pixels:
    """The image, and LINE where a border is likely."""
    likely = shares.clip(0, 1)[..., None]
    found: Pixels = np.rint((1 - likely) * image + likely * np.array(LINE)).astype(np.uint8)
    return found


def draw_boxes(image: Pixels, corners: NDArray[Any], colour: tuple[int, int, int] = LINE) -> Pixels:
    """The image with the edges of boxes; `corners` [N, 4] are left, top, right, bottom in its pixels."""
    found = image.copy()
    height, width = image.shape[:2]
    thick = max(1, round(min(height, width) / 150))
    for left, top, right, bottom in np.asarray(corners, np.float64).reshape(-1, 4):
        x0, x1 = (int(np.clip(round(x), 0, width)) for x in (left, right))
        y0, y1 = (int(np.clip(round(y), 0, height)) for y in (top, bottom))
        for rows, columns in (
            (slice(y0, min(y0 + thick, y1)), slice(x0, x1)),
            (slice(max(y1 - thick, y0), y1), slice(x0, x1)),
            (slice(y0, y1), slice(x0, min(x0 + thick, x1))),
            (slice(y0, y1), slice(max(x1 - thick, x0), x1)),
        ):
            found[rows, columns] = colour
    return found


# what a head of each task finds, over an image of the same size
OVERLAYS: dict[str, Callable[[Pixels, Any], Pixels]] = {
    "segmentation": lambda image, found: blend(image, colour_classes(found)),
    "depth": lambda image, found: blend(image, colour_depth(found)),
    "boundaries": draw_borders,
    "detection": lambda image, found: draw_boxes(image, found.corners),
    "instances": lambda image, found: blend(image, colour_embedding(found)),
}


def _ramp(shares: NDArray[Any]) -> Pixels:
    steps = np.array([[int(word[i : i + 2], 16) for i in (0, 2, 4)] for word in _RAMP], np.float64)
    places = np.linspace(0, 1, len(steps))
    channels = [np.interp(shares.clip(0, 1), places, steps[:, channel]) for channel in range(3)]
    found: Pixels = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return found

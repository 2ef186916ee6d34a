"""How a decoded image becomes the square of pixels that a backbone wants: squashed, cropped, or seen as a random view.

In: an RGB image and a PixelGeometry, which is part of the recipe and tells `rgb` its Look.   Out: [S, S, 3] uint8, or
as many as there are windows of a test that slides them. Called from threads.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loffta.crop import Centre, CropMode, Windows
from loffta.look import OLD, Look

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["squash", "crop"]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

VIEW_KIND = "crop-flip"
VIEW_AREA = (0.25, 1.0)  # share of the image; ours: torchvision's 0.08 is for networks that train on thousands of views
VIEW_ASPECT = (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop
_TRIES = 10  # as there
_MOST_RESIZED = 1 << 24  # pixels of an image that is resized whole before its centre is cut out


@dataclass(frozen=True)
class View:
    """One of several random looks at every image: a crop, mirrored or not, drawn from (seed, index, image key)."""

    seed: int
    index: int


@dataclass(frozen=True)
class PixelGeometry:
    """How an image becomes a square of pixels."""

    image_px: int  # side of the square
    resize: Resize = "squash"  # the whole image straight to the square, aspect ignored (as VTAB does); or timm's own
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 1.0  # for `crop`: side of the square over that of the resized image
    crop_mode: CropMode = "center"  # for `crop`: the short side is resized, the centre cut out; or all of it squashed
    view: View | None = None
    background: str = OLD.background  # absent in recipes of old, as the next
    range: str = OLD.range
    windows: Windows | None = None  # of a test that slides them, in place of `resize` and `view`: never in a recipe

    @property
    def look(self) -> Look:
        """How the image becomes RGB before."""
        return Look(self.background, self.range)

    @property
    def centre(self) -> Centre:
        """What `crop` shows."""
        return Centre(self.image_px, self.crop_pct, self.crop_mode)


def thumb_geometry(thumb_px: int, look: Look) -> PixelGeometry:
    """How an image becomes its thumbnail, in a cache as without one."""
    return PixelGeometry(thumb_px, interpolation="bilinear", background=look.background, range=look.range)


class ViewBox(NamedTuple):
    """The part of an image that a view shows, in pixels, right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool


class Window(NamedTuple):
    """The part of an image that becomes the square, in pixels of the image as real numbers; it may stand out of it."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool


def to_square(image: Image.Image, geometry: PixelGeometry, key: str) -> NDArray[np.uint8]:
    """An RGB image as [S, S, 3], by PIL's antialiased filter.

    Args:
        key: the image's name, from which a view is drawn.
    """
    side, resample = geometry.image_px, _FILTERS[geometry.interpolation]
    if geometry.view is not None:
        box = view_box(geometry.view, key, image.width, image.height)
        square = image.crop(box[:4]).resize((side, side), resample)
        return np.asarray(square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if box.mirrored else square)
    if geometry.resize == "squash":
        return np.asarray(image.resize((side, side), resample))
    return np.asarray(_cut(image, geometry.centre, resample))


def to_windows(image: Image.Image, geometry: PixelGeometry, windows: Windows) -> NDArray[np.uint8]:
    """Every window of an RGB image as [N, S, S, 3]; where S is not the windows' own side, each is resized once more."""
    side, resample = geometry.image_px, _FILTERS[geometry.interpolation]
    resized = image.resize(windows.resized(image.width, image.height), resample)
    if windows.mirrored:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cut = [(left, top, left + windows.side, top + windows.side) for left, top in windows.corners(resized.size)]
    return np.stack([np.asarray(resized.resize((side, side), resample, box=box)) for box in cut])


def shown_window(geometry: PixelGeometry, key: str, width: int, height: int) -> Window:
    """What `to_square` shows of an image of this name and size."""
    if geometry.view is not None:
        box = view_box(geometry.view, key, width, height)
        return Window(float(box.left), float(box.top), float(box.right), float(box.bottom), box.mirrored)
    if geometry.resize == "squash":
        return Window(0.0, 0.0, float(width), float(height), False)
    return Window(*geometry.centre.window(width, height), False)


def view_box(view: View, key: str, width: int, height: int) -> ViewBox:
    """The crop and mirroring of a view: the same for ever, on any machine, so that it can be replayed on masks.

    25-100 % of the area with an aspect ratio of 3/4 to 4/3, placed anywhere, as torchvision's RandomResizedCrop draws
    it; the whole image where ten draws do not fit. Mirrored in half of the cases.
    """
    seed = hashlib.blake2b(f"{view.seed}/{view.index}/{key}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "big")))
    mirrored = bool(rng.random() < 0.5)
    for _ in range(_TRIES):
        area = rng.uniform(*VIEW_AREA) * width * height
        aspect = math.exp(rng.uniform(math.log(VIEW_ASPECT[0]), math.log(VIEW_ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return ViewBox(left, top, left + crop_width, top + crop_height, mirrored)
    return ViewBox(0, 0, width, height, mirrored)


def _cut(image: Image.Image, centre: Centre, resample: Image.Resampling) -> Image.Image:
    """The square in the middle of the resized image.

    Of a long strip only the middle is resized: 1 x 150,000 pixels would be 64 x 9,600,000. Not of every image: of 400
    with noise in them, 370 then differ in some pixel from what timm gives and older caches hold, since Pillow keeps the
    corners as float32 and does its two passes in another order.
    """
    width, height = size = centre.resized(image.width, image.height)
    (left, top), side = centre.corner(size), centre.side
    if width * height <= _MOST_RESIZED:
        return image.resize(size, resample).crop((left, top, left + side, top + side))
    x, y = image.width / width, image.height / height  # pixels of the image in one of the resized
    return image.resize((side, side), resample, box=(left * x, top * y, (left + side) * x, (top + side) * y))

"""A decoded image as 8 bits of red, green and blue, by the Look that the recipe holds.

In: a Picture and a Look.   Out: an image of mode RGB, or BadImage where the file does not say what its values mean.
What is defined for which file is one table in docs/image-sets.md. All is done in strips: beside the two images, little
memory is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loffta.images.decode import SIXTEEN_BITS, TWELVE_BITS, BadImage, Picture
from loffta.look import CLIP, Look

_STRIP_PIXELS = 1 << 18
AMBIGUOUS_16 = "16-bit values that are all below 4096: 12 bits in 16, or a dark picture? --range 0..4095 or 0..65535"
AMBIGUOUS_COLOUR = "16-bit colour that is all below 4096, of which Pillow keeps 4 bits; save it with 8 bits a channel"
NO_RANGE = "whole numbers whose file names no range; say it with --range LOW..HIGH"
NOT_UNIT = "float values outside of 0..1; say what is black and white with --range LOW..HIGH"
NOT_FINITE = "it holds NaN or infinite values"
NO_RANGE_OF_COLOUR = "16-bit colour, which Pillow reads with 8 bits a channel: --range is for one channel"


def to_rgb(picture: Picture, look: Look) -> Image.Image:
    """The picture as mode RGB.

    Raises:
        BadImage: it cannot be told what is black and white in it, or Pillow cannot turn its colours into RGB.
    """
    image = picture.image
    if image.mode.startswith("I;16") or image.mode == "I":
        return _clipped(image) if look.range == CLIP else _stretched(picture, look)
    if image.mode == "F" and look.range != CLIP:
        return _stretched(picture, look)
    if picture.samples.deep_colour and look.range != CLIP:
        _check_colour(image, look)
    try:
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            return _in_strips(image, lambda strip: _on_background(strip, look))
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise BadImage(f"{image.mode} colours cannot be shown: {error}") from error


def is_flat(image: Image.Image, square: NDArray[np.uint8]) -> bool:
    """Whether an RGB image is of a single colour; `square`, made of it, answers for nearly all at no cost."""
    return bool((square == square[0, 0]).all()) and len(image.getcolors(1) or ()) == 1


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert` of every strip, put together."""
    boxes = list(_strips(image))
    if len(boxes) == 1:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for box in boxes:
        whole.paste(convert(image.crop(box)), box[:2])
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _on_background(image: Image.Image, look: Look) -> Image.Image:
    if image.mode == "La":  # premultiplied grey, which Pillow turns into nothing else
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*look.colour, 255)), image).convert("RGB")


def _clipped(image: Image.Image) -> Image.Image:
    """As loffta had it before there were ranges, for caches of that time."""

    def clip(strip: Image.Image) -> Image.Image:
        return Image.fromarray((np.asarray(strip).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")

    return _in_strips(image, clip)


def _stretched(picture: Picture, look: Look) -> Image.Image:
    """One channel of more than 8 bits: black to white becomes 0 to 255, rounded to the nearest (PNG 3, 13.12)."""
    low, high = look.limits or _declared_limits(picture)
    key = picture.image.info.get("transparency")

    def stretch(strip: Image.Image) -> Image.Image:
        values = _values(strip, picture)
        if not np.isfinite(values).all():
            raise BadImage(NOT_FINITE)
        grey = np.floor((values - low) * 255 / (high - low) + 0.5).clip(0, 255).astype(np.uint8)
        if picture.samples.white_is_zero:
            grey = 255 - grey
        shown = np.repeat(grey[..., None], 3, axis=2)
        if isinstance(key, int):  # PNG's tRNS of grey: one value that is transparent
            shown[values == key] = look.colour
        return Image.fromarray(shown)

    return _in_strips(picture.image, stretch)


def _values(strip: Image.Image, picture: Picture) -> NDArray[np.float64]:
    values = np.asarray(strip)
    return (values.view(np.uint32) if picture.samples.unsigned else values).astype(np.float64)


def _declared_limits(picture: Picture) -> tuple[float, float]:
    """What the file says, or its kind's convention.

    Floats are 0..1, as scikit-image has it (its user guide, "Image data types").
    """
    image, samples = picture.image, picture.samples
    if image.mode != "F" and samples.limits is None:
        raise BadImage(NO_RANGE)
    if image.mode != "F" and not samples.may_be_less:
        assert samples.limits is not None, "refused above"
        return samples.limits
    low, high = _extrema(picture)
    if image.mode == "F":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadImage(NOT_FINITE)
        if low < 0 or high > 1:
            raise BadImage(NOT_UNIT)
        return 0.0, 1.0
    if 0 < high <= TWELVE_BITS[1]:
        raise BadImage(AMBIGUOUS_16)
    return SIXTEEN_BITS


def _extrema(picture: Picture) -> tuple[float, float]:
    """Smallest and largest value; NaN where there is one."""
    parts = (_values(picture.image.crop(box), picture) for box in _strips(picture.image))
    ends = np.array([(part.min(), part.max()) for part in parts])
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _check_colour(image: Image.Image, look: Look) -> None:
    """16 bits a channel, of which the upper 8 are there: enough for all but values that are small throughout."""
    if look.limits not in (None, SIXTEEN_BITS):
        raise BadImage(NO_RANGE_OF_COLOUR)
    n_colours = {"LA": 1, "RGB": 3, "RGBA": 3}.get(image.mode, 0)  # ink is none: there, little means white
    largest = max((int(np.asarray(image.getchannel(i)).max()) for i in range(n_colours)), default=0)
    if look.limits is None and 0 < largest <= TWELVE_BITS[1] // 256:
        raise BadImage(AMBIGUOUS_COLOUR)

"""Turns encoded image bytes into an upright image with all that its file says of its values.

In: the bytes of one file.   Out: a Picture, from which `rgb` makes 8 bits of colour, or BadImage with the reason.
Called from threads: the image goes on to `geometry` as Pillow's, for a copy to an array and back would hold the
interpreter's lock.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from loffta.images.metadata import without_metadata
from loffta.images.strange import describe_strange
from loffta.words import printable

MAX_REASON = 200  # characters
_ADDRESS = re.compile(r"(?: at)? 0x[0-9a-f]{6,}")  # reasons must not differ from run to run
MAX_PIXELS = 178_000_000  # a bomb above this; PIL itself refuses 178,956,970, real photographs end near 150 million
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # that Pillow keeps a pixel; 4 for other modes
_RGB_BYTES = 4  # a pixel of mode RGB; a copy that was turned upright takes no more
# What decoders take beside, bytes a pixel: measured with pictures of 36 million pixels, see docs/decisions.md
_BESIDE = {"AVIF": 8, "JPEG2000": 16, "MPO": 6, "TIFF": 4, "WEBP": 12}
_PROGRESSIVE = 6  # a JPEG's coefficients: 3 x 16 bits
TWELVE_BITS, SIXTEEN_BITS = (0.0, 4095.0), (0.0, 65535.0)  # black and white
_COUNTED_APART = ("FLI", "GIF", "TIFF")  # counting their pages moves through the file


class BadImage(Exception):
    """One image that cannot be used; the text is its reason, and the run goes on."""


@dataclass(frozen=True)
class Samples:
    """What the values of an image are, as far as its file says."""

    limits: tuple[float, float] | None = None  # declared black and white of values of more than 8 bits
    may_be_less: bool = False  # the container has 16 bits, and programs put 12 into it
    white_is_zero: bool = False
    unsigned: bool = False  # 32 bits, which Pillow takes for signed ones
    deep_colour: bool = False  # 16 bits a channel, of which Pillow keeps the upper 8


@dataclass(frozen=True)
class Picture:
    """A decoded image, upright, in Pillow's mode for it."""

    image: Image.Image
    samples: Samples
    pages: int  # frames or pages of the file; this is the first


class Opened:
    """An image whose header was read."""

    def __init__(self, data: bytes, image: Image.Image) -> None:
        self._data, self._image = data, image

    @property
    def n_bytes(self) -> int:
        """What decoding and making RGB of it takes at most, the encoded bytes included; from the header alone."""
        image = self._image
        beside = _BESIDE.get(image.format or "", 0) or (_PROGRESSIVE if image.info.get("progressive") else 0)
        each = _BYTES.get(image.mode, 4) + _RGB_BYTES + beside
        return len(self._data) + image.width * image.height * each

    def decode(self) -> Picture:
        """The first page; where metadata are in the way, without them.

        Raises:
            BadImage: truncated or broken pixels.
        """
        try:
            return _decode(self._data, self._image)
        except Exception as error:  # decoders of damaged files raise nearly anything
            plain = without_metadata(self._data)
            if plain is not None:
                try:
                    return _decode(plain, _open(plain))
                except Exception as again:  # it was not the metadata: the first reason is the one to tell
                    raise _bad(error) from again
            raise _bad(error) from error


def open_image(data: bytes) -> Opened:
    """Reads the header.

    Raises:
        BadImage: empty, not an image, or over MAX_PIXELS.
    """
    if not data:
        raise BadImage("empty file")
    try:
        return Opened(data, _open(data))
    except BadImage:
        raise
    except Exception as error:
        plain = without_metadata(data)
        if plain is not None:
            try:
                return Opened(plain, _open(plain))
            except Exception as again:
                raise _bad(error, data) from again
        raise _bad(error, data) from error


def one_line(text: str) -> str:
    """A reason as it is kept and printed: no control characters, which files can put into error texts, and not long."""
    clean = printable(_ADDRESS.sub("", text))
    return clean if len(clean) <= MAX_REASON else clean[: MAX_REASON - 3] + "..."


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.format == "EPS":  # Pillow would run Ghostscript on it
        raise BadImage("an EPS file is a program, not an image")
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"{image.width} x {image.height} pixels, over the limit of {MAX_PIXELS}")
    return image


def _decode(data: bytes, image: Image.Image) -> Picture:
    samples, pages = _samples(image), _count_pages(data, image)
    image.load()
    turn = _TURNS.get(_orientation(image))
    return Picture(image if turn is None else image.transpose(turn), samples, pages)


def _orientation(image: Image.Image) -> Any:
    """Of EXIF or XMP, whatever it holds; what cannot be read says nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # parsers of broken EXIF raise nearly anything
        return 1


def _count_pages(data: bytes, image: Image.Image) -> int:
    """1 where pages behind the first cannot be counted; the layers of a PSD are no pages, the first is all of them."""
    if image.format == "PSD":
        return 1
    try:
        counted = Image.open(io.BytesIO(data)) if image.format in _COUNTED_APART else image
        return int(getattr(counted, "n_frames", 1))
    except Exception:
        return 1


def _samples(image: Image.Image) -> Samples:
    """What an image that is not loaded yet says of its values.

    12 bits of TIFF are told by BitsPerSample. PPM and JPEG 2000 say how many bits they use, and Pillow stretches them
    to 16. MinSampleValue and MaxSampleValue of TIFF are statistics, which must not change what is shown (TIFF 6.0).
    """
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    tiles: Any = getattr(image, "tile", ())
    raw_modes = [str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in tiles if tile.args]
    deep = image.mode.startswith("I;16")
    limits = None
    if deep or (image.mode == "I" and image.format == "PPM"):
        limits = TWELVE_BITS if any("I;12" in name for name in raw_modes) else SIXTEEN_BITS
    return Samples(
        limits=limits,
        may_be_less=deep and limits == SIXTEEN_BITS and image.format not in ("PPM", "JPEG2000"),
        white_is_zero=tags.get(262) == 0,
        unsigned=image.mode == "I" and tags.get(339, (1,))[0] == 1 and bool(tags),
        deep_colour=not deep and image.mode != "I" and any(";16" in name for name in raw_modes),
    )


def _bad(error: Exception, data: bytes = b"") -> BadImage:
    if isinstance(error, BadImage):
        return error
    if isinstance(error, UnidentifiedImageError):  # whose text holds an address in memory: reasons must not differ
        return BadImage(one_line(describe_strange(data)))
    return BadImage(one_line(f"{type(error).__name__}: {error}"))

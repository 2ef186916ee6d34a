"""Turns encoded image bytes into an RGB image, whatever the file holds.

In: the bytes of one file.   Out: a Pillow image of 3 x 8 bits, or BadImage with the reason. Called from threads: the
image goes on to `geometry` as it is, for a copy to an array and back would hold the interpreter's lock.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from loffta.words import printable

MAX_REASON = 200  # characters
_ADDRESS = re.compile(r"(?: at)? 0x[0-9a-f]{6,}")  # reasons must not differ from run to run
MAX_PIXELS = 178_000_000  # a bomb above this; PIL itself refuses 178,956,970, real photographs end near 150 million


class BadImage(Exception):
    """One image that cannot be used; the text is its reason, and the run goes on."""


def decode(data: bytes) -> Image.Image:
    """Decodes one image: EXIF orientation applied, 16-bit scaled to 8, transparency shown on black.

    Returns:
        It in mode RGB, loaded.
    Raises:
        BadImage: empty, truncated, not an image, or over MAX_PIXELS.
    """
    if not data:
        raise BadImage("empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "EPS":  # Pillow would run Ghostscript on it
                raise BadImage("an EPS file is a program, not an image")
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"{image.width} x {image.height} pixels, over the limit of {MAX_PIXELS}")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # whose text holds an address in memory: reasons must not differ by run
        raise BadImage("not an image of a known format") from error
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise BadImage(one_line(f"{type(error).__name__}: {error}")) from error


def one_line(text: str) -> str:
    """A reason as it is kept and printed: no control characters, which files can put into error texts, and not long."""
    clean = printable(_ADDRESS.sub("", text))
    return clean if len(clean) <= MAX_REASON else clean[: MAX_REASON - 3] + "..."


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # PIL's own conversion clips 16-bit values at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")

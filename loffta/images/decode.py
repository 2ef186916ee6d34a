"""Turns encoded image bytes into uint8 RGB pixels, whatever the file holds.

In: the bytes of one file.   Out: [H, W, 3] uint8, or BadImage with the reason. Called by `extract` from threads.
"""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from loffta.errors import printable

MAX_REASON = 200  # characters
_ADDRESS = re.compile(r"(?: at)? 0x[0-9a-f]{6,}")  # reasons must not differ from run to run
MAX_PIXELS = 178_000_000  # a bomb above this; PIL itself refuses 178,956,970, real photographs end near 150 million


class BadImage(Exception):
    """One image that cannot be used; the text is its reason, and the run goes on."""


def decode(data: bytes) -> NDArray[np.uint8]:
    """Decodes one image: EXIF orientation applied, 16-bit scaled to 8, transparency shown on black.

    Returns:
        [H, W, 3] uint8 RGB.
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
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
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
    return image.convert("RGB")

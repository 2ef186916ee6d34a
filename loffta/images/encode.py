"""Pixels to PNG bytes, for image sets that hold pixels and no files."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png(pixels: NDArray[np.uint8]) -> bytes:
    """One image, [H, W] or [H, W, 3] uint8, as PNG without compression.

    The bytes live for one decoding: compressing them would cost time, and their digest would depend on zlib's version.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()

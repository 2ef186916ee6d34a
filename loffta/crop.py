"""The centre of an image that `--resize crop` shows: timm's evaluation transform, as arithmetic. Imports nothing.

In: sizes in pixels.   Out: what to resize to, where the square begins, which part of the image that is. `images` cuts
pixels by it, and `dataset` what is known of them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

CropMode = Literal["center", "squash", "border"]  # timm's names


class Centre(NamedTuple):
    """How the centre is cut out."""

    side: int  # of the square, in pixels
    crop_pct: float  # side of the square over that of the resized image
    crop_mode: CropMode = "center"  # the short side is resized, the centre cut out; or all of it squashed

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that an image is resized to before its centre is cut out."""
        scale = math.floor(self.side / self.crop_pct)
        if self.crop_mode == "squash":
            return scale, scale
        short = min(width, height)
        return (scale * width // short, scale * height // short)

    def corner(self, resized: tuple[int, int]) -> tuple[int, int]:
        """Where the square in the middle begins, from the left and from the top."""
        return round((resized[0] - self.side) / 2), round((resized[1] - self.side) / 2)

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of what is shown of an image, in its own pixels; it may stand out of it."""
        resized = self.resized(width, height)
        left, top = self.corner(resized)
        x, y = width / resized[0], height / resized[1]
        return left * x, top * y, (left + self.side) * x, (top + self.side) * y

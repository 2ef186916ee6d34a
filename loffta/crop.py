"""The squares that are cut out of an image, as arithmetic: the centre that `--resize crop` shows, which is timm's
evaluation transform, and the windows of `--windows`, which are mmsegmentation's. Imports nothing.

In: sizes in pixels.   Out: what to resize to, where squares begin, which part of the image that is. `images` cuts
pixels by it, `dataset` what is known of them, and `online` puts together what heads say of windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

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


@dataclass(frozen=True)
class Windows:
    """A test by sliding windows: squares that overlap and cover an image whose shorter side is theirs.

    As `slide_inference` of mmsegmentation (`mmseg/models/segmentors/encoder_decoder.py`) has it: one every `stride`
    pixels, and the last moved back to the edge. A side of more than LONGEST windows is squashed to so many: DINOv2's
    (2048, 512) shrinks such an image until it does not fill its window.
    """

    side: int  # in pixels of the resized image
    stride: int  # LEAST_STRIDE of the side to the side: 13 windows at most
    mirrored: bool = False  # they slide over the mirror image, from its own left

    LONGEST: ClassVar[int] = 4
    LEAST_STRIDE: ClassVar[float] = 0.25

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that an image is resized to; halves are rounded up, as mmcv does."""
        short = min(width, height)
        sides = ((2 * length * self.side + short) // (2 * short) for length in (width, height))
        across, down = (min(length, self.LONGEST * self.side) for length in sides)
        return across, down

    def corners(self, resized: tuple[int, int]) -> list[tuple[int, int]]:
        """(left, top) of every window, row by row."""
        across, down = (self._starts(length) for length in resized)
        return [(left, top) for top in down for left in across]

    def __str__(self) -> str:
        return f"{self.side}/{self.stride}"

    def _starts(self, length: int) -> list[int]:
        """Where they begin along one axis."""
        last = length - self.side
        return [*range(0, last, self.stride), last]

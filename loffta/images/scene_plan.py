"""Where everything stands in one scene of `demo:scenes`, in fractions of its side and in metres; nothing is painted.

In:  a seed and the scene's number.   Out: a Scene: the same for ever, at every resolution. `scene_paint` makes pixels
of it.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np

PLAIN, SMALL, CROWDED, FAINT = "plain", "small", "crowded", "faint"
_HARD = {3: SMALL, 7: CROWDED, 11: FAINT}  # of 12
SPLITS = ("train",) * 7 + ("val", "test", "test")  # of every ten scenes
DIGITS = {"train": (0, 1000), "val": (1000, 1398), "test": (1398, 1797)}  # of scikit-learn's; none in two splits
PHOTO_PART = {"train": (0.0, 0.6), "val": (0.6, 1.0), "test": (0.6, 1.0)}  # of every photo's width, likewise
SIZES = {"small": 1 / 8, "medium": 1 / 4, "large": 1.0}  # longer side of a box, at most, as a share of the scene's
_COUNTS = {PLAIN: (1, 6), SMALL: (3, 8), CROWDED: (4, 7), FAINT: (1, 6)}
_SIDES = {PLAIN: (0.13, 0.45), SMALL: (0.07, 0.12), CROWDED: (0.2, 0.35), FAINT: (0.13, 0.45)}
_CONTRASTS = {FAINT: (14.0, 26.0)}
_CONTRAST = (70.0, 120.0)  # levels of 255 between a digit and what is behind it
_EMPTY = 0.02  # scenes without a digit
_TURN = math.radians(30)  # either way: a 6 stays a 6
_FOCAL = 0.45  # a digit a metre high fills so much of the picture at one metre
_BEFORE = 0.95  # of the ground's distance: a digit stands in front of it


class Ground(NamedTuple):
    """A plane that leads away: in a picture, one over the distance is linear in x and y."""

    far: float  # 1 / metres at the middle of the upper edge
    rise: float  # what it gains down to the lower edge
    roll: float  # what it gains from left to right
    photo: float  # which photo, of 0 to 1
    origin: tuple[float, float]  # where in the photo, of 0 to 1

    def inverse(self, x: float, y: float) -> float:
        """1 / metres at a place of the picture."""
        return self.far + self.rise * y + self.roll * (x - 0.5)


class Digit(NamedTuple):
    """One digit: a card that faces the camera."""

    number: int  # in scikit-learn's set
    x: float  # of its centre
    y: float
    side: float  # of its 8 x 8 cells
    turn: float  # radians, clockwise
    distance: float  # metres
    contrast: float  # levels
    tint: tuple[float, float, float]  # levels that the channels differ by


class Scene(NamedTuple):
    """The farthest digit comes first."""

    split: str
    kind: str
    ground: Ground
    digits: tuple[Digit, ...]


def kind_of(index: int) -> str:
    """`plain`, or in which way a scene is hard: a quarter, in equal parts small, crowded, faint, in every split."""
    return _HARD.get((index + index // len(SPLITS)) % 12, PLAIN)  # so that no tenth has one kind alone


def split_of(index: int) -> str:
    """Of every ten scenes 7 are train, 1 val, 2 test: more scenes leave the old ones as they are."""
    return SPLITS[index % len(SPLITS)]


def size_group(left: float | int, top: float | int, right: float | int, bottom: float | int, px: int) -> str:
    """The name in SIZES of an object's box in pixels of a scene."""
    side = max(right - left, bottom - top) / px
    return next(name for name, limit in SIZES.items() if side <= limit)


def draw_scene(seed: int, index: int) -> Scene:
    """The scene of that number."""
    digest = hashlib.blake2b(f"scenes/{seed}/{index}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    split, kind = split_of(index), kind_of(index)
    ground = _draw_ground(rng)
    fewest, most = _COUNTS[kind]
    n = 0 if kind == PLAIN and rng.random() < _EMPTY else int(rng.integers(fewest, most + 1))
    middle = rng.uniform(0.3, 0.7, 2)  # of a crowd
    digits = [_draw_digit(rng, kind, split, ground, middle) for _ in range(n)]
    return Scene(split, kind, ground, tuple(sorted(digits, key=lambda digit: -digit.distance)))


def _draw_ground(rng: np.random.Generator) -> Ground:
    far, near = 1 / rng.uniform(5.5, 8.0), 1 / rng.uniform(2.5, 4.0)
    roll = rng.uniform(-0.3, 0.3) * far
    origin = (float(rng.random()), float(rng.random()))
    return Ground(float(far), float(near - far), float(roll), float(rng.random()), origin)


def _draw_digit(
    rng: np.random.Generator,
    kind: str,
    split: str,
    ground: Ground,
    middle: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> Digit:
    number = int(rng.integers(*DIGITS[split]))
    low, high = _SIDES[kind]
    side = float(low * (high / low) ** rng.random())
    x, y = (float(place) for place in rng.uniform(side / 2, 1 - side / 2, 2))
    if kind == CROWDED:
        x, y = (float(place) for place in (middle + rng.normal(0, 0.4 * side, 2)).clip(side / 2, 1 - side / 2))
    turn = float(rng.uniform(-_TURN, _TURN))
    height = rng.uniform(0.8, 1.25)  # metres: size tells the distance, but not alone
    reach = side / math.sqrt(2)  # of the corners of a turned card
    corners = [(x + dx, y + dy) for dx in (-reach, reach) for dy in (-reach, reach)]
    nearest_ground = 1 / max(ground.inverse(*corner) for corner in corners)
    distance = float(min(_FOCAL * height / side, _BEFORE * nearest_ground))
    contrast = float(rng.uniform(*_CONTRASTS.get(kind, _CONTRAST)))
    tint = rng.uniform(-40, 40, 3) * (0.15 if kind == FAINT else 1.0)
    red, green, blue = (float(level) for level in tint - tint.mean())
    return Digit(number, x, y, side, turn, distance, contrast, (red, green, blue))

"""`demo:scenes`: handwritten digits standing on textured ground, with every dense target known exactly.

`demo:scenes#px=128,n=2000,seed=0` says how large, how many and which; what is left out is as here. Digits are
scikit-learn's, the ground is cut from sample photos of scikit-learn and scikit-image. Keys are <kind>/<number>.png:
the kind is `plain`, or in which way the scene is hard. Everything is made when it is read.
"""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loffta.errors import LofftaError, UsageError, unknown_name
from loffta.images.encode import png
from loffta.images.scene_paint import Painting, paint
from loffta.images.scene_plan import draw_scene, kind_of, split_of
from loffta.store.label_cells import one_class
from loffta.store.table import ImageTable
from loffta.store.target_codec import encode_target
from loffta.targets import NativeTarget, TargetKind

NAMES = tuple("0123456789")
KINDS: tuple[TargetKind, ...] = ("mask", "instances", "depth", "boxes")
DEFAULTS = {"px": 128, "n": 2000, "seed": 0}
_LIMITS = {"px": (32, 512), "n": (1, 1_000_000), "seed": (0, 2**31 - 1)}
_PHOTOS = {
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
    "skimage": ("data", ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png")),
}
_LEVELS = 16  # scikit-learn's digits have grey levels 0 to 16
_KEPT = 32  # scenes in memory, for the targets that are asked for behind their image
_KEY = re.compile(r"(?:(mask|instances|depth|boxes)/)?([a-z]+)/(\d{6,7})\.png", re.ASCII)


class Scenes:
    """Scenes of one size and seed."""

    def __init__(self, px: int = 128, n: int = 2000, seed: int = 0) -> None:
        self._px, self._n, self._seed = px, n, seed
        self._source = f"demo:scenes#px={px},n={n},seed={seed}"
        self._painted = lru_cache(_KEPT)(self._paint)

    def listing(self) -> ImageTable:
        """A row a scene; `size` is that of its pixels, for its bytes are made when it is read.

        Raises:
            LofftaError: scikit-image, which has the photos, is not installed.
        """
        _photo_files(self._source)
        keys = [f"{kind_of(i)}/{i:06d}.png" for i in range(self._n)]
        return one_class([None] * self._n).table(
            self._source,
            keys,
            [3 * self._px**2] * self._n,
            [split_of(i) for i in range(self._n)],
            {kind: [f"{kind}/{key}" for key in keys] for kind in KINDS},
            {"mask": ("background", *NAMES), "boxes": NAMES},
        )

    def read(self, key: str) -> bytes:
        """A scene as PNG, or one of its targets in the form that `targets` decodes.

        Raises:
            FileNotFoundError: there is no such scene.
        """
        match = _KEY.fullmatch(key)
        index = int(match[3]) if match else self._n
        if match is None or index >= self._n or match[2] != kind_of(index):
            raise FileNotFoundError(f"there is no {key!r}")
        painted = self._painted(index)
        if match[1] is None:
            return png(painted.pixels)
        if match[1] == "boxes":
            return _boxes(painted)
        if match[1] == "mask":
            return encode_target(NativeTarget("mask", self._px, self._px, map=painted.classes))
        if match[1] == "depth":
            return encode_target(NativeTarget("depth", self._px, self._px, map=painted.depth))
        return encode_target(NativeTarget("instances", self._px, self._px, map=painted.instances))

    def _paint(self, index: int) -> Painting:
        return paint(draw_scene(self._seed, index), self._px, *self._digits, self._photos)

    @cached_property
    def _digits(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        from sklearn.datasets import load_digits  # a second, which only who wants the digits pays

        digits = load_digits()
        return digits.images / _LEVELS, digits.target.astype(np.int64)

    @cached_property
    def _photos(self) -> list[NDArray[np.uint8]]:
        return [np.asarray(Image.open(path).convert("RGB")) for path in _photo_files(self._source)]


def open_scenes(options: str) -> Scenes:
    """The scenes that `px=128,n=2000,seed=0` names; each may be left out.

    Raises:
        UsageError: another option, twice the same, or a number that is none or out of its limits.
    """
    where = f"SOURCE demo:scenes#{options}"
    chosen: dict[str, int] = {}
    for part in options.split(",") if options else []:
        name, _, text = part.partition("=")
        if name not in DEFAULTS:
            raise unknown_name("option of demo:scenes", name, DEFAULTS, where=where)
        low, high = _LIMITS[name]
        if name in chosen or not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not low <= int(text) <= high:
            raise UsageError(
                f"{name} is a whole number from {low} to {high}, once (got '{part}')",
                where=where,
                remedy="write for example demo:scenes#px=128,n=2000,seed=0",
            )
        chosen[name] = int(text)
    return Scenes(**{**DEFAULTS, **chosen})


def _boxes(painted: Painting) -> bytes:
    """The extents of what is seen of every digit, with its name."""
    rows = []
    for number in range(1, int(painted.instances.max()) + 1):
        y, x = np.nonzero(painted.instances == number)
        name = NAMES[int(painted.classes[y[0], x[0]]) - 1]
        rows.append([int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1, name])
    return json.dumps(rows).encode()


def _photo_files(source: str) -> list[Path]:
    """Photos inside the installed packages, without importing these: scikit-image takes a second.

    Raises:
        LofftaError: a package is not installed.
    """
    found: list[Path] = []
    for package, (folder, names) in _PHOTOS.items():
        spec = importlib.util.find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec else []
        paths = [Path(place) / folder / name for place in places[:1] for name in names]
        if not paths or not all(path.is_file() for path in paths):
            raise LofftaError(
                f"{source} needs the sample photos of {'scikit-image' if package == 'skimage' else 'scikit-learn'}",
                where=f"SOURCE {source}",
                remedy="pip install 'loffta[demo]'",
            )
        found += paths
    return found

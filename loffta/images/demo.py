"""`demo:digits`: scikit-learn's 1,797 handwritten digits as a real image set, with PNG bytes and splits.

`demo:scenes`, which has all dense targets, is in `scenes`.
"""

from __future__ import annotations

import io
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loffta.errors import unknown_name
from loffta.images.scenes import Scenes, open_scenes
from loffta.store.table import ImageTable

N_TRAIN = 1000  # the first 1,000 train, the other 797 test
_LEVELS = 16  # scikit-learn's digits have grey levels 0 to 16


class Digits:
    """8 x 8 grey digits of 43 writers; keys are 0000.png to 1796.png."""

    def listing(self) -> ImageTable:
        """1,797 rows, ten classes named 0 to 9."""
        keys = [f"{i:04d}.png" for i in range(len(self._encoded))]
        return ImageTable(
            source="demo:digits",
            keys=keys,
            sizes=np.array([len(data) for data in self._encoded], dtype=np.int64),
            splits=["train" if i < N_TRAIN else "test" for i in range(len(keys))],
            labels=self._data[1],
            classes=tuple("0123456789"),
        )

    def read(self, key: str) -> bytes:
        """One digit as PNG; FileNotFoundError for a key that is not listed."""
        digits = key.removesuffix(".png")
        if not digits.isdecimal() or int(digits) >= len(self._encoded):
            raise FileNotFoundError(f"there is no {key!r}")
        return self._encoded[int(digits)]

    @cached_property
    def _data(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        from sklearn.datasets import load_digits  # a second, which only who wants the digits pays

        digits = load_digits()
        images = np.rint(digits.images * (255 / _LEVELS)).astype(np.uint8)
        return images, digits.target.astype(np.int64)

    @cached_property
    def _encoded(self) -> list[bytes]:
        return [_png(image) for image in self._data[0]]


def open_demo(text: str) -> Digits | Scenes:
    """The embedded image set of that name; scenes may have options behind `#`."""
    name, mark, options = text.partition("#")
    if name == "scenes":
        return open_scenes(options)
    if name != "digits" or mark:
        raise unknown_name("demo image set", text, ["digits", "scenes"], where=f"SOURCE demo:{text}")
    return Digits()


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()

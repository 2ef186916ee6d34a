"""Images that a caller has in hand - paths, Pillow's images, arrays - as an image set, read like any other.

In: a sequence of them.   Out: an ImageSource. What is no file is encoded as PNG, which loses nothing, so that
transparency, 16 bits and the turn that a camera noted mean what they mean in a file.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loffta.errors import UsageError
from loffta.store.table import ImageTable

GivenImage: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[Any]
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # of Pillow, which its PNG writer takes


class GivenImages:
    """Some images; a key is the path of a file, or `image 3` by its place."""

    def __init__(self, images: Sequence[Any]) -> None:
        """Raises UsageError where one of them is no GivenImage, and where there is none."""
        if not len(images):
            raise UsageError("there are no images", where="images", remedy="give one at least")
        self._images: dict[str, Path | Image.Image] = {}
        for place, image in enumerate(images):
            found = _as_image(image, f"images[{place}]")
            key = str(found) if isinstance(found, Path) else f"image {place}"
            self._images[key if key not in self._images else f"{key} ({place})"] = found

    def listing(self) -> ImageTable:
        """One row per image, in order, without a class."""
        n = len(self._images)
        return ImageTable("images", [*self._images], np.zeros(n, np.int64), ["given"] * n, np.full(n, -1), ())

    def read(self, key: str) -> bytes:
        """The encoded bytes; OSError where a file cannot be read."""
        image = self._images[key]
        if isinstance(image, Path):
            return image.read_bytes()
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1, exif=image.getexif())
        return buffer.getvalue()


def _as_image(image: Any, where: str) -> Path | Image.Image:
    if isinstance(image, str | os.PathLike):
        return Path(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise UsageError(
                f"an array of {image.dtype} {list(image.shape)} is no image",
                where=where,
                remedy="give uint8 arrays [height, width], or with 3 or 4 channels behind: 0 is black, 255 white",
            )
        return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"a {type(image).__name__} is no image", where=where, remedy="give a path, a PIL image or a uint8 array"
        )
    if image.mode not in _PNG_MODES:
        raise UsageError(
            f"a PIL image of mode {image.mode} cannot be used", where=where, remedy="give image.convert('RGB')"
        )
    return image

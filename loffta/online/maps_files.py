"""Predicted maps as files: PNG that loffta and any viewer read, or npy; and overlays.

In:  what a task's `decode` gives of one image.   Out: bytes and their ending. Called by `dense_predict`.

    segmentation  PNG with a palette, the numbers of classes; of more than 255 classes grey of 16 bits
    depth         PNG of 16 bits in steps of `depth_step` metres, 0 where it is not known; the text in it says so
    boundaries    PNG of 8 bits, 255 times the probability
    instances     PNG in colours, for people: three components of the embeddings; the embeddings themselves are in npy
"""

from __future__ import annotations

import io
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loffta.drawing import VOID, class_colours, colour_embedding
from loffta.images.targets import MILLIMETRES
from loffta.targets import IGNORE, IGNORE_16, DenseSettings

MapForm = Literal["png", "npy"]


def depth_step(settings: DenseSettings) -> float:
    """Metres in one step of a depth's PNG: a millimetre, which `--targets depth` takes, or as many as its range asks.

    The smallest power of ten of metres, from a millimetre, in whose steps 16 bits reach `max_depth`.
    """
    tens = max(0, math.ceil(math.log10(settings.max_depth / (MILLIMETRES * IGNORE_16))))
    return float(10.0 ** (tens - 3))


def map_bytes(task: str, found: NDArray[Any], form: MapForm, settings: DenseSettings) -> bytes:
    """One map as a file of this form."""
    buffer = io.BytesIO()
    if form == "npy":
        np.save(buffer, found, allow_pickle=False)
        return buffer.getvalue()
    info = PngInfo()
    for name, value in map_facts(task, settings).items():
        info.add_text(name, str(value))
    _image(task, found, settings).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def map_facts(task: str, settings: DenseSettings) -> dict[str, Any]:
    """What a PNG's numbers mean, as the text in it and `about.json` say."""
    if task == "depth":
        return {"unit": "metres", "step": depth_step(settings), "unknown": 0}
    if task == "boundaries":
        return {"unit": "probability of a border", "step": 1 / 255}
    if task == "instances":
        return {"unit": "colours of three principal components"}
    return {"unit": "number of a class"}


def overlay_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """A picture for people: JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _image(task: str, found: NDArray[Any], settings: DenseSettings) -> Image.Image:
    if task == "instances":
        return Image.fromarray(colour_embedding(found))
    if task == "depth":
        steps = np.rint(found.astype(np.float64) / depth_step(settings))
        unknown = ~(np.isfinite(found) & (found > 0))
        return Image.fromarray(np.where(unknown, 0, steps.clip(1, IGNORE_16)).astype(np.uint16))
    if task == "boundaries":
        return Image.fromarray(np.rint(found.clip(0, 1) * 255).astype(np.uint8))
    if found.dtype != np.uint8:
        return Image.fromarray(found)
    image = Image.fromarray(found)
    colours = class_colours(IGNORE + 1)
    colours[IGNORE] = VOID
    image.putpalette(colours.tobytes())  # its numbers are indices from now on
    return image

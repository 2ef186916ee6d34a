"""Native targets as bytes: PNG of 8 or 16 bits, npy, JSON. Lossless, and read by any library.

In: a NativeTarget.   Out: bytes from which the same is made. Called by `extraction`, which writes them, and by
`targets`, which reads them from a cache that anybody may have written: nothing in it is believed.
"""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.files.documents import from_json
from loffta.targets import IGNORE, IGNORE_16, BoxList, NativeTarget, TargetKind

MAX_PIXELS = 178_000_000  # as of images
_PNG = b"\x89PNG\r\n\x1a\n"
_MODES = {"L": np.uint8, "I;16": np.uint16}


def encode_target(target: NativeTarget) -> bytes:
    """PNG of 8 or 16 bits, npy or JSON, from which `read_target` makes the same."""
    if target.boxes is not None:
        boxes = target.boxes
        parts = zip(boxes.corners.tolist(), boxes.classes.tolist(), boxes.crowd.tolist(), strict=True)
        return json.dumps([[*corners, number, int(crowd)] for corners, number, crowd in parts]).encode()
    assert target.map is not None, "a target is a map or boxes"
    buffer = io.BytesIO()
    if target.kind == "depth":
        np.save(buffer, target.map, allow_pickle=False)
        return buffer.getvalue()
    from PIL import Image  # 50 ms, which only who reads or writes targets spends

    values = target.map
    if target.kind == "instances" and ((values < IGNORE) | (values == IGNORE_16)).all():
        values = np.minimum(values, IGNORE).astype(np.uint8)
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, format="PNG")
    return buffer.getvalue()


def read_target(kind: TargetKind, height: int, width: int, data: bytes) -> NativeTarget:
    """What `encode_target` made bytes of.

    Raises:
        ValueError: they are none of a target of this kind and size.
    """
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"a target of {width} x {height} pixels")
    if kind == "boxes":
        return NativeTarget(kind, height, width, boxes=_boxes(data))
    found = _npy(data, (height, width)) if kind == "depth" else _numbers(data, (width, height))
    if kind == "instances" and found.dtype == np.uint8:
        found = found.astype(np.uint16)
        found[found == IGNORE] = IGNORE_16
    return NativeTarget(kind, height, width, map=found)


def count_objects(target: NativeTarget) -> int:
    """Boxes, or numbers of instances that are there; 0 of masks and depths."""
    if target.boxes is not None:
        return len(target.boxes.classes)
    if target.kind != "instances":
        return 0
    assert target.map is not None
    found = np.bincount(target.map.ravel(), minlength=IGNORE_16 + 1)[1:IGNORE_16]
    return int(np.count_nonzero(found))


def largest_class(target: NativeTarget) -> int:
    """Of masks and boxes the largest number of a class; -1 where there is none, as in all others."""
    if target.boxes is not None:
        return int(target.boxes.classes.max(initial=-1))
    if target.kind != "mask":
        return -1
    assert target.map is not None
    ignored = IGNORE if target.map.dtype == np.uint8 else IGNORE_16
    return int(target.map[target.map != ignored].astype(np.int64).max(initial=-1))


def _numbers(data: bytes, size: tuple[int, int]) -> NDArray[Any]:
    if not data.startswith(_PNG):  # no other of Pillow's decoders sees what a stranger wrote
        raise ValueError("not a PNG")
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != size or image.mode not in _MODES:  # from the header, before a pixel is made
                raise ValueError(f"a PNG of {image.size} pixels of mode {image.mode}")
            return np.asarray(image).astype(_MODES[image.mode])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a whole PNG ({error})") from error


def _npy(data: bytes, shape: tuple[int, int]) -> NDArray[np.float32]:
    file = io.BytesIO(data)
    try:
        np.lib.format.read_magic(file)
        said, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # ast and tokenize raise what they like over a broken header
        raise ValueError(f"not an npy ({error})") from error
    if (said, by_columns, dtype) != (shape, False, np.dtype(np.float32)) or len(data) != file.tell() + 4 * math.prod(
        shape
    ):
        raise ValueError(f"not an npy of {list(shape)} float32")
    return np.frombuffer(data, np.float32, offset=file.tell()).reshape(shape).copy()  # torch takes no read-only array


def _boxes(data: bytes) -> BoxList:
    rows = from_json(data)
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 6 for row in rows):
        raise ValueError("not a list of boxes")
    try:
        cells = np.array(rows, np.float64).reshape(-1, 6)
    except TypeError as error:
        raise ValueError("not a list of boxes") from error
    if not np.isfinite(cells).all():
        raise ValueError("not a list of boxes")
    return BoxList(cells[:, :4], cells[:, 4].astype(np.int64), cells[:, 5] != 0)

"""Dense targets of one image: from the bytes that a source has to arrays; `store.target_codec` makes bytes of them.

In:  a PNG, an npy or a JSON.   Out: a NativeTarget over the upright image, or BadTarget with the reason; what a
backbone sees of it is made by `target_square`. Called by `extraction`, from threads. What is defined for which file is
one table in docs/dense-targets.md.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loffta.files.documents import from_json
from loffta.images.decode import MAX_PIXELS, BadImage, one_line, open_image
from loffta.images.palette import RGB
from loffta.images.strange import describe_strange
from loffta.targets import IGNORE, IGNORE_16, NO_INSTANCE, BoxList, NativeTarget, TargetKind
from loffta.words import brief

MILLIMETRES = 0.001  # metres in one step of whole numbers
_PNG = b"\x89PNG\r\n\x1a\n"
_NPY = b"\x93NUMPY"
_GREY, _INDEXED = 0, 3  # PNG's types of colour that hold one number a pixel
_STEP = {2: 85, 4: 17}  # by which Pillow stretches grey of so many bits to 0..255
_TIFF = (b"II*\0", b"MM\0*")
_DEPTH = "depth is metres in an npy or a TIFF of floats, or steps in a PNG or TIFF of 16 bits"
_COLOUR = "is it coloured by class? --palette FILE says which colour is which"


class BadTarget(Exception):
    """One target that cannot be used; the text is its reason in one line, and the run goes on."""


def decode_target(
    kind: TargetKind,
    data: bytes,
    *,
    classes: Sequence[str] = (),
    palette: Mapping[RGB, int] | None = None,
    size: tuple[int, int] | None = None,
    metres: float = MILLIMETRES,
) -> NativeTarget:
    """One target as its source has it.

    Args:
        classes: of masks and boxes; empty where nobody knows them: then no number is refused.
        palette: class by colour; with it every mask is looked at as colours.
        size: (height, width) of the upright image, which maps must have; boxes cannot do without.
        metres: one step of depths that are whole numbers.
    Raises:
        BadTarget: not such a file, another size than the image's, a class that is not in the list.
    """
    try:
        if kind == "boxes":
            assert size is not None, "boxes are clipped to their image"
            return NativeTarget("boxes", *size, boxes=_boxes(data, classes, *size))
        if kind == "depth":
            found: NDArray[Any] = _depth(data, metres)
        elif kind == "instances":
            found = _instances(_numbers(data, "instances are a number a pixel in a PNG of one channel"))
        else:
            values = _numbers(data, f"a mask is a class number a pixel in a PNG of one channel; {_COLOUR}", palette)
            found = _mask(values, len(classes))
    except BadImage as error:
        raise BadTarget(str(error)) from error
    height, width = found.shape
    if size is not None and size != (height, width):
        raise BadTarget(_other_size(height, width, *size))
    return NativeTarget(kind, height, width, map=found)


def _numbers(data: bytes, expected: str, palette: Mapping[RGB, int] | None = None) -> NDArray[Any]:
    """[H, W] uint8 or uint16 as the PNG holds them: indices of its own palette, grey without stretching."""
    if not data.startswith(_PNG):
        raise BadTarget(f"not a PNG but {_format(data)}: {expected}")
    image = open_image(data).decode().image
    if data[12:16] != b"IHDR":
        raise BadTarget("a PNG that does not begin with its header")
    bits, colour = data[24], data[25]
    if palette is not None:
        if bits == 16:
            raise BadTarget("a PNG of 16 bits, but with --palette a mask is read as colours of 8 bits")
        return _by_colour(np.asarray(image.convert("RGB")), palette)
    if colour not in (_GREY, _INDEXED):
        raise BadTarget(f"a PNG of mode {image.mode}, with several channels: {expected}")
    values = np.asarray(image)
    if bits == 16:
        return values.astype(np.uint16)
    values = values.astype(np.uint8)  # of one bit they are true and false
    return values // _STEP[bits] if colour == _GREY and bits in _STEP else values


def _format(data: bytes) -> str:
    """What a file is instead; BadImage where it is nothing that can be opened."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return str(image.format)
    except Exception:  # decoders of strange files raise nearly anything
        return describe_strange(data) if data else "an empty file"


def _by_colour(pixels: NDArray[np.uint8], palette: Mapping[RGB, int]) -> NDArray[np.uint16]:
    """Classes of [H, W, 3]; IGNORE and IGNORE_16 as the palette has them."""
    known = np.array(sorted((r << 16 | g << 8 | b, number) for (r, g, b), number in palette.items()), np.int64)
    wanted = pixels.astype(np.int64) @ [1 << 16, 1 << 8, 1]
    place = np.searchsorted(known[:, 0], wanted).clip(max=len(known) - 1)
    absent = known[place, 0] != wanted
    if absent.any():
        rgb = pixels[absent][0].tolist()
        raise BadTarget(f"the colour {','.join(map(str, rgb))} of {int(absent.sum())} pixels is not in the palette")
    found: NDArray[np.uint16] = known[place, 1].astype(np.uint16)
    return found


def _mask(values: NDArray[Any], n_classes: int) -> NDArray[Any]:
    """uint8 with IGNORE or, of more than 255 classes, uint16 with IGNORE_16.

    What is ignored is 255 in a file of 8 bits and 65535 in one of 16, and 255 there, too, while no class is called so.
    """
    void = (values == IGNORE_16) | ((values == IGNORE) if values.dtype == np.uint8 else False)
    wide = n_classes > IGNORE or (n_classes == 0 and bool(((values > IGNORE) & ~void).any()))
    if not wide:
        void |= values == IGNORE
    ignore = IGNORE_16 if wide else IGNORE
    last = n_classes - 1 if n_classes else IGNORE_16 - 1
    absent = values[(values > last) & ~void]
    if absent.size:
        raise BadTarget(
            f"{absent.size} pixels of class {int(absent.min())}, but there are {n_classes} classes, 0 to {last}, "
            f"and {ignore} for pixels to ignore"
        )
    found = values.astype(np.uint16 if wide else np.uint8)
    found[void] = ignore
    return found


def _instances(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Objects as 1, 2, ... n in the order of their numbers; what is ignored is 255 in a file of 8 bits.

    A file may skip numbers (of objects wholly hidden, say). A training counts the objects of an image and gives each a
    place among those of all images: a number above the count would be an object of the next image.
    """
    found = values.astype(np.uint16)
    if values.dtype == np.uint8:
        found[values == IGNORE] = IGNORE_16
    objects = np.bincount(found.ravel(), minlength=IGNORE_16 + 1) > 0
    objects[[NO_INSTANCE, IGNORE_16]] = False
    numbers = np.cumsum(objects, dtype=np.uint16)
    numbers[[NO_INSTANCE, IGNORE_16]] = NO_INSTANCE, IGNORE_16
    return numbers[found]


def _depth(data: bytes, metres: float) -> NDArray[np.float32]:
    """Metres as float32; 0 where the depth is not known: not finite, zero or negative."""
    if data.startswith(_NPY):
        values = _npy(data)
    elif data.startswith(_TIFF):
        values = np.asarray(open_image(data).decode().image)
    else:
        values = _numbers(data, _DEPTH)
    if values.ndim != 2 or values.dtype.itemsize == 1:
        raise BadTarget(f"a depth of 8 bits, or of several channels: {_DEPTH}")
    with np.errstate(over="ignore"):  # what is beyond float32 is infinite, so unknown
        found = values.astype(np.float32) if values.dtype.kind == "f" else (values * metres).astype(np.float32)
    found[~(np.isfinite(found) & (found > 0))] = 0
    return found


def _npy(data: bytes) -> NDArray[Any]:
    """[H, W] of numbers; the header is believed only where the file is as long as it says."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except Exception as error:  # ast and tokenize raise what they like over a broken header
        raise BadTarget(one_line(f"not an npy file ({type(error).__name__}: {error})")) from error
    if dtype.kind not in "fiu" or len(shape) != 2 or 0 in shape:
        raise BadTarget(one_line(f"an npy of shape {list(shape)} and {dtype}: depth is [height, width] of numbers"))
    if math.prod(shape) > MAX_PIXELS or file.tell() + math.prod(shape) * dtype.itemsize != len(data):
        raise BadTarget(f"an npy of shape {list(shape)} and {dtype} in {len(data)} bytes: it is cut off, or too large")
    values = np.frombuffer(data, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if by_columns else "C")


def parse_boxes(data: bytes | str) -> list[tuple[list[float], str | int, bool]]:
    """(left, top, right, bottom), class as it is written and crowd of every box of a JSON.

    Raises:
        BadTarget: it is no list of [left, top, right, bottom, class, crowd or nothing].
    """
    try:
        rows = from_json(data)
    except ValueError as error:
        raise BadTarget(one_line(f"boxes are JSON: {error}")) from error
    if not isinstance(rows, list):
        raise BadTarget("boxes are a list of [left, top, right, bottom, class, crowd or nothing]")
    return [_box(row, f"box {i}") for i, row in enumerate(rows, start=1)]


def _boxes(data: bytes, classes: Sequence[str], height: int, width: int) -> BoxList:
    """Clipped to the image; a box without area in it is left out."""
    kept: list[tuple[list[float], int, bool]] = []
    numbers = {name: i for i, name in enumerate(classes)}
    for i, (corners, name, crowd) in enumerate(parse_boxes(data), start=1):
        number = numbers.get(name, -1) if isinstance(name, str) else name
        if not 0 <= number < (len(classes) or IGNORE_16):
            raise BadTarget(one_line(f"box {i} is of class {brief(name)}, which is none of {len(classes)}"))
        left, top = max(corners[0], 0.0), max(corners[1], 0.0)
        right, bottom = min(corners[2], float(width)), min(corners[3], float(height))
        if left < right and top < bottom:
            kept.append(([left, top, right, bottom], number, crowd))
    found, of_class, crowds = zip(*kept, strict=True) if kept else ((), (), ())
    return BoxList(np.array(found, np.float64).reshape(-1, 4), np.array(of_class, np.int64), np.array(crowds, np.bool_))


def _box(row: Any, place: str) -> tuple[list[float], str | int, bool]:
    """(corners, class as it is written, crowd) of one entry."""
    if not isinstance(row, list) or len(row) not in (5, 6):
        raise BadTarget(one_line(f"{place} is {brief(row)}, not [left, top, right, bottom, class, crowd or nothing]"))
    *corners, name = row[:5]
    if not all(type(side) in (int, float) and abs(side) < 1e9 for side in corners):
        raise BadTarget(one_line(f"{place} has the corners {brief(corners)}, which are no pixels"))
    if type(name) not in (int, str):
        raise BadTarget(one_line(f"{place} is of class {brief(name)}: a class is a name, or a number from 0"))
    if len(row) == 6 and row[5] not in (0, 1):
        raise BadTarget(one_line(f"{place} has the mark {brief(row[5])}: 1 or true is a crowd, 0 or false none"))
    left, top, right, bottom = map(float, corners)
    if right < left or bottom < top:
        raise BadTarget(f"{place} ends before it begins ({brief(corners)}): left, top, width, height are not corners")
    return [left, top, right, bottom], name, len(row) == 6 and bool(row[5])


def _other_size(height: int, width: int, of_image: int, image_width: int) -> str:
    what = f"it has {width} x {height} pixels, the image {image_width} x {of_image}"
    if (height, width) == (image_width, of_image):
        return f"{what}: was it made before EXIF turned the image? Targets lie over the image as it is shown"
    return f"{what}: a target has its image's size"

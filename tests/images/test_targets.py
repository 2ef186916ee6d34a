"""Bytes of dense targets to arrays and back: what each file means, and what is refused in which words."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from loffta.images.targets import BadTarget, decode_target
from loffta.store.target_codec import count_objects, encode_target, read_target
from loffta.targets import IGNORE, IGNORE_16, BoxList, NativeTarget
from tests.images.encoded import chunk, encode

CLASSES = ("sky", "tree", "road")
MASK = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)


def npy(values, **options):
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def small_grey(rows, bits):
    """A PNG of grey with less than 8 bits, as no library writes it."""
    packed = b"".join(
        b"\0" + int("".join(f"{v:0{bits}b}" for v in row).ljust(8, "0"), 2).to_bytes(1, "big") for row in rows
    )
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


def palette_png(values, colours):
    indexed = Image.new("P", values.shape[::-1])
    indexed.frombytes(values.tobytes())
    indexed.putpalette(colours)
    return encode(indexed)


def reason(kind, data, **options):
    with pytest.raises(BadTarget) as caught:
        decode_target(kind, data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mask(data, classes=CLASSES, **options):
    found = decode_target("mask", data, classes=classes, **options)
    assert (found.kind, found.height, found.width, found.boxes) == ("mask", *found.map.shape, None)
    return found.map


def test_masks_of_grey_and_of_a_palette_hold_numbers():
    colours = [0, 0, 0, 200, 0, 0, 0, 200, 0]
    for data in (encode(Image.fromarray(MASK)), palette_png(MASK, colours + [9, 9, 9] * 253)):
        found = mask(data)
        assert found.dtype == np.uint8
        assert found.tolist() == MASK.tolist()
    wide = encode(Image.fromarray(np.array([[0, 2, 65535, 255]], np.uint16)))
    assert mask(wide).tolist() == [[0, 2, IGNORE, IGNORE]]
    assert mask(wide).dtype == np.uint8


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_stretched(bits):
    rows = [[0, 1, 1], [1, 0, 0]] if bits == 1 else [[0, 1], [2**bits - 1, 0]]
    assert mask(small_grey(rows, bits), classes=()).tolist() == rows
    indexed = Image.new("P", (2, 1))
    indexed.putdata([1, 2])
    indexed.putpalette([7, 7, 7, 7, 7, 7, 0, 0, 0])
    assert mask(encode(indexed, bits=2)).tolist() == [[1, 2]]


def test_many_classes_take_16_bits():
    names = [str(i) for i in range(300)]
    data = encode(Image.fromarray(np.array([[255, 299, 65535]], np.uint16)))
    assert mask(data, names).tolist() == [[255, 299, IGNORE_16]]
    assert mask(data, names).dtype == np.uint16
    assert mask(data, ()).tolist() == [[255, 299, IGNORE_16]]  # nobody knows the classes: by the values
    small = encode(Image.fromarray(np.array([[3, 255]], np.uint8)))
    assert mask(small, names).tolist() == [[3, IGNORE_16]]  # 255 in 8 bits is no class
    assert mask(small, ()).dtype == np.uint8


@pytest.mark.parametrize("values", [np.full((2, 3), 255, np.uint8), np.full((2, 3), 65535, np.uint16)])
def test_a_mask_of_nothing_but_ignored_pixels_is_a_mask(values):
    assert (mask(encode(Image.fromarray(values))) == IGNORE).all()


def test_a_class_that_is_not_in_the_list():
    data = encode(Image.fromarray(np.array([[0, 3, 3, 7, 255]], np.uint8)))
    expected = "3 pixels of class 3, but there are 3 classes, 0 to 2, and 255 for pixels to ignore"
    assert reason("mask", data, classes=CLASSES) == expected
    assert mask(data, classes=()).tolist() == [[0, 3, 3, 7, 255]]
    wide = encode(Image.fromarray(np.array([[256, 300]], np.uint16)))
    assert "1 pixels of class 300, but there are 300 classes, 0 to 299, and 65535" in reason(
        "mask", wide, classes=[""] * 300
    )


def test_painted_masks_are_refused_or_mapped():
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0], pixels[1, 2] = (0, 0, 128), (10, 20, 30)
    for mode in ("RGB", "RGBA"):
        data = encode(Image.fromarray(pixels).convert(mode))
        assert reason("mask", data) == (
            f"a PNG of mode {mode}, with several channels: a mask is a class number a pixel in a PNG of one channel; "
            "is it coloured by class? --palette FILE says which colour is which"
        )
        palette = {(0, 0, 0): 2, (0, 0, 128): 0, (10, 20, 30): IGNORE_16}
        assert mask(data, palette=palette).tolist() == [[0, 0, 0], [2, 2, 255]]
    assert reason("mask", data, palette={(0, 0, 0): 0, (0, 0, 128): 1}) == (
        "the colour 10,20,30 of 1 pixels is not in the palette"
    )
    colours = [0, 0, 128, 10, 20, 30] + [0] * 762
    indexed = palette_png(np.array([[0, 1]], np.uint8), colours)
    assert mask(indexed, palette=palette).tolist() == [[0, 255]]  # with a palette, colours are what counts
    wide = encode(Image.fromarray(np.zeros((1, 1), np.uint16)))
    assert "a PNG of 16 bits" in reason("mask", wide, palette=palette)
    assert reason("mask", encode(Image.fromarray(pixels).convert("LA"))).startswith("a PNG of mode LA, with several")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not a PNG but an empty file: a mask is"),
        (encode(Image.fromarray(MASK), "JPEG"), "not a PNG but JPEG: a mask is"),
        (npy(MASK), "not a PNG but not an image of a known format (a NumPy array): a mask is"),
        (encode(Image.fromarray(MASK))[:40], ""),
        (b"\x89PNG\r\n\x1a\nrubbish", ""),
    ],
)
def test_files_that_are_no_masks(data, expected):
    assert reason("mask", data).startswith(expected)


def test_a_target_has_its_images_size():
    data = encode(Image.fromarray(MASK))
    assert mask(data, size=(2, 3)).shape == (2, 3)
    assert reason("mask", data, size=(4, 6)) == ("it has 3 x 2 pixels, the image 6 x 4: a target has its image's size")
    assert reason("mask", data, size=(3, 2)) == (
        "it has 3 x 2 pixels, the image 2 x 3: was it made before EXIF turned the image? "
        "Targets lie over the image as it is shown"
    )
    assert "it has 3 x 2 pixels" in reason("depth", npy(MASK.astype(np.float32)), size=(4, 6))


def test_a_mask_that_says_how_to_turn_it_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert mask(encode(Image.fromarray(MASK), exif=exif)).tolist() == np.rot90(MASK, -1).tolist()


def test_instances():
    values = np.array([[0, 1, 2, 255]], np.uint8)
    found = decode_target("instances", encode(Image.fromarray(values)))
    assert (found.map.tolist(), found.map.dtype) == ([[0, 1, 2, IGNORE_16]], np.uint16)
    wide = np.array([[0, 255, 300, 65535]], np.uint16)
    assert decode_target("instances", encode(Image.fromarray(wide))).map.tolist() == [[0, 1, 2, 65535]]
    many = np.arange(65536, dtype=np.uint16)[None]
    assert np.array_equal(decode_target("instances", encode(Image.fromarray(many))).map, many)
    none = decode_target("instances", encode(Image.fromarray(np.zeros((2, 2), np.uint8))))
    assert none.map.tolist() == [[0, 0], [0, 0]]
    colour = encode(Image.fromarray(np.zeros((2, 2, 3), np.uint8)))
    assert reason("instances", colour) == (
        "a PNG of mode RGB, with several channels: instances are a number a pixel in a PNG of one channel"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_instances_are_numbered_without_gaps(dtype):
    values = np.random.default_rng(0).choice(np.array([0, 1, 2, 7, 200, 254], dtype), size=(9, 7))
    values[0, :2] = np.iinfo(dtype).max, 7
    found = decode_target("instances", encode(Image.fromarray(values)))
    number = {0: 0, np.iinfo(dtype).max: IGNORE_16}
    for value in sorted(set(values.ravel().tolist()) - number.keys()):
        number[value] = len(number) - 1
    assert found.map.tolist() == [[number[value] for value in row] for row in values.tolist()]
    assert count_objects(found) == found.map[found.map != IGNORE_16].max() == len(number) - 2


def depth(data, **options):
    found = decode_target("depth", data, **options)
    assert found.map.dtype == np.float32
    return found.map.tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_depth_in_metres_and_what_is_not_known(dtype):
    values = np.array([[1.5, 0, -2, 3], [np.nan, np.inf, -np.inf, 0.25]]).astype(dtype)
    expected = [[1.5, 0, 0, 3], [0, 0, 0, 0.25]]
    assert depth(npy(values)) == expected
    assert depth(npy(np.asfortranarray(values))) == expected
    assert depth(npy(np.array([[1e300]]))) == [[0]]


def test_depth_in_a_tiff():
    values = np.array([[1.5, 0, np.nan]], np.float32)
    assert depth(encode(Image.fromarray(values), "TIFF")) == [[1.5, 0, 0]]
    assert depth(encode(Image.fromarray(np.array([[0, 250]], np.uint16)), "TIFF")) == [[0, 0.25]]
    for other in (MASK, np.zeros((2, 2, 3), np.uint8)):
        assert reason("depth", encode(Image.fromarray(other), "TIFF")).startswith("a depth of 8 bits, or of several")


def test_depth_in_steps():
    values = np.array([[0, 1, 1500, 65535]], np.uint16)
    expected = [float(np.float32(v)) for v in (0, 0.001, 1.5, 65.535)]
    assert depth(encode(Image.fromarray(values))) == [expected]
    assert depth(npy(values)) == [expected]
    assert depth(npy(values), metres=1 / 256) == [[0, 1 / 256, 1500 / 256, 65535 / 256]]
    eight = encode(Image.fromarray(MASK))
    assert reason("depth", eight).startswith("a depth of 8 bits, or of several channels: depth is metres in an")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (npy(np.zeros((2, 2, 1))), "an npy of shape [2, 2, 1] and float64: depth is [height, width] of numbers"),
        (npy(np.zeros((0, 2))), "an npy of shape [0, 2] and float64: depth is"),
        (npy(np.array([["a"]])), "an npy of shape [1, 1] and <U1: depth is"),
        (npy(np.array([[{}]], object), allow_pickle=True), "an npy of shape [1, 1] and object: depth is"),
        (npy(np.zeros((2, 2)))[:-1], "an npy of shape [2, 2] and float64 in 159 bytes: it is cut off, or too large"),
        (b"\x93NUMPY\x01\x00\x05\x00x", "not an npy file ("),
        (b"\x93NUMPY\x01\x00\x0a\x00{'a':'\x1b['", "not an npy file ("),
        (
            encode(Image.fromarray(MASK), "JPEG"),
            "not a PNG but JPEG: depth is metres in an npy or a TIFF of floats, or steps",
        ),
    ],
)
def test_files_that_are_no_depth(data, expected):
    text = reason("depth", data)
    assert text.startswith(expected)
    assert text.isprintable()


def test_an_npy_takes_no_memory_for_what_it_only_claims():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000, 100000000)}"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    assert "cut off, or too large" in reason("depth", data)


def boxes(rows, size=(10, 20), classes=CLASSES):
    found = decode_target("boxes", json.dumps(rows).encode(), classes=classes, size=size)
    assert (found.kind, found.height, found.width, found.map) == ("boxes", *size, None)
    return [(*c, n, k) for c, n, k in zip(*(a.tolist() for a in vars(found.boxes).values()), strict=True)]


def test_boxes():
    rows = [[1, 2, 3.5, 4, "road"], [0, 0, 20, 10, 1, 1], [5, 5, 6, 6, "sky", False]]
    assert boxes([]) == []
    assert boxes(rows) == [(1, 2, 3.5, 4, 2, False), (0, 0, 20, 10, 1, True), (5, 5, 6, 6, 0, False)]
    assert boxes([[0, 0, 1, 1, 7]], classes=()) == [(0, 0, 1, 1, 7, False)]  # nobody knows the classes


def test_boxes_are_clipped_and_those_without_area_left_out():
    assert boxes([[-5, -5, 1, 1, 0], [19, 9, 30, 30, 0]]) == [(0, 0, 1, 1, 0, False), (19, 9, 20, 10, 0, False)]
    assert boxes([[3, 3, 3, 5, 0], [3, 3, 5, 3, 0], [20, 0, 25, 5, 0], [-9, 0, 0, 5, 0], [0, 10, 9, 12, 0]]) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "boxes are JSON: Expecting value"),
        ("[" * 40 + "]" * 40, "boxes are JSON: the JSON is nested more than 32 deep"),
        ("{}", "boxes are a list of [left, top, right, bottom, class, crowd or nothing]"),
        ("[[1, 2, 3, 4]]", "box 1 is [1, 2, 3, 4], not [left, top, right, bottom, class, crowd or nothing]"),
        ("[[0, 0, 1, 1, 0], 7]", "box 2 is 7, not ["),
        ('[[0, 0, "1", 1, 0]]', "box 1 has the corners [0, 0, '1', 1], which are no pixels"),
        ("[[0, 0, NaN, 1, 0]]", "box 1 has the corners [0, 0, nan, 1], which are no pixels"),
        ("[[0, 0, true, 1, 0]]", "box 1 has the corners [0, 0, True, 1], which are no pixels"),
        ("[[5, 5, 2, 9, 0]]", "box 1 ends before it begins ([5, 5, 2, 9]): left, top, width, height are not corners"),
        ('[[0, 0, 1, 1, "sea\\u001b"]]', "box 1 is of class 'sea\\x1b', which is none of 3"),
        ("[[0, 0, 1, 1, 3]]", "box 1 is of class 3, which is none of 3"),
        ("[[0, 0, 1, 1, -1]]", "box 1 is of class -1, which is none of 3"),
        ("[[0, 0, 1, 1, 1.0]]", "box 1 is of class 1.0: a class is a name, or a number from 0"),
        ("[[0, 0, 1, 1, 0, 2]]", "box 1 has the mark 2: 1 or true is a crowd, 0 or false none"),
    ],
)
def test_boxes_that_are_none(text, expected):
    assert reason("boxes", text.encode(), classes=CLASSES, size=(10, 20)).startswith(expected)


RNG = np.random.default_rng(0)
WHOLE = [
    NativeTarget("mask", 5, 7, RNG.choice([0, 1, 2, 255], (5, 7)).astype(np.uint8)),
    NativeTarget("mask", 5, 7, RNG.integers(0, 65536, (5, 7)).astype(np.uint16)),
    NativeTarget("instances", 5, 7, RNG.choice([0, 1, 254, 65535], (5, 7)).astype(np.uint16)),
    NativeTarget("instances", 5, 7, RNG.choice([0, 255, 300, 65535], (5, 7)).astype(np.uint16)),
    NativeTarget("depth", 5, 7, RNG.random((5, 7), np.float32)),
    NativeTarget(
        "boxes",
        5,
        7,
        boxes=BoxList(np.array([[0.1, 0.2, 1 / 3, 5], [0, 0, 7, 5]]), np.array([2, 0]), np.array([True, False])),
    ),
    NativeTarget("boxes", 5, 7, boxes=BoxList(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))),
]


@pytest.mark.parametrize("native", WHOLE, ids=lambda native: native.kind)
def test_what_is_encoded_comes_back(native):
    n_classes = 65535 if native.map is not None and native.map.dtype == np.uint16 else 3
    data = encode_target(native)
    if native.kind == "instances":  # the numbers of a source are made anew, these are not
        found = read_target("instances", 5, 7, data)
    else:
        found = decode_target(native.kind, data, classes=["x"] * n_classes, size=(5, 7))
    assert (found.kind, found.height, found.width) == (native.kind, 5, 7)
    for one, other in zip(_arrays(found), _arrays(native), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def test_few_instances_take_8_bits():
    assert [encode_target(native)[24] for native in WHOLE[:4]] == [8, 16, 8, 16]  # bits in PNG's header


def _arrays(native):
    return [native.map] if native.boxes is None else list(vars(native.boxes).values())

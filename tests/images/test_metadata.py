"""Pixels decide: metadata that are huge, broken or lie never make an image bad, in any container."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from loffta.images.decode import BadImage
from loffta.images.metadata import without_metadata
from loffta.images.rgb import to_rgb
from loffta.look import Look
from tests.images.encoded import chunk, encode, tiff, with_chunks
from tests.imagesets import decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow; `decoding_threads` does the same
RGB = np.random.default_rng(0).integers(0, 256, size=(5, 7, 3), dtype=np.uint8)
PLAIN = encode(Image.fromarray(RGB))
BIG = zlib.compress(b"x" * 3_000_000)  # over Pillow's limit of 1 MiB
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHxx", 0x0112, 3, 1, 6)  # 2 entries, of which one is there


def shown(data):
    return np.asarray(to_rgb(decode(data), Look()))


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


CHUNKS = {
    "icc": chunk(b"iCCP", b"prof\0\0" + BIG),
    "icc-method": chunk(b"iCCP", b"prof\0\x07" + BIG),
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BIG),
    "ztxt": chunk(b"zTXt", b"prompt\0\0" + BIG),
    "many": b"".join(chunk(b"zTXt", b"p%d\0\0" % i + zlib.compress(bytes(1 << 20))) for i in range(65)),
    "crc": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "short-gamma": chunk(b"gAMA", b"\0"),
    "short-chromaticity": chunk(b"cHRM", b"\0"),
    "short-resolution": chunk(b"pHYs", b"\0"),
    "short-animation": chunk(b"acTL", b"\0"),
    "frames-in-disorder": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", struct.pack(">I", 7) + bytes(22)),
    "text-in-no-alphabet": chunk(b"iTXt", b"a\0\0\0\xff\0\xff\0\xff"),
    "exif": chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f"),
    "raw-exif": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 8\nno hex digits\n"),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", CHUNKS)
def test_png(name, behind):
    assert np.array_equal(shown(with_chunks(PLAIN, [CHUNKS[name]], behind)), RGB)


@pytest.mark.parametrize("place", ["eXIf", "iTXt"])
def test_a_png_that_is_turned_is_turned_though_a_profile_is_too_large(place):
    turned = chunk(b"eXIf", exif_of(6).removeprefix(b"Exif\0\0"))
    if place == "iTXt":
        text = b'<x tiff:Orientation="6"/>' + b" " * 3_000_000
        turned = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text))
    assert np.array_equal(shown(with_chunks(PLAIN, [CHUNKS["icc"], turned])), np.rot90(RGB, -1))


def test_transparency_and_palette_are_no_metadata():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    data = with_chunks(encode(image, transparency=0), [CHUNKS["ztxt"]])
    assert shown(data).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_broken_pixels_stay_broken_and_keep_their_reason():
    cut = PLAIN[:-40]
    with pytest.raises(BadImage) as plain:
        decode(cut)
    with pytest.raises(BadImage) as both:
        decode(with_chunks(cut, [CHUNKS["short-gamma"]]))
    assert "truncated" in str(plain.value) or "broken" in str(plain.value)
    assert str(both.value) == str(plain.value)  # once the metadata are away


@pytest.mark.parametrize(
    "exif", [EXIF, b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0?!", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "MPO"])
def test_malformed_exif(kind, exif):
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "MPO": {"save_all": True}}.get(kind, {})
    image = Image.fromarray(np.kron(RGB, np.ones((4, 4, 1), np.uint8)))
    plain = np.asarray(Image.open(io.BytesIO(encode(image, kind, **options))).convert("RGB"))
    valid = Image.Exif()
    valid[0x010E] = "d" * 80
    data = encode(image, kind, exif=valid.tobytes(), **options)
    assert data.count(b"d" * 80) == 1
    at = data.index(b"II*\0" if b"II*\0" in data else b"MM\0*")
    body = exif.removeprefix(b"Exif\0\0")
    broken = data[:at] + body + data[at + len(body) :]  # of the same length: no box or chunk has to be told
    if kind == "PNG":
        start = data.index(b"eXIf")
        (length,) = struct.unpack(">I", data[start - 4 : start])
        broken = data[: start - 4] + chunk(b"eXIf", broken[start + 4 : start + 4 + length]) + data[start + 8 + length :]
    found = shown(broken)
    assert sorted(found.shape[:2]) == sorted(plain.shape[:2])
    assert np.array_equal(found, plain) or np.array_equal(found, np.rot90(plain, -1))  # EXIF says 6 where it is legible


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_malformed_tags_of_a_tiff(order, packed):
    layout = [(258, 3, [8] * 3), (262, 3, [2]), (277, 3, [3]), (274, 3, [3])]
    wild = [
        (34665, 4, [2**31]),  # EXIF's directory, behind the end of the file
        (34853, 4, [3]),  # GPS's, in the middle of the pixels
        (700, 2, list(b"<x:xmpmeta")),
        (33723, 4, [7, 8, 9]),
        (34675, 2, list(bytes(50))),
        (305, 3, [1, 2, 3, 4, 5]),
    ]
    data = tiff(RGB, [*layout, *wild], order, packed=packed)
    assert np.array_equal(shown(data), np.rot90(RGB, 2))
    plain = without_metadata(data)
    assert np.array_equal(shown(plain), np.rot90(RGB, 2))
    with Image.open(io.BytesIO(plain)) as image:
        assert not {34665, 34853, 700, 33723, 34675, 305} & set(image.tag_v2)
        assert image.n_frames == 1


def test_other_containers_have_nothing_to_leave_out():
    for data in (b"", b"GIF89a", b"II*\0", b"II*\0\xff\xff\xff\x7f", b"\xff\xd8\xff", b"\0\0\0\x0cftypavif\0\0"):
        assert without_metadata(data) in (None, data)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "AVIF"])
def test_any_damage_leaves_bytes_or_nothing(kind):
    rng = np.random.default_rng(1)
    good = encode(Image.fromarray(RGB), kind)
    for _ in range(300):
        data = bytearray(good[: rng.integers(0, len(good) + 1)])
        for place in rng.integers(0, max(1, len(data)), size=4):
            data[place : place + 1] = bytes([rng.integers(0, 256)])
        found = without_metadata(bytes(data))
        assert found is None or len(found) <= len(data) + 64

"""Every odd kind of image, against pixels that are known before they are encoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from loffta.images.decode import MAX_PIXELS, BadImage, one_line
from loffta.images.rgb import to_rgb
from loffta.look import OLD
from tests.imagesets import decode

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, size=(5, 7, 3), dtype=np.uint8)


def pixels_of(data):
    """[H, W, 3] as decoded."""
    return np.asarray(to_rgb(decode(data), OLD))


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_header(width, height, bits=8, colour=2, data=b""):
    """A PNG of which only the header has to be right."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(data), b"IEND"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def assert_pixels(data, expected):
    pixels = pixels_of(data)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb(kind):
    assert_pixels(encode(Image.fromarray(RGB), kind), RGB)


def test_webp_and_gif():
    assert_pixels(encode(Image.fromarray(RGB), "WEBP", lossless=True), RGB)
    few = RGB // 128 * 255
    assert_pixels(encode(Image.fromarray(few).quantize(8), "GIF"), few)


def test_jpeg_is_what_pil_gives():
    data = encode(Image.fromarray(RGB), "JPEG", quality=95)
    assert_pixels(data, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, np.rot90),
    ],
)
def test_exif_orientation(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_pixels(encode(Image.fromarray(RGB), exif=exif), turn(RGB))


def test_grey():
    assert_pixels(encode(Image.fromarray(RGB[..., 0])), np.repeat(RGB[..., :1], 3, axis=2))


def test_one_bit():
    bits = RGB[..., 0] > 127
    assert_pixels(encode(Image.fromarray(bits)), np.repeat(bits[..., None], 3, axis=2) * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    deep = RNG.integers(0, 65536, size=(4, 6), dtype=np.uint16)
    deep[0, :3] = 0, 256, 65535
    expected = np.repeat((deep // 257).astype(np.uint8)[..., None], 3, axis=2)
    assert expected[0, :3, 0].tolist() == [0, 0, 255]
    assert_pixels(encode(Image.fromarray(deep), kind), expected)


def test_big_endian_16_bit_grey():
    deep = np.array([[0, 65535, 32768]], dtype=">u2")
    buffer = b"P5 3 1 65535\n" + deep.tobytes()
    assert_pixels(buffer, np.array([[[0] * 3, [255] * 3, [127] * 3]], dtype=np.uint8))


def test_16_bit_rgb():
    row = np.array([0, 65535, 32896], dtype=">u2").tobytes()
    assert_pixels(png_header(1, 1, 16, 2, b"\0" + row), np.array([[[0, 255, 128]]], dtype=np.uint8))


def test_palette():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]], dtype=np.uint8)
    assert_pixels(encode(image), expected)


def test_palette_with_a_transparent_colour_is_shown_on_black():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert_pixels(encode(image, transparency=0), np.array([[[0, 0, 0], [40, 50, 60]]], dtype=np.uint8))


def test_cmyk():
    inks = np.zeros((2, 2, 4), dtype=np.uint8)
    inks[0, 1] = 255, 0, 0, 0
    inks[1, 0] = 0, 0, 0, 255
    inks[1, 1] = 0, 128, 255, 0
    image = Image.frombytes("CMYK", (2, 2), inks.tobytes())
    expected = np.array([[[255, 255, 255], [0, 255, 255]], [[0, 0, 0], [255, 127, 0]]], dtype=np.uint8)
    assert_pixels(encode(image, "TIFF"), expected)


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((2, 2, 3), level, np.uint8)) for level in (0, 255)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert_pixels(data, np.zeros((2, 2, 3), np.uint8))


UNKNOWN = "^not an image of a known format$"
NOISE = Image.fromarray(RNG.integers(0, 256, size=(64, 64, 3), dtype=np.uint8))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as `decoding_threads` does
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "^empty file$", id="empty"),
        pytest.param(b"<html>404</html>", r"^not an image of a known format \(a web page\)$", id="html"),
        pytest.param(bytes(1000), UNKNOWN, id="zeros"),
        pytest.param(encode(Image.fromarray(RGB))[:-40], "^(OSError|SyntaxError): .*(truncated|broken)", id="cut-png"),
        pytest.param(encode(NOISE, "JPEG")[:900], "^OSError: .*truncated", id="cut-jpeg"),
        pytest.param(encode(Image.fromarray(RGB))[:20], "^OSError: Truncated", id="cut-header"),
        pytest.param(png_header(60000, 60000), "^DecompressionBombError: Image size .* exceeds limit", id="bomb"),
        pytest.param(png_header(13400, 13300), f"^13400 x 13300 pixels, over the limit of {MAX_PIXELS}$", id="large"),
        pytest.param(png_header(0, 10), UNKNOWN, id="no-width"),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
            "an EPS file is a program, not an image",
            id="postscript",
        ),
    ],
)
def test_what_cannot_be_used_gives_its_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
        pixels_of(data)


def test_the_reason_holds_no_address():
    """The reason is kept in the cache, whose bytes must not differ from run to run."""
    reasons = set()
    for _ in range(2):
        with pytest.raises(BadImage) as caught:
            pixels_of(b"<html>404</html>")
        reasons.add(str(caught.value))
    assert len(reasons) == 1
    assert "0x" not in reasons.pop()


def test_a_reason_is_one_short_harmless_line():
    assert one_line("OSError: broken at 0x7f3a2b1c9d00\n\x1b[31m") == "OSError: broken\ufffd\ufffd[31m"
    assert one_line("a" * 200) == "a" * 200
    assert one_line("a" * 201) == "a" * 197 + "..."


@pytest.mark.parametrize("seed", range(100))
def test_damaged_bytes_are_decoded_or_refused(seed):
    """No damage raises anything else, whatever it hits."""
    rng = np.random.default_rng(seed)
    kind = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")[seed % 6]
    data = bytearray(encode(Image.fromarray(RGB).convert("P" if kind == "GIF" else "RGB"), kind))
    for place in rng.integers(0, min(len(data), 120), size=4):
        data[place] = rng.integers(0, 256)
    try:
        pixels = pixels_of(bytes(data))
    except BadImage:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)

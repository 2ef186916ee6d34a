"""Background, ranges and channels: the table of docs/image-sets.md, against arithmetic on the raw values."""

import numpy as np
import pytest
from PIL import Image

from loffta.images.decode import BadImage, Picture, Samples, _count_pages
from loffta.images.rgb import (
    AMBIGUOUS_16,
    AMBIGUOUS_COLOUR,
    NO_RANGE,
    NO_RANGE_OF_COLOUR,
    NOT_FINITE,
    NOT_UNIT,
    _in_strips,
    is_flat,
    to_rgb,
)
from loffta.look import OLD, Look
from tests.images.encoded import encode, tiff
from tests.imagesets import decode

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, size=(5, 7, 3), dtype=np.uint8)
ALPHA = np.broadcast_to(np.array([0, 255, 128, 51, 255, 0, 255], dtype=np.uint8), (5, 7))


def shown(data, look):
    """[H, W, 3] uint8 as a network gets it."""
    image = to_rgb(decode(data), look)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


def nearest(values, low, high):
    """Each value by itself, in Python's exact integers or doubles."""
    return grey([[min(255, max(0, int((v - low) * 255 / (high - low) + 0.5))) for v in row] for row in values.tolist()])


# -- what is behind transparency


def over(colour, alpha=ALPHA, pixels=RGB):
    """Porter and Duff's `over` on an opaque ground, in doubles."""
    share = alpha[..., None] / 255
    return pixels * share + np.array(colour) * (1 - share)


@pytest.mark.parametrize(
    ("look", "colour"),
    [(Look(), (255,) * 3), (Look("#000000"), (0,) * 3), (Look("#0a50f0"), (10, 80, 240)), (OLD, (0,) * 3)],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_shown_on_the_background(kind, look, colour):
    image = Image.fromarray(np.dstack([RGB, ALPHA]))
    found = shown(encode(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})), look)
    assert np.abs(found - over(colour)).max() <= 1  # PIL's blending rounds
    assert np.array_equal(found[ALPHA == 255], RGB[ALPHA == 255])
    assert (found[ALPHA == 0] == colour).all()


def test_grey_with_alpha():
    la = np.dstack([RGB[..., 0], ALPHA])
    assert np.abs(shown(encode(Image.fromarray(la)), Look()) - over((255,) * 3, pixels=grey(RGB[..., 0]))).max() <= 1


def test_premultiplied_grey_of_a_tiff():
    """ExtraSamples 1: the grey is stored multiplied with alpha."""
    value, alpha = 100, 51  # 100 of 255 on a fifth of cover is stored as 20
    data = tiff(
        np.full((2, 2, 2), [20, alpha], np.uint8), [(258, 3, [8, 8]), (262, 3, [1]), (277, 3, [2]), (338, 3, [1])]
    )
    assert np.abs(shown(data, Look()) - (value * alpha / 255 + 255 * (1 - alpha / 255))).max() <= 1


def test_a_transparent_colour_of_a_palette():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert shown(encode(image, transparency=0), Look("#808080")).tolist() == [[[128] * 3, [40, 50, 60]]]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_grey(bits):
    """PNG's tRNS names one value."""
    dtype, factor = (np.uint8, 1) if bits == 8 else (np.uint16, 257)
    image = Image.fromarray(np.array([[0, 7, 200]], dtype=dtype) * dtype(factor))
    found = shown(encode(image, transparency=7 * factor), Look())
    assert found[0, :, 0].tolist() == [0, 255, 200]


def test_large_images_are_done_in_strips_without_a_seam():
    pixels = RNG.integers(0, 256, size=(700, 900, 4), dtype=np.uint8)
    found = shown(encode(Image.fromarray(pixels), compress_level=0), Look("#206080"))
    assert np.abs(found - over((32, 96, 128), pixels[..., 3], pixels[..., :3])).max() <= 1
    boxes = []
    _in_strips(Image.new("L", (900, 700)), lambda strip: boxes.append(strip.size) or strip.convert("RGB"))
    assert len(boxes) > 2
    assert sum(height for _, height in boxes) == 700


# -- what is black and white

DEEP = RNG.integers(0, 65536, size=(4, 6), dtype=np.uint16)
DEEP[0, :3] = 0, 256, 65535
DARK = DEEP // 17  # 0 to 3855


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_0_to_65535(kind):
    assert np.array_equal(shown(encode(Image.fromarray(DEEP), kind), Look()), nearest(DEEP, 0, 65535))
    assert np.array_equal(shown(encode(Image.fromarray(DEEP), kind), OLD), grey(DEEP // 257))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_that_may_be_12_are_set_aside_until_it_is_said(kind):
    data = encode(Image.fromarray(DARK), kind)
    with pytest.raises(BadImage, match=f"^{AMBIGUOUS_16}$".replace(".", r"\.").replace("?", r"\?")):
        shown(data, Look())
    assert np.array_equal(shown(data, Look(range="0..4095")), nearest(DARK, 0, 4095))
    assert np.array_equal(shown(data, Look(range="0..65535")), nearest(DARK, 0, 65535))
    assert np.array_equal(shown(data, OLD), grey(DARK // 257))
    assert not shown(encode(Image.fromarray(DARK * 0), kind), Look()).any()  # nothing but black is black


def test_a_tiff_of_12_bits_says_so():
    """BitsPerSample 12: two values in three bytes."""
    values = np.array([[0, 4095, 2048, 15]])
    bits = "".join(f"{v:012b}" for v in values[0])
    raw = np.frombuffer(int(bits, 2).to_bytes(6, "big"), np.uint8).reshape(1, 6)
    data = tiff(raw, [(258, 3, [12]), (262, 3, [1]), (277, 3, [1])], width=4)
    assert np.array_equal(shown(data, Look()), nearest(values, 0, 4095))


def test_a_ppm_says_its_largest_value():
    data = b"P5 3 1 4095\n" + np.array([0, 4095, 2048], dtype=">u2").tobytes()
    assert shown(data, Look())[0, :, 0].tolist() == [0, 255, 128]


def test_jpeg_2000_says_its_bits():
    data = encode(Image.fromarray(DARK), "JPEG2000", irreversible=False)
    assert np.array_equal(shown(data, Look()), nearest(DARK, 0, 65535))  # 16 of them: so it is a dark picture


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32])
@pytest.mark.parametrize("packed", [False, True])
def test_whole_numbers_without_a_range(dtype, packed):
    values = np.array([[0, 100, 255], [3000, 30000, np.iinfo(dtype).max]], dtype=dtype)
    tags = [(258, 3, [8 * values.itemsize]), (262, 3, [1]), (277, 3, [1]), (339, 3, [1 if dtype == np.uint32 else 2])]
    data = tiff(values, tags, packed=packed)
    with pytest.raises(BadImage, match="^" + NO_RANGE.replace(".", r"\.")):
        shown(data, Look())
    assert np.array_equal(shown(data, Look(range="0..255")), nearest(values, 0, 255))
    assert np.array_equal(shown(data, Look(range="-1000..5000")), nearest(values, -1000, 5000))
    largest = int(np.iinfo(dtype).max)
    assert shown(data, Look(range=f"0..{largest}"))[1, 2].tolist() == [255] * 3  # unsigned ones, too


def test_floats_are_0_to_1_or_as_it_is_said():
    unit = RNG.random((4, 6)).astype(np.float32)
    unit[0, :2] = 0, 1
    assert np.array_equal(shown(encode(Image.fromarray(unit), "TIFF"), Look()), nearest(unit.astype(float), 0, 1))
    bytes_ = np.arange(256, dtype=np.float32).reshape(16, 16)
    assert np.array_equal(shown(encode(Image.fromarray(bytes_ / np.float32(255)), "TIFF"), Look()), grey(bytes_))
    for wide in (unit * 255, unit - np.float32(0.5)):
        data = encode(Image.fromarray(wide), "TIFF")
        with pytest.raises(BadImage, match="^" + NOT_UNIT.replace(".", r"\.")):
            shown(data, Look())
        assert np.array_equal(shown(data, Look(range="-1..200")), nearest(wide.astype(float), -1, 200))
    assert np.array_equal(shown(encode(Image.fromarray(bytes_), "TIFF"), OLD), grey(bytes_))


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("look", [Look(), Look(range="0..9")])
def test_floats_that_are_no_numbers(strange, look):
    values = np.full((600, 600), 0.5, np.float32)  # of two strips, in the second of which it lies
    values[599, 3] = strange
    with pytest.raises(BadImage, match=f"^{NOT_FINITE}$"):
        shown(encode(Image.fromarray(values), "TIFF"), look)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_white_is_zero(dtype):
    """PhotometricInterpretation 0, as X-rays have it: of 8 bits Pillow turns it round, of more it does not."""
    values = DEEP if dtype == np.uint16 else (DEEP / np.float32(65535)).astype(np.float32)
    bits, sample_format = (16, 1) if dtype == np.uint16 else (32, 3)
    tags = [(258, 3, [bits]), (262, 3, [0]), (277, 3, [1]), (339, 3, [sample_format])]
    expected = 255 - nearest(values.astype(float), 0, 65535 if dtype == np.uint16 else 1)
    assert np.array_equal(shown(tiff(values, tags), Look()), expected)


# -- channels

COLOUR = [(258, 3, [16] * 3), (262, 3, [2]), (277, 3, [3])]


def test_16_bit_colour_keeps_its_upper_bits():
    deep = RNG.integers(0, 65536, size=(4, 6, 3), dtype=np.uint16)
    for look in (Look(), Look(range="0..65535"), OLD):
        assert np.array_equal(shown(tiff(deep, COLOUR), look), deep >> 8)
    with pytest.raises(BadImage, match=f"^{NO_RANGE_OF_COLOUR}$"):
        shown(tiff(deep, COLOUR), Look(range="0..4095"))


def test_16_bit_colour_that_may_be_12_is_set_aside():
    dark = RNG.integers(0, 4096, size=(4, 6, 3), dtype=np.uint16)
    with pytest.raises(BadImage, match=f"^{AMBIGUOUS_COLOUR}$"):
        shown(tiff(dark, COLOUR), Look())
    assert np.array_equal(shown(tiff(dark, COLOUR), Look(range="0..65535")), dark >> 8)
    assert not shown(tiff(dark * 0, COLOUR), Look()).any()


def test_a_fourth_channel_that_is_no_alpha_is_left_out():
    """Near infrared beside red, green and blue: ExtraSamples 0, as GDAL writes it."""
    four = np.dstack([RGB, ALPHA])
    tags = [(258, 3, [8] * 4), (262, 3, [2]), (277, 3, [4]), (338, 3, [0])]
    assert np.array_equal(shown(tiff(four, tags), Look()), RGB)


def test_five_channels_are_set_aside_by_name():
    five = np.dstack([RGB, RGB])[..., :5]
    with pytest.raises(
        BadImage, match=r"\(a TIFF of 5 samples a pixel, 8 bits unsigned: no layout that can be shown\)$"
    ):
        decode(tiff(five, [(258, 3, [8] * 5), (262, 3, [1]), (277, 3, [5])]))


def test_doubles_are_set_aside_by_name():
    with pytest.raises(BadImage, match=r"\(a TIFF of 1 samples a pixel, 64 bits float: no layout that can be shown\)$"):
        decode(tiff(RNG.random((3, 3)), [(258, 3, [64]), (262, 3, [1]), (277, 3, [1]), (339, 3, [3])]))


def test_lab_is_shown_as_srgb():
    """CIE 1976: of L* 50 the luminance is ((50 + 16) / 116) ** 3 = 0.184; sRGB encodes that as 119."""
    found = shown(encode(Image.new("LAB", (3, 3), (128, 128, 128)), "TIFF"), Look())
    assert np.abs(found.astype(int) - 119).max() <= 2


def test_colours_that_cannot_be_converted_are_set_aside():
    class Strange(Image.Image):
        def convert(self, *args, **kwargs):
            raise ValueError("no way to RGB")

    image = Strange()
    image.__dict__.update(Image.new("HSV", (2, 2)).__dict__)
    with pytest.raises(BadImage, match=r"^HSV colours cannot be shown: no way to RGB$"):
        to_rgb(Picture(image, Samples(), 1), Look())


# -- pages and flat pictures


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "MPO", "AVIF"])
def test_the_first_of_several_pages_is_taken_and_the_others_counted(kind):
    pages = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (250, 10, 90, 170)]
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind in ("AVIF", "MPO") else {}
    picture = decode(encode(pages[0], kind, save_all=True, append_images=pages[1:], **options))
    assert picture.pages == 4
    assert np.abs(np.asarray(to_rgb(picture, Look())).astype(int) - 250).max() <= (2 if kind in ("AVIF", "MPO") else 0)
    assert decode(encode(pages[0], "JPEG" if kind == "MPO" else kind)).pages == 1


def test_pages_that_are_broken_do_not_make_the_first_bad():
    pages = [Image.fromarray(RGB[..., 0] // (i + 1)).quantize(8) for i in range(3)]
    data = encode(pages[0], "GIF", save_all=True, append_images=pages[1:])
    picture = decode(data[: len(data) - 20])
    assert np.array_equal(np.asarray(to_rgb(picture, Look())), np.asarray(pages[0].convert("RGB")))


def test_the_layers_of_a_psd_are_no_pages():
    image = Image.new("RGB", (2, 2))
    image.format, image.n_frames = "PSD", 7
    assert _count_pages(b"", image) == 1
    image.format = "AVIF"
    assert _count_pages(b"", image) == 7


def test_flat_is_what_has_one_colour_throughout():
    flat = Image.new("RGB", (300, 200), (7, 8, 9))
    square = np.full((4, 4, 3), (7, 8, 9), np.uint8)
    assert is_flat(flat, square)
    dotted = flat.copy()
    dotted.putpixel((299, 199), (7, 8, 10))
    assert not is_flat(dotted, square)  # too small to be seen in the square
    square = square.copy()
    square[3, 3, 2] = 0
    assert not is_flat(flat, square)

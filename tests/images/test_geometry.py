"""Squares of pixels against PIL, timm's own evaluation transform, and a second writing of the view's draw."""

import hashlib
import math

import numpy as np
import pytest
import timm
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from loffta.images.geometry import PixelGeometry, View, to_square, view_box

RGB = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("px", [3, 7, 16])
def test_squash_equals_pil(px, interpolation):
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    found = to_square(Image.fromarray(RGB), PixelGeometry(px, interpolation=interpolation), "a")
    assert np.array_equal(found, np.asarray(Image.fromarray(RGB).resize((px, px), filters[interpolation])))
    assert found.shape == (px, px, 3)


def test_squash_down_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(to_square(Image.fromarray(stripes), PixelGeometry(8), "a").astype(int) - 127).max() <= 8


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (40, 40), (300, 200), (17, 400), (33, 34)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("px", "crop_pct"), [(32, 0.875), (32, 0.9), (32, 1.0), (31, 0.95)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_crop_equals_timm(shape, interpolation, px, crop_pct, crop_mode):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    transform = create_transform(
        px, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, mean=(0, 0, 0), std=(1, 1, 1)
    )
    expected = (transform(Image.fromarray(image)) * 255).round().byte().permute(1, 2, 0).numpy()
    geometry = PixelGeometry(px, "crop", interpolation, crop_pct, crop_mode)
    assert np.array_equal(to_square(Image.fromarray(image), geometry, "a"), expected)


def test_every_crop_mode_of_timm_has_a_name_here():
    modes = {timm.models.get_pretrained_cfg(name).crop_mode for name in timm.list_pretrained()}
    assert modes == {"center", "squash", "border"}


def draw(view, key, width, height):
    """The view's definition, written once more."""
    seed = int(hashlib.blake2b(f"{view.seed}/{view.index}/{key}".encode(), digest_size=16).hexdigest(), 16)
    rng = np.random.Generator(np.random.PCG64(seed))
    mirrored = rng.random() < 0.5
    for _ in range(10):
        area, log_aspect = rng.uniform(0.25, 1) * width * height, rng.uniform(math.log(0.75), math.log(4 / 3))
        w, h = round((area * math.exp(log_aspect)) ** 0.5), round((area / math.exp(log_aspect)) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return left, top, w, h, mirrored
    return 0, 0, width, height, mirrored


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_view_is_the_crop_that_its_box_names(interpolation):
    resample = Image.Resampling[interpolation.upper()]
    mirrored = 0
    for index in range(20):
        view = View(seed=3, index=index)
        left, top, w, h, flip = draw(view, "some/image.png", 53, 37)
        part = RGB[top : top + h, left : left + w]
        expected = np.asarray(Image.fromarray(part).resize((16, 16), resample))
        found = to_square(
            Image.fromarray(RGB), PixelGeometry(16, interpolation=interpolation, view=view), "some/image.png"
        )
        assert np.array_equal(found, expected[:, ::-1] if flip else expected)
        mirrored += flip
    assert 3 < mirrored < 17


@given(st.integers(0, 2**31), st.integers(0, 99), st.text(max_size=20), st.integers(1, 3000), st.integers(1, 3000))
def test_view_box_lies_inside(seed, index, key, width, height):
    box = view_box(View(seed, index), key, width, height)
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.top < box.bottom <= height
    assert box == view_box(View(seed, index), key, width, height)


def test_views_differ_by_seed_index_and_image():
    boxes = {view_box(View(s, i), k, 640, 480) for s in (0, 1) for i in (0, 1) for k in ("a", "b")}
    assert len(boxes) == 8


def test_areas_are_a_quarter_to_the_whole():
    boxes = [view_box(View(0, i), "a", 640, 480) for i in range(500)]
    areas = np.array([(b.right - b.left) * (b.bottom - b.top) / (640 * 480) for b in boxes])
    assert 0.24 < areas.min() < 0.3
    assert 0.9 < areas.max() <= 1
    assert 0.5 < areas.mean() < 0.65  # uniform: 0.625, less what does not fit


def test_a_strip_that_no_crop_fits_is_shown_whole():
    box = view_box(View(0, 0), "a", 1000, 1)
    assert box[:4] == (0, 0, 1000, 1)


def cubic(x):
    """Keys' kernel with a = -0.5, which Pillow calls bicubic."""
    x = abs(x)
    return (1.5 * x - 2.5) * x * x + 1 if x < 1 else ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


@pytest.mark.parametrize("lying", [False, True])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_the_middle_of_a_long_strip(lying, crop_pct, monkeypatch):
    """One row of 150,000 pixels would be 64 x 9,600,000 when resized whole."""
    side, length = 64, 150_000
    line = (127 + 120 * np.sin(np.arange(length) * 0.7)).round().astype(np.uint8)
    strip = np.repeat(line[:, None, None], 3, axis=2)  # [n, 1, 3]
    scale = math.floor(side / crop_pct)
    top = round((scale * length - side) / 2)
    expected = []
    for row in range(side):  # upwards nothing is averaged: four pixels around the place where the row's middle lies
        middle = (top + row + 0.5) / scale
        near = range(math.floor(middle - 2 + 0.5), math.floor(middle + 2 + 0.5))
        weights = [cubic(j + 0.5 - middle) for j in near]
        expected.append(sum(w * float(line[j]) for w, j in zip(weights, near, strict=True)) / sum(weights))
    expected = np.repeat(np.array(expected)[:, None], side, axis=1)
    image = Image.fromarray(strip.transpose(1, 0, 2) if lying else strip)
    asked = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: asked.append(size) or resize(self, size, *a, **k)
    )
    found = to_square(image, PixelGeometry(side, "crop", "bicubic", crop_pct), "a")
    assert asked == [(side, side)]
    assert np.abs(found[..., 0] - (expected.T if lying else expected)).max() <= 1
    assert (found == found[..., :1]).all()

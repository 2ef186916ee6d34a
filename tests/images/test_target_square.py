"""Targets on the square against PIL's own nearest pixel, a slow loop, and the pixels that `to_square` gives."""

import math

import numpy as np
import pytest
from PIL import Image

from loffta.images.geometry import PixelGeometry, View, shown_window, to_square, view_box
from loffta.images.target_square import square_target
from loffta.targets import IGNORE, IGNORE_16, BoxList, NativeTarget

KEY = "some/image.png"
RNG = np.random.default_rng(0)
SIZES = [(37, 53), (53, 37), (16, 16), (9, 120)]
VIEWS = [PixelGeometry(16, view=View(3, index)) for index in range(6)]
CROPS = [
    PixelGeometry(16, "crop", crop_pct=pct, crop_mode=mode) for pct in (1.0, 0.875) for mode in ("center", "squash")
]
GEOMETRIES = [PixelGeometry(16), *CROPS, *VIEWS]


def mask_of(shape, dtype=np.uint8, kind="mask"):
    return NativeTarget(kind, *shape, map=RNG.integers(0, 200, shape).astype(dtype))


def by_pil(values, geometry, px):
    """The steps of `to_square` done once more, with PIL's nearest pixel."""
    image = Image.fromarray(values)
    if geometry.view is not None:
        left, top, right, bottom, mirrored = view_box(geometry.view, KEY, image.width, image.height)
        found = np.asarray(image.crop((left, top, right, bottom)).resize((px, px), Image.Resampling.NEAREST))
        return found[:, ::-1] if mirrored else found
    if geometry.resize == "squash":
        return np.asarray(image.resize((px, px), Image.Resampling.NEAREST))
    scale, short = math.floor(px / geometry.crop_pct), min(image.size)
    size = (scale, scale)
    if geometry.crop_mode != "squash":
        size = (scale * image.width // short, scale * image.height // short)
    left, top = round((size[0] - px) / 2), round((size[1] - px) / 2)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST))[top : top + px, left : left + px]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=repr)
def test_masks_take_the_nearest_pixel(geometry, shape):
    for native in (mask_of(shape), mask_of(shape, np.uint16, "instances")):
        found = square_target(native, geometry, KEY, 16)
        assert found.dtype == native.map.dtype
        assert np.array_equal(found, by_pil(native.map, geometry, 16))


@pytest.mark.parametrize("geometry", [PixelGeometry(16), *VIEWS[:3]], ids=repr)
def test_a_side_of_its_own(geometry):
    native = mask_of((37, 53))
    for px in (1, 5, 40):
        assert np.array_equal(square_target(native, geometry, KEY, px), by_pil(native.map, geometry, px))


def ramps(shape):
    """An image whose red and green say where a pixel lies: what `to_square` shows tells where it took it from."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.stack([x * 255 / (shape[1] - 1), y * 255 / (shape[0] - 1), 0 * x], axis=2).round().astype(np.uint8)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=repr)
def test_targets_lie_where_the_pixels_lie(geometry):
    shape = (53, 67)
    ramp = ramps(shape)
    pixels = to_square(Image.fromarray(ramp), geometry, KEY).astype(float)
    for channel in range(2):
        native = NativeTarget("depth", *shape, map=ramp[..., channel].astype(np.float32) + 1)
        found = square_target(native, geometry, KEY, 16) - 1
        inner = np.s_[1:-1, 1:-1]  # at the edges PIL's filter sees one side alone
        assert np.abs(found - pixels[..., channel])[inner].max() <= 2.5  # of 255 over 53 pixels: half a pixel of one


def depth_by_loops(depth, geometry, px):
    height, width = depth.shape
    window = shown_window(geometry, KEY, width, height)
    found = np.zeros((px, px))
    for i in range(px):
        for j in range(px):
            y = window.top + (i + 0.5) * (window.bottom - window.top) / px - 0.5
            at = px - 1 - j if window.mirrored else j
            x = window.left + (at + 0.5) * (window.right - window.left) / px - 0.5
            values, weights = [], []
            for row, of_row in ((math.floor(y), 1 - y % 1), (math.floor(y) + 1, y % 1)):
                for column, of_column in ((math.floor(x), 1 - x % 1), (math.floor(x) + 1, x % 1)):
                    value = depth[min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
                    values.append(float(value))
                    weights.append(of_row * of_column if value > 0 else 0.0)
            if sum(weights) >= 0.5:
                found[i, j] = np.dot(values, weights) / sum(weights)
    return found


@pytest.mark.parametrize("geometry", [PixelGeometry(8), CROPS[2], *VIEWS[:3]], ids=repr)
def test_depth_is_blended_over_known_pixels_alone(geometry):
    depth = RNG.uniform(1, 10, (11, 13)).astype(np.float32)
    depth[RNG.random(depth.shape) < 0.4] = 0
    found = square_target(NativeTarget("depth", 11, 13, map=depth), geometry, KEY, 9)
    assert found.dtype == np.float32
    assert np.allclose(found, depth_by_loops(depth, geometry, 9), rtol=1e-6)
    assert (found == 0).any()
    assert found[found > 0].min() >= 1  # no 0 was blended in


def test_what_lies_outside_the_image_counts_nowhere():
    geometry = PixelGeometry(16, "crop", crop_pct=2.0)  # the image is half as large as the square
    expected = {"mask": IGNORE, "instances": IGNORE_16, "depth": 0}
    for kind, outside in expected.items():
        dtype = {"mask": np.uint8, "instances": np.uint16, "depth": np.float32}[kind]
        native = NativeTarget(kind, 8, 8, map=np.full((8, 8), 3, dtype))
        found = square_target(native, geometry, KEY, 16)
        assert (found[4:12, 4:12] == 3).all()
        assert (found == outside).sum() == 16 * 16 - 8 * 8


def boxes(*corners):
    n = len(corners)
    return BoxList(np.array(corners, float).reshape(-1, 4), np.arange(n), np.arange(n) % 2 == 1)


@pytest.mark.parametrize("geometry", [PixelGeometry(16), CROPS[0], *VIEWS], ids=repr)
def test_boxes_against_painted_ones(geometry):
    """Every box is painted into a mask, moved as a mask on a fine square, and its extent is read there."""
    corners = [[0, 0, 53, 37], [10, 5, 30, 20], [40, 30, 41, 31], [0, 0, 4, 37], [50, 0, 53, 10]]
    found = square_target(NativeTarget("boxes", 37, 53, boxes=boxes(*corners)), geometry, KEY, 16)
    px = 800
    expected = []
    for number, (left, top, right, bottom) in enumerate(corners):
        painted = np.zeros((37, 53), np.uint8)
        painted[top:bottom, left:right] = 1
        y, x = np.nonzero(square_target(NativeTarget("mask", 37, 53, map=painted), geometry, KEY, px) == 1)
        if len(x):
            expected.append((number, [x.min() / px, y.min() / px, (x.max() + 1) / px, (y.max() + 1) / px]))
    assert found.classes.tolist() == [number for number, _ in expected]
    assert found.crowd.tolist() == [number % 2 == 1 for number, _ in expected]
    assert np.abs(found.corners - [sides for _, sides in expected]).max() <= 1 / px


def test_a_square_without_boxes():
    found = square_target(NativeTarget("boxes", 37, 53, boxes=boxes()), PixelGeometry(16), KEY, 16)
    assert found.corners.shape == (0, 4)

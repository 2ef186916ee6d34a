"""Polygons and runs against pycocotools' masks, pixel for pixel."""

import numpy as np
import pytest
from pycocotools import mask as theirs

from loffta.images.rasterise import fill_polygon, fill_runs, unpack_counts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools 2.0.11 with numpy 2.4


def by_pycocotools(corners, height, width):
    return theirs.decode(theirs.frPyObjects([list(corners)], height, width))[..., 0].astype(bool)


@pytest.mark.parametrize("seed", range(8))
def test_polygons(seed):
    rng = np.random.default_rng(seed)
    n_inside = 0
    for _ in range(60):
        height, width = (int(n) for n in rng.integers(1, 50, 2))
        n = int(rng.integers(3, 12))  # random corners: outlines that cross themselves, and leave the image
        corners = rng.uniform(-0.3, 1.3, 2 * n) * np.tile([width, height], n)
        corners = np.round(corners, int(rng.integers(0, 3)))  # whole numbers and COCO's hundredths: ties
        found, expected = fill_polygon(corners, height, width), by_pycocotools(corners, height, width)
        assert found.shape == expected.shape == (height, width)
        assert np.array_equal(found, expected)
        n_inside += int(found.sum())
    assert n_inside > 1000


@pytest.mark.parametrize(
    "corners",
    [
        [2, 2, 6, 2, 6, 6, 2, 6],
        [0, 0, 10, 0, 10, 8, 0, 8],
        [3, 3, 3, 3, 3, 3],
        [1.5, 1.5, 4.5, 1.5, 4.5, 4.5, 1.5, 4.5],
        [2, 2, 2, 7, 2, 4],
        [-3, -3, 13, -3, 13, 11, -3, 11],
    ],
)
def test_corners_of_pixels_and_outlines_without_area(corners):
    corners = np.array(corners, float)
    assert np.array_equal(fill_polygon(corners, 8, 10), by_pycocotools(corners, 8, 10))


@pytest.mark.parametrize(
    ("corners", "words"),
    [
        ([1, 2, 3, 4], "a polygon of 4 numbers"),
        ([1, 2, 3, 4, 5, 6, 7], "a polygon of 7 numbers"),
        ([0, 0, 1e8, 0, 1, 1], "a polygon far outside of the image"),
        ([0, 0, np.nan, 0, 1, 1], "a polygon far outside of the image"),
    ],
)
def test_what_is_no_polygon(corners, words):
    with pytest.raises(ValueError, match=words):
        fill_polygon(np.array(corners, float), 8, 10)


def test_an_outline_longer_than_any():
    zigzag = np.tile([0.0, 0.0, 10_000.0, 10_000.0], 1000)
    with pytest.raises(ValueError, match="longer than any outline"):
        fill_polygon(zigzag, 10_000, 10_000)


def test_runs():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = (int(n) for n in rng.integers(1, 40, 2))
        mask = rng.random((height, width)) < rng.random()
        packed = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = unpack_counts(packed["counts"].decode())
        assert sum(counts) == height * width
        assert np.array_equal(fill_runs(counts, height, width), mask)


@pytest.mark.parametrize("counts", [[3], [3, -1, 4], [], [2.5, 3.5], [3, 4]])
def test_runs_of_another_image(counts):
    with pytest.raises(ValueError, match="runs that are not those of 3 x 2 pixels"):
        fill_runs(counts, 2, 3)


@pytest.mark.parametrize("text", ["\x1b[0m", "é", "`", "p", "PPPPPPPPPPPPPPPPPPPPPP"])
def test_runs_in_no_known_form(text):
    with pytest.raises(ValueError, match="runs "):
        unpack_counts(text)

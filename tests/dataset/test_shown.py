"""Targets of whole images, cut to the centre that features show, against a loop over pixels."""

import numpy as np
import pytest

from loffta.crop import Centre
from loffta.dataset.dense import open_targets
from loffta.dataset.features import choose_features
from loffta.dataset.shown import centre_of, cut_target
from loffta.errors import DamageFound, UsageError
from loffta.images.geometry import PixelGeometry, shown_window
from loffta.targets import BoxList, NativeTarget
from tests.caches import FakeStore, make_cache, make_table
from tests.dense import write_maps, write_native

RNG = np.random.default_rng(0)
SHOWN = {"resize": "crop", "crop_pct": 0.875, "crop_mode": "center"}


def inside(start, end, n):
    """The pixels of a row whose centres lie between two places."""
    return [i for i in range(n) if start <= i + 0.5 < end]


@pytest.mark.parametrize("size", [(37, 53), (53, 37), (9, 120), (64, 64), (1, 3)])
@pytest.mark.parametrize("centre", [Centre(16, 0.875), Centre(30, 0.95), Centre(16, 1.0), Centre(16, 0.9, "squash")])
def test_pixels_whose_centres_are_shown_are_kept(size, centre):
    window = shown_window(PixelGeometry(centre.side, "crop", "bicubic", *centre[1:]), "key", size[1], size[0])
    rows, columns = inside(window.top, window.bottom, size[0]), inside(window.left, window.right, size[1])
    for kind, dtype in (("mask", np.uint8), ("instances", np.uint16), ("depth", np.float32)):
        native = NativeTarget(kind, *size, map=RNG.integers(0, 200, size).astype(dtype))
        found = cut_target(native, centre)
        assert found.map.tolist() == [[native.map[i, j] for j in columns] for i in rows]
        assert (found.kind, found.height, found.width) == (kind, len(rows), len(columns))


def test_boxes_are_cut_and_those_that_are_not_shown_are_left_out():
    size, centre = (40, 60), Centre(16, 0.8)
    first = np.stack([RNG.integers(0, 59, 200), RNG.integers(0, 39, 200)], axis=1)
    corners = np.concatenate([first, first + RNG.integers(1, 30, (200, 2))], axis=1).clip(0, [60, 40, 60, 40])
    boxes = BoxList(corners.astype(np.float64), np.arange(200), np.arange(200) % 3 == 0)
    found = cut_target(NativeTarget("boxes", *size, boxes=boxes), centre)
    expected = []
    for left, top, right, bottom in corners.tolist():
        painted = np.zeros(size)
        painted[top:bottom, left:right] = 1
        rows, columns = np.nonzero(cut_target(NativeTarget("mask", *size, map=painted.astype(np.uint8)), centre).map)
        ends = (columns.max() + 1, rows.max() + 1) if len(rows) else None
        expected.append(ends and [columns.min(), rows.min(), *ends])
    seen = [i for i, box in enumerate(expected) if box]
    assert 0 < len(seen) < 200
    assert found.boxes.corners.tolist() == [expected[i] for i in seen]
    assert (found.boxes.classes.tolist(), found.boxes.crowd.tolist()) == (seen, [i % 3 == 0 for i in seen])


@pytest.mark.parametrize("changed", [{"crop_pct": 0}, {"crop_pct": 1.5}, {"crop_pct": "x"}, {"crop_mode": "border"}])
def test_a_recipe_that_does_not_say_it_is_damaged(tmp_path, changed):
    store = FakeStore("net", {"a": np.zeros((2, 2, 2, 3), np.float32)}, shown=SHOWN | changed)
    cache = make_cache(tmp_path / "cache", make_table([0, 1], ["train", "test"]), [store])
    with pytest.raises(DamageFound, match="does not say which centre"):
        centre_of(cache.stores()[0])


def test_a_head_that_is_guided_by_whole_images_is_refused(tmp_path):
    store = FakeStore("net", {"a": np.zeros((2, 2, 2, 3), np.float32)}, shown=SHOWN)
    cache = make_cache(tmp_path / "cache", make_table([0, 1], ["train", "test"]), [store])
    write_native(cache, "mask", [NativeTarget("mask", 4, 4, map=np.zeros((4, 4), np.uint8))] * 2)
    write_maps(cache, "mask", np.zeros((2, 4, 4)), SHOWN)
    features = choose_features(cache, (), ("grid",), default_taps="all")
    assert open_targets(cache, "segmentation", "deap", features, training=True).maps is not None
    with pytest.raises(UsageError, match="guided by thumbnails of whole images, and these features show the centre"):
        open_targets(cache, "segmentation", "featup", features, training=True)

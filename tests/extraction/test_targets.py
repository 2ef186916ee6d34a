"""Dense targets beside the features: what is written, by the very source and by zarr-python; what is touched, and what
is not.
"""

import numpy as np
import pytest
import zarr

from loffta.extraction.extract import extract
from loffta.images.geometry import PixelGeometry, View
from loffta.images.target_square import square_target
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.verify import verify
from loffta.targets import TARGET_KINDS
from tests.dense import same
from tests.extraction.filled import N, fill, refuse_to_load
from tests.fakes import CLASSES, DenseSource, FakeBackbone, cache_files, fake_config

PX = 12
ALL = {"targets": TARGET_KINDS, "target_px": PX}


def stat_files(root, *parts):
    """inode, time and size of every file of some folders."""
    found = [p for part in parts for place in [root / part] for p in [place, *place.rglob("*")] if p.is_file()]
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino, p.stat().st_size) for p in found}


def alone(root, source=None, **options):
    """The same command with targets; no model may be loaded."""
    config = fake_config(root, **(ALL | options))
    return extract(config, source or DenseSource(N), refuse_to_load, StopFlag())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Features and targets of all kinds in one pass."""
    root = tmp_path_factory.mktemp("whole") / "cache"
    report = fill(root, DenseSource(N), **ALL)
    assert (report.units, report.target_units) == (3, 3)
    return root


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_what_is_cached_is_what_the_source_has(whole, kind):
    cache, source = Cache.open(whole), DenseSource(N)
    native = cache.native(kind)
    assert native.classes == CLASSES[kind]
    for row, found in enumerate(native.read(range(N))):
        same(found, source.target(kind, row))
    if kind == "boxes":
        for row, found in enumerate(cache.training_target(kind, cache.stores()[0]).read(range(N))):
            target = source.target(kind, row)
            fractions = target.boxes.corners / ([target.width, target.height] * 2)
            np.testing.assert_allclose(found.corners, fractions, atol=1e-6)
            assert np.array_equal(found.classes, target.boxes.classes)
        return
    theirs = zarr.open_array(store=whole / "targets" / f"{kind}-squash", mode="r")
    for row in range(N):
        target = source.target(kind, row)
        assert np.array_equal(theirs[row], square_target(target, PixelGeometry(PX), "", PX))


def test_alone_writes_the_same_and_touches_no_feature(whole, tmp_path):
    fill(tmp_path, DenseSource(N))
    before = stat_files(tmp_path, "stores", "done", "targets/thumb", "images.parquet")
    source = DenseSource(N)
    report = alone(tmp_path, source)
    assert (report.units, report.target_units, report.images) == (0, 3, 0)
    assert {key.partition("/")[0] for key in source.reads} == set(TARGET_KINDS)  # no image
    after = stat_files(tmp_path, "stores", "done", "targets/thumb", "images.parquet")
    assert {path: after[path] for path in before} == before
    assert cache_files(tmp_path, "**/*") == cache_files(whole, "**/*")
    everything = stat_files(tmp_path, ".")
    again = alone(tmp_path)
    assert (again.units, again.target_units) == (0, 0)
    assert stat_files(tmp_path, ".") == everything
    assert [*verify(Cache.open(tmp_path), deep=True)] == []


def test_squares_follow_crop_and_views(tmp_path):
    """A geometry each; of squares that are added later nothing is read from the source."""
    config = {"targets": ("mask", "boxes"), "target_px": PX}
    backbone = FakeBackbone()
    backbone.geometry = PixelGeometry(16, crop_pct=0.8)
    fill(tmp_path, DenseSource(N), backbone, views=1, view_seed=5, **config)
    source = DenseSource(N)
    fill(tmp_path, source, backbone, resize="crop", **config)
    assert not [key for key in source.reads if "/" in key and source.reads[key] > 1]  # looked at, not read again
    cache = Cache.open(tmp_path)
    assert len(cache.paths.training_names()) == 6
    geometries = {
        "squash": PixelGeometry(PX),
        "crop": PixelGeometry(PX, "crop", crop_pct=0.8, crop_mode="center"),
        "view": PixelGeometry(PX, view=View(5, 0)),
    }
    seen = set()
    for store in cache.stores():
        mask, boxes = (cache.training_target(kind, store) for kind in config["targets"])
        kind = mask.paths.name.split("-")[1]
        seen.add(kind)
        theirs = zarr.open_array(store=mask.paths.folder, mode="r")
        for row in range(N):
            target = source.target("mask", row)
            key = cache.table.keys[row]
            assert np.array_equal(theirs[row], square_target(target, geometries[kind], key, PX))
            expected = square_target(source.target("boxes", row), geometries[kind], key, PX)
            np.testing.assert_allclose(boxes.read([row])[0].corners, expected.corners, atol=1e-6)
    assert seen == {*geometries}
    assert [*verify(cache, deep=True)] == []

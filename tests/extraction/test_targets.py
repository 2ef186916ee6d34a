"""Dense targets beside the features: what is written, by the very source and by zarr-python; what is touched, and what
is not.
"""

import dataclasses
import shutil

import numpy as np
import pytest
import zarr

from loffta.errors import LofftaError, Stopped, UsageError
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


def assert_holds(root, source, n):
    """The targets of `source` for n images, and squares that agree with them."""
    cache = Cache.open(root)
    for kind in TARGET_KINDS:
        for row, found in enumerate(cache.native(kind).read(range(n))):
            same(found, source.target(kind, row))
        if kind != "boxes":
            theirs = zarr.open_array(store=root / "targets" / f"{kind}-squash", mode="r")[:]
            for row in range(n):
                assert np.array_equal(theirs[row], square_target(source.target(kind, row), PixelGeometry(PX), "", PX))
        else:
            assert cache.training_target(kind, cache.stores()[0]).ready.all()
    assert [*verify(cache, deep=True)] == []


@pytest.mark.parametrize("features_first", [False, True])
def test_a_grown_set_has_all_its_targets(whole, tmp_path, features_first):
    """The part-filled unit alone is written anew, in the same pass or behind the features."""
    root = shutil.copytree(whole, tmp_path / "cache")
    before = cache_files(root, "targets/*-squash/c.*", "targets/**/u*.parquet")
    if features_first:
        fill(root, DenseSource(N + 7))
        report = alone(root, DenseSource(N + 7))
        assert report.units == 0
    else:
        report = fill(root, DenseSource(N + 7), **ALL)
    assert report.target_units == 2
    assert_holds(root, DenseSource(N + 7), N + 7)
    after = cache_files(root, "targets/*-squash/c.*", "targets/**/u*.parquet")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if "/c.2." in name or "u000002" in name}


def test_a_target_that_changed_is_said_and_stays_until_it_is_dropped(whole, tmp_path, capsys):
    root = shutil.copytree(whole, tmp_path / "cache")
    alone(root, DenseSource(N, {"depth/0003.png": b"other"}))
    said = " ".join(capsys.readouterr().err.split())
    assert f"1 of the {N} targets 'depth' that were looked at is not what was cached, the first of 0003.png" in said
    assert f"To take them as they are now: loffta drop {root} targets:depth, then the same command" in said
    assert said.count("To take") == 1
    assert cache_files(root, "targets/**/*") == cache_files(whole, "targets/**/*")
    fill(root, DenseSource(N + 7, seed=1), **ALL)  # the last unit is written anew, with what is there now
    said = capsys.readouterr().err
    for kind in ("mask", "instances", "depth"):
        assert f"4 targets '{kind}' of units that were written anew changed" in said


def test_a_target_that_was_missing_and_is_there_now_is_said(tmp_path, capsys):
    fill(tmp_path, DenseSource(N, {"mask/0003.png": None}), targets=("mask",))
    alone(tmp_path, DenseSource(N), targets=("mask",), target_px=None)
    assert "1 image that had no target 'mask' has one now, 0003.png" in capsys.readouterr().err


class Without18(DenseSource):
    """Image 18, of the part-filled unit, is gone."""

    def listing(self):
        full = super().listing()
        kept = [i for i in range(len(full)) if i != 18]
        targets = {name: [paths[i] for i in kept] for name, paths in full.targets.items()}
        parts = {name: [getattr(full, name)[i] for i in kept] for name in ("keys", "splits")}
        return dataclasses.replace(full, sizes=full.sizes[kept], labels=full.labels[kept], targets=targets, **parts)


def test_what_is_gone_keeps_its_targets(whole, tmp_path):
    root = shutil.copytree(whole, tmp_path / "cache")
    source = Without18(N + 7)
    fill(root, source, gone="keep", **ALL)
    assert not [key for key in source.reads if "0018" in key]
    assert_holds(root, DenseSource(N + 7), N + 7)


def test_some_images_first_then_all(whole, tmp_path):
    fill(tmp_path, DenseSource(N), limit=5, **ALL)
    assert (Cache.open(tmp_path).native("mask").status == "ok").sum() == 5
    fill(tmp_path, DenseSource(N))
    assert alone(tmp_path).target_units == 3
    assert cache_files(tmp_path, "targets/**/*") == cache_files(whole, "targets/**/*")


def test_shares_make_the_same_cache(whole, tmp_path):
    for share in ((1, 2), (0, 2)):
        report = fill(tmp_path, DenseSource(N), share=share, **ALL)
    assert [(one.kind, one.ok, one.missing, one.bad) for one in report.targets] == [(k, N, 0, {}) for k in TARGET_KINDS]
    assert cache_files(tmp_path, "**/*") == cache_files(whole, "**/*")


def test_a_stop_leaves_nothing_half_and_the_same_command_goes_on(whole, tmp_path):
    stop = StopFlag()

    def stop_in_the_second_unit(backbone):
        if len(backbone.batches) == 5:
            stop.signal = 15

    backbone = FakeBackbone(before=stop_in_the_second_unit)
    with pytest.raises(Stopped):
        fill(tmp_path, DenseSource(N), backbone, stop, **ALL)
    assert [*tmp_path.rglob("*.part")] == []
    native = Cache.open(tmp_path).paths.native("mask")
    assert native.done(0).exists()
    assert not native.done(1).exists()
    fill(tmp_path, DenseSource(N), **ALL)
    assert cache_files(tmp_path, "**/*") == cache_files(whole, "**/*")


def test_what_cannot_be_had_is_refused_before_anything_is_made(tmp_path):
    root = tmp_path / "cache"
    with pytest.raises(UsageError, match="this image set has no target 'depth'; it has mask"):
        fill(root, DenseSource(N, kinds=("mask",)), targets=("depth",))
    with pytest.raises(UsageError, match="--palette is for masks"):
        fill(root, DenseSource(N), targets=("depth",), palette=tmp_path / "palette.csv")
    with pytest.raises(UsageError, match="the palette cannot be read"):
        fill(root, DenseSource(N), targets=("mask",), palette=tmp_path / "palette.csv")
    assert not root.exists()


def test_another_size_or_other_classes_are_refused_with_the_way_out(whole):
    with pytest.raises(UsageError, match="--target-px 24, but the squares that are there have 12 pixels") as caught:
        alone(whole, target_px=24)
    assert f"loffta drop {whole} targets:mask-squash --yes" in caught.value.remedy

    class Renamed(DenseSource):
        def listing(self):
            return dataclasses.replace(super().listing(), target_classes={"mask": ("sky", "cow", "cat")})

    with pytest.raises(LofftaError, match="made with other classes or colours: class 1 is 'dog' there and 'cow' now"):
        alone(whole, Renamed(N), targets=("mask",))
    report = alone(whole, target_px=None)  # the cache's own
    assert [one.px for one in report.targets] == [PX, PX, PX, None]

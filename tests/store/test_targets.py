"""Dense targets of a cache through its own readers, and through zarr-python, pyarrow and Pillow alone."""

import hashlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

from loffta.errors import DamageFound, LofftaError
from loffta.store.reader import ArrayReader
from loffta.store.target_codec import count_objects, encode_target, read_target
from loffta.store.targets import geometry_name, geometry_of
from loffta.targets import IGNORE_16, TARGET_KINDS, BoxList, NativeTarget
from tests.caches import toy_cache
from tests.dense import same, write_boxes, write_maps, write_native
from tests.fakes import CLASSES, random_target

N = 60  # of toy_cache, in units of 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Native targets of every kind, of all rows but two."""
    cache = toy_cache(tmp_path_factory.mktemp("targets") / "cache")
    for kind in TARGET_KINDS:
        targets = [random_target(kind, row) for row in range(N)]
        targets[5], targets[17] = None, "not a PNG"
        write_native(cache, kind, targets)
    return cache


@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_native_targets_come_back_whole(cache, kind):
    native = cache.native(kind)
    rows = [40, 3, 5, 17, 3, 59, 16]
    for row, target in zip(rows, native.read(rows), strict=True):
        if row in (5, 17):
            assert target is None
        else:
            same(target, random_target(kind, row))
            assert native.sizes[row].tolist() == [target.height, target.width]
    assert (native.kind, native.classes) == (kind, CLASSES[kind])
    assert [native.status[row] for row in rows] == ["ok", "ok", "missing", "bad", "ok", "ok", "ok"]
    assert native.reasons == {5: "no such file", 17: "not a PNG"}
    assert cache.target_kinds() == list(TARGET_KINDS)


def test_objects_are_counted(cache):
    boxes, instances = random_target("boxes", 3), random_target("instances", 3)
    assert cache.native("boxes").n_objects[3] == len(boxes.boxes.classes)
    assert cache.native("instances").n_objects[3] == len({*instances.map.ravel().tolist()} - {0, IGNORE_16})
    assert not cache.native("mask").n_objects.any()


def test_classes_that_have_no_names_are_numbers_up_to_the_largest(tmp_path):
    cache = toy_cache(tmp_path / "cache")
    maps = [np.array([[0, row // 10, 255]], np.uint8) for row in range(N)]
    write_native(cache, "mask", [NativeTarget("mask", 1, 3, map=one) for one in maps], classes=())
    assert cache.native("mask").classes == ("0", "1", "2", "3", "4", "5")


def test_native_files_are_plain_parquet_of_plain_files(cache):
    """Row 12 is in unit 1; nothing of loffta reads here."""
    folder = cache.paths.root / "targets" / "native"
    cells = {kind: pq.read_table(folder / kind / "u000001.parquet").to_pylist()[4] for kind in TARGET_KINDS}
    for kind in ("mask", "instances"):
        pixels = np.asarray(Image.open(io.BytesIO(cells[kind]["data"])))
        assert np.array_equal(pixels, random_target(kind, 12).map)
    assert np.array_equal(np.load(io.BytesIO(cells["depth"]["data"])), random_target("depth", 12).map)
    boxes = random_target("boxes", 12).boxes
    assert json.loads(cells["boxes"]["data"]) == [
        [*corners, number, crowd]
        for corners, number, crowd in zip(boxes.corners.tolist(), boxes.classes.tolist(), boxes.crowd, strict=True)
    ]
    for kind, found in cells.items():
        target = random_target(kind, 12)
        assert (found["row"], found["status"], found["height"], found["width"]) == (
            12,
            "ok",
            target.height,
            target.width,
        )


@pytest.mark.parametrize("ids", [[0, 1, 254], [0, 255], [0, 255, IGNORE_16], [0, IGNORE_16], [IGNORE_16 - 1]])
def test_instances_keep_every_number(ids):
    """8 bits where they fit, in which 255 stands for what is ignored; object 255 is no such pixel."""
    target = NativeTarget("instances", 1, len(ids), map=np.array([ids], np.uint16))
    data = encode_target(target)
    same(read_target("instances", 1, len(ids), data), target)
    assert Image.open(io.BytesIO(data)).mode == ("L" if all(i < 255 or i == IGNORE_16 for i in ids) else "I;16")
    assert count_objects(target) == len({*ids} - {0, IGNORE_16})


def test_a_mask_keeps_its_type():
    for dtype in (np.uint8, np.uint16):
        target = NativeTarget("mask", 1, 3, map=np.array([[0, 7, 255]], dtype))
        same(read_target("mask", 1, 3, encode_target(target)), target)


def _npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("mask", b"GIF89a", "not a PNG"),
        ("mask", encode_target(random_target("mask", 0, (4, 5)))[:60], "not a whole PNG"),
        ("mask", encode_target(random_target("mask", 0, (5, 4))), r"a PNG of \(4, 5\) pixels"),
        ("depth", b"\x93NUMPY", "not an npy"),
        ("depth", _npy(np.zeros((4, 5))), r"not an npy of \[4, 5\] float32"),
        ("depth", _npy(np.zeros((400, 5), np.float32)), r"not an npy of \[4, 5\] float32"),
        ("depth", _npy(np.zeros((4, 5), np.float32))[:-1], r"not an npy of \[4, 5\] float32"),
        ("boxes", b"{}", "not a list of boxes"),
        ("boxes", b"[[1, 2, 3, 4, 5]]", "not a list of boxes"),
        ("boxes", b"[[1, 2, 3, 4, null, 0]]", "not a list of boxes"),
    ],
)
def test_strange_bytes_are_refused(kind, data, words):
    with pytest.raises(ValueError, match=words):
        read_target(kind, 4, 5, data)


@pytest.mark.parametrize(("kind", "fill"), [("mask", 255), ("instances", 65_535), ("depth", np.nan)])
def test_maps_are_arrays_that_any_zarr_reader_reads(tmp_path, kind, fill):
    """What is not there reads as pixels to ignore, and never as a class."""
    cache = toy_cache(tmp_path / "cache")
    squares = [random_target(kind, row, (6, 6)).map for row in range(N)]
    squares[11] = None
    write_maps(cache, kind, squares)
    theirs = zarr.open_array(store=cache.paths.root / "targets" / f"{kind}-squash", mode="r")
    assert (theirs.shape, theirs.attrs["kind"], theirs.attrs["geometry"]) == ((N, 6, 6), kind, {"resize": "squash"})
    assert theirs.attrs["classes"] == list(CLASSES[kind])
    array = cache.training_target(kind, cache.stores()[0])
    assert np.flatnonzero(~array.ledger.ready).tolist() == [11]
    ours = ArrayReader(array.paths).read(np.array([9, 10, 30]))
    for row, found in zip((9, 10, 30), ours, strict=True):
        assert np.array_equal(theirs[row], squares[row])
        assert np.array_equal(found, squares[row])
        assert found.dtype == squares[row].dtype
    assert np.array_equal(theirs[11], np.full((6, 6), fill, squares[0].dtype), equal_nan=True)
    with pytest.raises(DamageFound, match="row 11 is missing"):
        ArrayReader(array.paths).read(np.array([11]))


def test_boxes_of_squares(tmp_path):
    cache = toy_cache(tmp_path / "cache")
    boxes = [random_target("boxes", row, (1, 1)).boxes for row in range(N)]
    boxes[20] = None
    write_boxes(cache, boxes)
    found = cache.training_target("boxes", cache.stores()[0])
    assert np.flatnonzero(~found.ready).tolist() == [20]
    assert found.classes == CLASSES["boxes"]
    for row, ours in zip((50, 3), found.read([50, 3]), strict=True):
        theirs = boxes[row]
        expected = BoxList(theirs.corners.astype(np.float32), theirs.classes, theirs.crowd)
        same(NativeTarget("boxes", 1, 1, boxes=ours), NativeTarget("boxes", 1, 1, boxes=expected))


def test_a_geometry_has_a_name_and_pixels_have_none():
    view = {"kind": "crop-flip", "seed": 1, "index": 2, "area": [0.25, 1.0], "aspect": [0.75, 4 / 3]}
    crop = {"resize": "crop", "crop_pct": 0.875, "crop_mode": "center"}
    look = {"image_px": 224, "interpolation": "bicubic", "background": "#ffffff", "range": "auto"}

    def hashed(geometry):
        return hashlib.sha256(json.dumps(geometry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:8]

    for px in (224, 448):
        found = [
            geometry_name(geometry_of({"view": v, "input": {**look, **i, "image_px": px}}))
            for v, i in ((None, {"resize": "squash"}), (None, {}), (None, crop), (view, {"resize": "squash"}))
        ]
        assert found == ["squash", "squash", f"crop-{hashed(crop)}", f"view-{hashed({'view': view})}"]


def test_targets_that_are_not_there_are_named(cache, tmp_path):
    bare = toy_cache(tmp_path / "cache")
    assert bare.target_kinds() == []
    with pytest.raises(LofftaError, match="has no mask; its dense targets: none") as caught:
        bare.native("mask")
    assert caught.value.remedy.endswith("with --targets mask: it adds them and touches no feature")
    with pytest.raises(LofftaError, match=r"has no boxes; its dense targets: mask, instances, depth, boxes"):
        cache.training_target("boxes", cache.stores()[0])
    store = cache.stores()[0]
    with pytest.raises(LofftaError, match=f"has no depth for the squares of store {store.name}"):
        cache.training_target("depth", store)


def test_rows_of_units_that_are_not_there_have_no_status(tmp_path):
    cache = toy_cache(tmp_path / "cache")
    write_native(cache, "mask", [random_target("mask", row) for row in range(N)], units=[1, 3])
    native = cache.native("mask")
    assert np.flatnonzero(native.status == "ok").tolist() == [*range(8, 16), *range(24, 32)]
    assert {*native.status[native.status != "ok"].tolist()} == {""}
    assert native.read([0]) == [None]


def test_units_of_other_images_or_another_kind_are_damage(cache, tmp_path):
    other = toy_cache(tmp_path / "cache")
    write_native(other, "mask", [random_target("mask", row) for row in range(N)])
    folder = other.paths.native("mask")
    folder.done(2).write_bytes(folder.done(1).read_bytes())
    with pytest.raises(DamageFound, match="rows of another unit"):
        other.native("mask")
    folder.done(2).write_bytes(cache.paths.native("instances").done(2).read_bytes())
    with pytest.raises(DamageFound, match="it holds 'instances'"):
        other.native("mask")
    folder.done(2).write_bytes(b"PAR1")
    with pytest.raises(DamageFound, match="cannot be read"):
        other.native("mask")

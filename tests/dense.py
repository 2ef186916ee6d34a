"""Dense targets for small caches, by the real writers: random ones, or what a test gives."""

import numpy as np

from loffta.store.ledger import OK, ImageStatus
from loffta.store.target_codec import count_objects, encode_target, largest_class
from loffta.store.target_files import BAD, BOX_TYPES, MISSING, NATIVE_TYPES, FileWriter
from loffta.store.targets import TargetInfo, geometry_name, training_layout
from loffta.store.writer import Stored, UnitWriter
from loffta.targets import BoxList, NativeTarget
from tests.fakes import CLASSES

SQUASH = {"resize": "squash"}


def same(found, expected):
    """Bit for bit, types included."""
    assert (found.kind, found.height, found.width) == (expected.kind, expected.height, expected.width)
    if expected.boxes is None:
        assert found.map.dtype == expected.map.dtype
        assert np.array_equal(found.map, expected.map)
    else:
        for name in ("corners", "classes", "crowd"):
            ours, theirs = getattr(found.boxes, name), getattr(expected.boxes, name)
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)


def write_native(cache, kind, targets, *, units=None, classes=None):
    """`targets` row by row; None is missing, text is bad for that reason."""
    info = TargetInfo(kind, CLASSES[kind] if classes is None else classes)
    for unit in range(cache.n_units) if units is None else units:
        rows = cache.rows_of_unit(unit)
        made = {**info.to_json(), "images": cache.table.identity(rows)}
        writer = FileWriter(cache.paths.native(kind), unit, cache.unit_images, NATIVE_TYPES, made)
        for row in rows:
            one = targets[row]
            if isinstance(one, NativeTarget):
                counts = (count_objects(one), largest_class(one))
                facts = ("ok", "", one.height, one.width, f"{row:032x}", *counts, encode_target(one))
            else:
                facts = (
                    (MISSING, "no such file", 0, 0, "", 0, -1, b"") if one is None else (BAD, one, 0, 0, "", 0, -1, b"")
                )
            writer.add(row, *facts)
        assert writer.commit()


def write_maps(cache, kind, squares, geometry=SQUASH):
    """[n, S, S] of all rows; NaN or None rows are left out."""
    info = TargetInfo(kind, CLASSES[kind])
    px = next(len(square) for square in squares if square is not None)
    layout = training_layout(info, geometry, px, len(cache.table), cache.unit_images)
    paths = cache.paths.target(f"{kind}-{geometry_name(geometry)}")
    paths.folder.mkdir(parents=True)
    paths.metadata.write_bytes(layout.to_json())
    for unit in range(cache.n_units):
        rows = cache.rows_of_unit(unit)
        good = [row for row in rows if squares[row] is not None]
        writer = UnitWriter(paths, layout, unit)
        values = np.array([squares[row] for row in good], layout.dtype).reshape(-1, px, px)
        stored = Stored(values, np.ones((len(good), 0), bool), np.zeros((len(good), 0), np.float32))
        writer.append(good, stored, [cache.table.keys[row] for row in good])
        writer.commit([ImageStatus(row, OK if row in good else MISSING) for row in rows], {})


def write_boxes(cache, boxes, geometry=SQUASH):
    """A BoxList in fractions of the square, or None, row by row."""
    info = TargetInfo("boxes", CLASSES["boxes"])
    for unit in range(cache.n_units):
        rows = cache.rows_of_unit(unit)
        made = {**info.to_json(), "images": cache.table.identity(rows)}
        paths = cache.paths.target_files(f"boxes-{geometry_name(geometry)}")
        writer = FileWriter(paths, unit, cache.unit_images, BOX_TYPES, made)
        for row in rows:
            one = boxes[row] or BoxList(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
            status = MISSING if boxes[row] is None else OK
            writer.add(row, status, "", one.corners.ravel().tolist(), one.classes.tolist(), one.crowd.tolist())
        assert writer.commit()


def write_thumbs(cache, thumbs):
    """[n, T, T, 3] of all rows."""
    found = cache.thumbs(create=True)
    for unit in range(cache.n_units):
        rows = list(cache.rows_of_unit(unit))
        writer = UnitWriter(found.paths, found.layout, unit)
        stored = Stored(thumbs[rows], np.ones((len(rows), 0), bool), np.zeros((len(rows), 0), np.float32))
        writer.append(rows, stored, [cache.table.keys[row] for row in rows])
        writer.commit([ImageStatus(row, OK) for row in rows], {})

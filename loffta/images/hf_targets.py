"""Which columns of a Hugging Face data set are dense targets, and the bytes that `targets` decodes.

In:  features and cells as the package datasets has them.   Out: a column by kind of target; JSON of boxes. Called by
`hugging_face`. Maps are columns of images by their names; boxes are a column `objects`, whose `bbox` is COCO's left,
top, width, height, as the package's guide to object detection has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from loffta.images.box_cells import box_classes
from loffta.words import brief

MAPS = {
    "mask": ("mask", "segmentation_mask", "semantic_mask", "annotation", "label", "labels"),
    "instances": ("instances", "instance_mask"),
    "depth": ("depth", "depth_map"),
}
OBJECTS = "objects"
_BROKEN = (ValueError, LookupError, TypeError, AttributeError)  # of cells in another structure
_BOXES = ("bbox", "bboxes")
_CLASSES = ("category", "categories", "label", "labels", "class", "classes", "category_id")
_CROWDS = ("iscrowd", "is_crowd")


def map_columns(images: Iterable[str]) -> dict[str, str]:
    """The column of every kind of map that is there.

    Args:
        images: the columns of images that are not the images themselves.
    """
    images = list(images)
    found = {kind: next((name for name in names if name in images), None) for kind, names in MAPS.items()}
    return {kind: name for kind, name in found.items() if name is not None}


def list_targets(
    splits: dict[str, Any], maps: dict[str, str], faults: list[str]
) -> tuple[dict[str, list[str | None]], dict[str, tuple[str, ...]]]:
    """(keys of targets by kind, what the classes of boxes are called); no map is decoded.

    Args:
        splits: datasets.Dataset by name, with undecoded images.
        maps: column by kind.
        faults: gains objects that cannot be used.
    """
    found: dict[str, list[str | None]] = {kind: [] for kind in (*maps, "boxes")}
    declared: list[str] = []
    seen: list[tuple[str, str]] = []  # JSON of boxes whose classes are not declared
    for name, split in splits.items():
        keys = [f"{name}/{row:08d}" for row in range(len(split))]
        for kind, column in maps.items():
            present = _has_bytes(split, column)
            found[kind] += [f"{kind}/{key}" if there else None for key, there in zip(keys, present, strict=True)]
        fields = _box_fields(split.features)
        cells = [None] * len(split) if fields is None else column_of(split, OBJECTS)
        names = None if fields is None else _class_names(fields)
        declared = names or declared
        for key, cell in zip(keys, cells, strict=True):
            found["boxes"].append(None if cell is None else f"boxes/{key}")
            try:
                text = None if cell is None else _boxes_json(cell, names)
            except _BROKEN as error:
                faults.append(f"{key}: its objects cannot be used: {error}")
                continue
            if text is not None and names is None:
                seen.append((key, text))
    return found, {"boxes": tuple(declared) if declared else box_classes(seen, faults)}


def read_boxes(cell: Any, features: dict[str, Any]) -> bytes:
    """The JSON of one row's objects; OSError where there are none that can be used."""
    fields = _box_fields(features)
    if fields is None or cell is None:
        raise OSError("the row has no objects")
    try:
        return _boxes_json(cell, _class_names(fields)).encode()
    except _BROKEN as error:
        raise OSError(f"its objects cannot be used: {error}") from error


def column_of(split: Any, name: str) -> Sequence[Any]:
    """The cells of one column; None in every row where a split has no such column."""
    return split.select_columns([name])[:][name] if name in split.features else [None] * len(split)


def _has_bytes(split: Any, column: str) -> list[bool]:
    """Whether there is a map in each row, in batches: all of them at once may be gigabytes."""
    import pyarrow.compute as pc  # 0.1 s, for this kind of source alone

    found: list[bool] = []
    if column not in split.features:
        return [False] * len(split)
    for cells in split.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        data, paths = (pc.is_valid(pc.struct_field(cells[column], name)) for name in ("bytes", "path"))
        found += pc.or_(data, paths).to_pylist()
    return found


def _box_fields(features: dict[str, Any]) -> dict[str, Any] | None:
    """The features of every object's fields, where a data set has boxes with classes; None where it has none."""
    found = features.get(OBJECTS)
    fields = getattr(found, "feature", found)  # of a list of dicts, or of a dict of lists
    if not isinstance(fields, dict) or not (_first(_BOXES, fields) and _first(_CLASSES, fields)):
        return None
    return {name: field if fields is not found else getattr(field, "feature", field) for name, field in fields.items()}


def _class_names(fields: dict[str, Any]) -> list[str] | None:
    """Of ClassLabel; None where the classes are words or numbers."""
    names = getattr(fields[_first(_CLASSES, fields)], "names", None)
    return None if names is None else list(names)


def _boxes_json(cell: Any, names: list[str] | None) -> str:
    """The boxes of one row.

    Args:
        cell: objects as a dict of lists or as a list of dicts.
        names: of ClassLabel's numbers.
    Raises:
        ValueError: lists of different lengths, a box that is not four numbers, a class that is not in the names.
    """
    objects = cell if isinstance(cell, list) else _turned(cell)
    rows = []
    for found in objects:
        box, number = found[_first(_BOXES, found)], found[_first(_CLASSES, found)]
        if not isinstance(box, list) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
            raise ValueError(f"the box {brief(box)} is not left, top, width and height")
        if names is not None and not (type(number) is int and 0 <= number < len(names)):
            raise ValueError(f"the class {brief(number)} of {len(names)}")
        left, top, width, height = box
        crowd = found.get(_first(_CROWDS, found), 0)
        rows.append(
            [left, top, left + width, top + height, number if names is None else names[number], int(bool(crowd))]
        )
    return json.dumps(rows)


def _turned(cell: dict[str, list[Any]]) -> list[dict[str, Any]]:
    used = [name for name in (_first(_BOXES, cell), _first(_CLASSES, cell), _first(_CROWDS, cell)) if name]
    return [dict(zip(used, values, strict=True)) for values in zip(*(cell[name] for name in used), strict=True)]


def _first(names: tuple[str, ...], among: Iterable[str]) -> str:
    return next((name for name in names if name in among), "")

"""The objects of one split of COCO as dense targets: instance maps and boxes, made when they are asked for.

In:  instances_<split><year>.json and, where the folder is there, panoptic_<split><year>.json.   Out: the bytes that
`targets` decodes. Called by `coco`. The annotations are parsed when the first target is read; numbers of outlines are
packed as they are parsed, or they would take 7 times the file's size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loffta.files.documents import from_json
from loffta.images.decode import MAX_PIXELS, BadImage, open_image
from loffta.images.rasterise import fill_polygon, fill_runs, unpack_counts
from loffta.store.target_codec import encode_target
from loffta.targets import IGNORE, IGNORE_16, NO_INSTANCE, NativeTarget
from loffta.words import brief

MAX_BYTES = 4 << 30  # train2017 has 0.45 GB, LVIS 1.1


class CocoObject(NamedTuple):
    """One annotation."""

    number: Any  # its id, for messages
    category: int
    box: Any  # left, top, width, height, as they are written
    crowd: bool
    outlines: Any  # a tuple of packed polygons, or a dict of runs


@dataclass(frozen=True)
class CocoImage:
    """One image's objects in the file's order."""

    height: int
    width: int
    objects: list[CocoObject]

    def instances(self) -> bytes:
        """PNG: 1, 2, ... for the objects that are no crowds, in the file's order; crowds are ignored pixels.

        They are painted from the largest to the smallest: where two overlap the smaller is seen, and both over crowds.

        Raises:
            ValueError: an outline that cannot be painted.
        """
        painted = [(found, self._paint(found)) for found in self.objects]
        found = np.full((self.height, self.width), NO_INSTANCE, np.uint16)
        for thing, mask in painted:
            if thing.crowd:
                found[mask] = IGNORE_16
        masks = [mask for thing, mask in painted if not thing.crowd]
        if len(masks) >= IGNORE_16:
            raise ValueError(f"{len(masks)} objects")
        for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
            found[masks[i]] = i + 1
        return encode_target(NativeTarget("instances", self.height, self.width, map=found))

    def boxes(self, names: dict[int, str]) -> bytes:
        """JSON of left, top, right, bottom, the category's name and whether it is a crowd.

        Raises:
            ValueError: a box that is not four numbers.
        """
        rows = []
        for found in self.objects:
            box = found.box
            if not isinstance(box, list) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
                raise ValueError(f"annotation {brief(found.number)}: the box {brief(box)}")
            left, top, width, height = box
            rows.append([left, top, left + width, top + height, names[found.category], int(found.crowd)])
        return json.dumps(rows).encode()

    def _paint(self, found: CocoObject) -> NDArray[np.bool_]:
        try:
            if isinstance(found.outlines, dict):
                counts = found.outlines.get("counts")
                runs = unpack_counts(counts) if isinstance(counts, str) else counts
                if not isinstance(runs, list) or found.outlines.get("size") != [self.height, self.width]:
                    raise ValueError("runs of another image")
                return fill_runs(runs, self.height, self.width)
            inside = np.zeros((self.height, self.width), np.bool_)
            for packed in found.outlines:
                inside |= fill_polygon(np.frombuffer(packed, np.float64), self.height, self.width)
            return inside
        except ValueError as error:
            raise ValueError(f"annotation {brief(found.number)}: {error}") from error


def parse_objects(data: bytes) -> tuple[dict[str, CocoImage], dict[int, str]]:
    """Every image's objects by its file name, and the categories' names by their ids.

    Raises:
        ValueError, LookupError, TypeError: not the structure of COCO's instances.
    """
    content = from_json(data, max_bytes=MAX_BYTES, object_hook=_packed)
    images = {row["id"]: CocoImage(row["height"], row["width"], []) for row in content["images"]}
    for image in images.values():
        if not (type(image.height) is type(image.width) is int and 0 < image.height * image.width <= MAX_PIXELS):
            raise ValueError(f"an image of {brief(image.width)} x {brief(image.height)} pixels")
    for number, found in content["annotations"]:
        images[number].objects.append(found)
    names = {row["id"]: row["name"] for row in content["categories"]}
    return {row["file_name"]: images[row["id"]] for row in content["images"]}, names


def _packed(found: dict[str, Any]) -> Any:
    """An annotation as (image, CocoObject), its polygons as bytes; other objects as they are."""
    if "image_id" not in found or "category_id" not in found:
        return found
    outlines = found.get("segmentation", ())
    if not isinstance(outlines, dict):
        outlines = tuple(np.asarray(polygon, np.float64).tobytes() for polygon in outlines)
    crowd = bool(found.get("iscrowd", 0))
    return found["image_id"], CocoObject(found.get("id"), found["category_id"], found.get("bbox"), crowd, outlines)


@dataclass(frozen=True)
class Panoptic:
    """The segments of one split."""

    classes: tuple[str, ...]  # by the ids of the categories: 80 things and 53 stuffs in COCO
    segments: dict[str, dict[int, int]]  # class by segment, by the PNG's name

    def mask(self, name: str, data: bytes) -> bytes:
        """The classes of a panoptic PNG as a PNG of classes; pixels of no segment are ignored.

        Raises:
            OSError: it is no such PNG, or shows a segment that the annotations do not list.
        """
        try:
            pixels = np.asarray(open_image(data).decode().image)
        except BadImage as error:
            raise OSError(str(error)) from error
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise OSError("a panoptic PNG has three channels")
        ids, place = np.unique(pixels.astype(np.int64) @ [1, 1 << 8, 1 << 16], return_inverse=True)
        classes = {0: IGNORE} | self.segments[name]
        absent = [int(i) for i in ids if int(i) not in classes]
        if absent:
            raise OSError(f"segment {absent[0]} is not among its annotations")
        height, width = pixels.shape[:2]
        found = np.array([classes[int(i)] for i in ids], np.uint8)[place].reshape(height, width)
        return encode_target(NativeTarget("mask", height, width, map=found))


def parse_panoptic(data: bytes) -> Panoptic:
    """Segments of every PNG.

    Raises:
        ValueError, LookupError, TypeError: not the structure of COCO's panoptic annotations.
    """
    content = from_json(data, max_bytes=MAX_BYTES, object_hook=_segment)
    names = {row["id"]: row["name"] for row in content["categories"]}
    number = {category: i for i, category in enumerate(sorted(names))}
    if len(number) > IGNORE or len(set(names.values())) < len(content["categories"]):
        raise ValueError("categories of one name or id, or more than 255")
    segments = {
        row["file_name"]: {segment: number[category] for segment, category in row["segments_info"]}
        for row in content["annotations"]
    }
    return Panoptic(tuple(names[i] for i in sorted(names)), segments)


def _segment(found: dict[str, Any]) -> Any:
    return (found["id"], found["category_id"]) if "category_id" in found and "image_id" not in found else found

"""`coco:ROOT`: COCO as it is unpacked, 2014 or 2017; `coco:ROOT#2017` says which where both are there.

ROOT/annotations/instances_{train,val}<year>.json name the images in ROOT/{train,val}<year>; ROOT/test<year> has none.
An image's labels are the categories of its objects, crowds too; an image without objects is labelled with no class.
Dense targets are made of the same annotations when they are read; masks are COCO-Stuff's, or else the panoptic ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from loffta.errors import UsageError, refuse, unknown_name
from loffta.files.documents import from_json
from loffta.images.coco_objects import MAX_BYTES
from loffta.images.coco_targets import CocoTargets
from loffta.images.files import FileList, FileRoot, existing, split_part
from loffta.machine.progress import say
from loffta.store.label_cells import many_classes
from loffta.store.table import ImageTable

_INSTANCES = re.compile(r"instances_(train|val)(\d{4})\.json")
_REMEDY = "unpack the images and annotations_trainval<year>.zip into one folder again"


class CocoYear:
    """One year's images; keys are <split><year>/<file name>, sorted within a split.

    A file of annotations is parsed as a whole and takes 2.3 times its size in memory meanwhile (about 1 GB for
    train2017); with its polygons, which are dropped as they are parsed, it would be 7 times.
    """

    def __init__(self, path: Path, year: str) -> None:
        self._root = FileRoot(path)
        self._year = year
        self._targets = CocoTargets(self._root, year)
        self.read = self._targets.read  # of an image or target
        self._source = f"coco:{self._root.path}#{year}"

    def listing(self) -> ImageTable:
        """Train, val and test, as far as they are there.

        Raises:
            UsageError: annotations that cannot be read, or images that cannot be used: all of them at once.
        """
        files = FileList(self._root)
        classes: dict[int, str] = {}
        rows: list[tuple[str, str, set[str] | None]] = []
        for split in ("train", "val"):
            for name, found in self._annotated(split, classes, files.faults):
                if key := files.add(f"{split}{self._year}/{name}", f"instances_{split}{self._year}.json"):
                    rows.append((key, split, found))
        for path in sorted((self._root.path / f"test{self._year}").glob("*.jpg")):
            if key := files.add(f"test{self._year}/{path.name}", "the folder"):
                rows.append((key, "test", None))
        declared = [classes[i] for i in sorted(classes)]
        annotated = [found is not None for _, _, found in rows]
        targets = self._targets.offered([key for key, _, _ in rows], annotated, declared, files)
        refuse(files.faults, where=f"SOURCE {self._source}", remedy=_REMEDY)
        if not rows:
            raise UsageError("the annotations name no images", where=f"SOURCE {self._source}", remedy=_REMEDY)
        keys, splits, names = zip(*rows, strict=True)
        labels = many_classes(names, declared)
        return labels.table(self._source, keys, list(files.sizes.values()), splits, *targets)

    def _annotated(self, split: str, classes: dict[int, str], faults: list[str]) -> list[tuple[str, set[str]]]:
        """(file name, classes) of one split by name; `classes` gains the categories by their ids."""
        name = f"instances_{split}{self._year}.json"
        path = f"annotations/{name}"
        if not (self._root.path / path).is_file():
            say(f"{self._source}: no {name}, so no split {split}")
            return []
        try:
            names, categories, pairs = parse_instances(self._root.read(path))
        except (OSError, ValueError, LookupError, TypeError) as error:
            faults.append(f"{name} is no file of COCO instances ({type(error).__name__}: {error})")
            return []
        for number, text in categories.items():
            if classes.setdefault(number, text) != text:
                faults.append(f"{name}: category {number} is {text!r}, but {classes[number]!r} in train")
        found: dict[int, set[str]] = {image: set() for image in names}
        for image, category in pairs:
            if image in found and category in categories:
                found[image].add(categories[category])
                continue
            absent = f"category {category}" if image in found else f"image {image}"
            faults.append(f"{name}: an annotation names {absent}, which is not listed")
        return sorted(((names[image], found[image]) for image in names), key=lambda row: row[0])


def parse_instances(data: bytes) -> tuple[dict[int, str], dict[int, str], list[tuple[int, int]]]:
    """File name by image, name by category, and (image, category) of every annotation.

    Raises:
        ValueError: broken JSON, an image or category listed twice, names that are no text.
        LookupError, TypeError: not the structure of COCO's instances.
    """
    content = from_json(data, max_bytes=MAX_BYTES, object_hook=_lean)
    names = _by_id(content["images"], "file_name")
    categories = _by_id(content["categories"], "name")
    pairs = content["annotations"]
    if not all(isinstance(pair, tuple) and all(isinstance(number, int) for number in pair) for pair in pairs):
        raise ValueError("an annotation without image_id and category_id")
    return names, categories, pairs


def _lean(found: dict[str, Any]) -> Any:
    """What is needed of one JSON object: no polygons."""
    if "image_id" in found and "category_id" in found:
        return found["image_id"], found["category_id"]
    return {name: value for name, value in found.items() if name != "segmentation"}


def _by_id(rows: Any, column: str) -> dict[int, str]:
    named = {row["id"]: row[column] for row in rows}
    if len(named) < len(rows):
        raise ValueError(f"two entries of one id among those with {column}")
    if len(set(named.values())) < len(rows):
        raise ValueError(f"two entries of one {column}")
    if not all(isinstance(i, int) and isinstance(name, str) and name for i, name in named.items()):
        raise ValueError(f"an id that is no number or a {column} that is no text")
    return named


def open_coco(text: str) -> CocoYear:
    """The year in a folder that is there.

    Raises:
        UsageError: no such folder, no annotations in it, or those of two years and none chosen.
    """
    named, year = split_part(text)
    where = f"SOURCE coco:{text}"
    path = existing(named, source=f"coco:{text}", folder=True)
    matches = (_INSTANCES.fullmatch(file.name) for file in path.glob("annotations/*.json"))
    years = sorted({match[2] for match in matches if match})
    if not years:
        raise UsageError(
            "no annotations of COCO in this folder",
            where=where,
            remedy="it needs annotations/instances_train2017.json (or val, or 2014) beside the folders of images",
        )
    if year and year not in years:
        raise unknown_name("year of COCO", year, years, where=where)
    if not year and len(years) > 1:
        raise UsageError(
            f"this folder holds the years {' and '.join(years)}", where=where, remedy=f"write coco:{named}#{years[-1]}"
        )
    return CocoYear(path, year or years[0])

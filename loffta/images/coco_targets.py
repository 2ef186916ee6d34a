"""Which dense targets a year of COCO offers, and their bytes, made of its annotations when they are read.

In:  keys of images and of targets.   Out: `<kind>/<split><year>/<file name>` for an image, and PNG or JSON for that.
Called by `coco`, and from threads: the annotations of a split are parsed once, when its first target is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from loffta.images.coco_names import COCO_STUFF
from loffta.images.coco_objects import CocoImage, Panoptic, parse_objects, parse_panoptic
from loffta.images.files import FileList, FileRoot

_STUFF = "stuffthingmaps"
_PANOPTIC = "panoptic"
_MADE = ("instances", "boxes", _PANOPTIC)
_BROKEN = (ValueError, LookupError, TypeError, AttributeError)  # what parsing raises for another structure
Parsed = TypeVar("Parsed")


class CocoTargets:
    """Instances and boxes of every annotated image; masks where the files of COCO-Stuff or of panoptic COCO are."""

    def __init__(self, root: FileRoot, year: str) -> None:
        self._root, self._year = root, year
        self._lock = threading.Lock()
        self._parsed: dict[str, Any] = {}  # by the file of annotations

    def offered(
        self, keys: list[str], annotated: list[bool], names: list[str], files: FileList
    ) -> tuple[dict[str, list[str | None]], dict[str, tuple[str, ...]]]:
        """(targets, what their classes are called).

        Args:
            annotated: whether an image of `keys` is in a split with objects.
            names: of the categories, by their ids.
        """
        targets: dict[str, list[str | None]] = {
            kind: [f"{kind}/{key}" if known else None for key, known in zip(keys, annotated, strict=True)]
            for kind in ("instances", "boxes")
        }
        if (self._root.path / _STUFF).is_dir():
            targets["mask"] = [files.companion(f"{_STUFF}/{key.removesuffix('.jpg')}.png") for key in keys]
            return targets, {"boxes": tuple(names), "mask": COCO_STUFF}
        targets["mask"], classes = self._panoptic(keys, files)
        return targets, {"boxes": tuple(names), "mask": classes}

    def read(self, key: str) -> bytes:
        """A target that is made, or a file of the root.

        Raises:
            OSError: there is no such key, or the annotations of the image are broken.
        """
        kind, _, image = key.partition("/")
        folder, _, name = image.partition("/")
        split = folder.removesuffix(self._year)
        if kind not in _MADE or split not in ("train", "val") or folder != split + self._year:
            return self._root.read(key)
        try:
            if kind == _PANOPTIC:
                return self._read_panoptic(split, name, key)
            images, categories = self._objects(split)
            if name not in images:
                raise FileNotFoundError(f"there is no {key!r}")
            return images[name].instances() if kind == "instances" else images[name].boxes(categories)
        except _BROKEN as error:
            raise OSError(f"its annotations cannot be used: {error}") from error

    def _panoptic(self, keys: list[str], files: FileList) -> tuple[list[str | None], tuple[str, ...]]:
        """(masks, classes) of the splits whose panoptic annotations and folders are there."""
        classes: tuple[str, ...] = ()
        found: dict[str, str] = {}  # mask by image
        for split in ("train", "val"):
            if not (self._root.path / self._name(_PANOPTIC, split)).is_file() or not self._folder(split):
                continue
            try:
                segments = self._segments(split)
            except (OSError, *_BROKEN) as error:
                files.faults.append(f"{self._name(_PANOPTIC, split)} is no file of panoptic COCO ({error})")
                continue
            if classes and classes != segments.classes:
                files.faults.append(f"{self._name(_PANOPTIC, split)}: other categories than in train")
            classes = segments.classes
            for key in keys:
                png = f"{key.partition('/')[2].removesuffix('.jpg')}.png"
                known = key.startswith(f"{split}{self._year}/") and png in segments.segments
                if known and files.companion(f"{self._folder(split)}/{png}"):
                    found[key] = f"{_PANOPTIC}/{split}{self._year}/{png}"
        return [found.get(key) for key in keys], classes

    def _read_panoptic(self, split: str, name: str, key: str) -> bytes:
        segments, folder = self._segments(split), self._folder(split)
        if not folder or name not in segments.segments:
            raise FileNotFoundError(f"there is no {key!r}")
        return segments.mask(name, self._root.read(f"{folder}/{name}"))

    def _name(self, kind: str, split: str) -> str:
        return f"annotations/{kind}_{split}{self._year}.json"

    def _folder(self, split: str) -> str | None:
        """Where the panoptic PNGs of a split are: the archive of annotations holds an archive of them."""
        name = f"{_PANOPTIC}_{split}{self._year}"
        return next((f for f in (name, f"annotations/{name}") if (self._root.path / f).is_dir()), None)

    def _objects(self, split: str) -> tuple[dict[str, CocoImage], dict[int, str]]:
        return self._once(self._name("instances", split), parse_objects)

    def _segments(self, split: str) -> Panoptic:
        return self._once(self._name(_PANOPTIC, split), parse_panoptic)

    def _once(self, path: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        with self._lock:
            if path not in self._parsed:
                self._parsed[path] = parse(self._root.read(path))
            found: Parsed = self._parsed[path]
            return found

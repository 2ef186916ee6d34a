"""`voc:ROOT`: a Pascal VOC year as it is unpacked; `voc:ROOT#segmentation` is the smaller set of images with masks.

ROOT holds ImageSets, JPEGImages and Annotations, or is a devkit with one year in it. An image's labels are the classes
of its objects, difficult ones too. Masks (classes) and instances (objects) are kept as paths where they exist.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.parsers import expat

from loffta.errors import UsageError, refuse, unknown_name
from loffta.images.files import FileList, FileRoot, existing, split_part
from loffta.machine.progress import say
from loffta.store.label_cells import many_classes
from loffta.store.names import text_fault
from loffta.store.table import ImageTable

PARTS = {"": "Main", "segmentation": "Segmentation"}
SPLITS = ("train", "val", "test")
TARGETS = {"mask": "SegmentationClass", "instances": "SegmentationObject"}
# What the numbers of SegmentationClass mean (VOC2012 devkit, VOCinit.m); 255 is the void around objects, to be ignored
MASK_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_NAME = ["annotation", "object", "name"]


class VocYear:
    """One year's images; keys are JPEGImages/<id>.jpg."""

    def __init__(self, path: Path, part: str) -> None:
        self._root = FileRoot(path)
        self.read = self._root.read  # of an image or target
        self._lists = f"ImageSets/{PARTS[part]}"
        self._source = f"voc:{self._root.path}" + (f"#{part}" if part else "")

    def listing(self) -> ImageTable:
        """The images of train.txt, val.txt and test.txt in the lists' order, with the classes of their annotations.

        Raises:
            UsageError: no lists, or what they name cannot be used: all of it at once.
        """
        files = FileList(self._root)
        splits: dict[str, str] = {}
        for name, split in self._splits().items():
            for place, image in self._ids(name, files.faults):
                key = files.add(f"JPEGImages/{image}.jpg", place)
                if key:
                    splits[key] = split
        ids = [key.removeprefix("JPEGImages/").removesuffix(".jpg") for key in splits]
        names = [self._classes(image, files.faults) for image in ids]
        targets = {name: [files.companion(f"{folder}/{i}.png") for i in ids] for name, folder in TARGETS.items()}
        refuse(files.faults, where=f"SOURCE {self._source}", remedy="mend these files or unpack the archive again")
        if not splits:
            raise UsageError(
                "the lists name no images", where=f"SOURCE {self._source}", remedy="unpack the archive again"
            )
        unknown = sum(found is None for found in names)
        if unknown:
            say(f"{self._source}: {unknown} of {len(names)} images have no file in Annotations, so no labels")
        return many_classes(names).table(
            self._source,
            list(splits),
            list(files.sizes.values()),
            list(splits.values()),
            targets,
            {"mask": MASK_CLASSES},
        )

    def _splits(self) -> dict[str, str]:
        """Split by list; trainval.txt only where it is all there is, else its images would be listed twice."""
        folder = self._root.path / self._lists
        lists = {split: split for split in SPLITS if (folder / f"{split}.txt").is_file()}
        if not {"train", "val"} & set(lists) and (folder / "trainval.txt").is_file():
            say(f"{self._source}: no train.txt and val.txt, so all of trainval.txt is split train")
            lists = {"trainval": "train", **lists}
        if not lists:
            raise UsageError(
                f"no lists in {self._lists}",
                where=f"SOURCE {self._source}",
                remedy=f"it needs {', '.join(f'{split}.txt' for split in SPLITS)} with an image's id per line",
            )
        return lists

    def _ids(self, name: str, faults: list[str]) -> list[tuple[str, str]]:
        """(place, id) per line of one list."""
        path = f"{self._lists}/{name}.txt"
        try:
            lines = self._root.read(path).decode("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{path} cannot be read ({error})")
            return []
        return [(f"{name}.txt line {i}", line.strip()) for i, line in enumerate(lines, start=1) if line.strip()]

    def _classes(self, image: str, faults: list[str]) -> list[str] | None:
        """The classes of one image's objects, None without an annotation."""
        path = f"Annotations/{image}.xml"
        try:
            names = object_names(self._root.read(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, expat.ExpatError) as error:
            faults.append(f"{path}: {error}")
            return None
        bad = [name for name in names if not name or text_fault(name)]
        if bad:
            faults.append(f"{path}: {bad[0]!r} cannot be a class")
        return names


def object_names(xml: bytes) -> list[str]:
    """The text of every annotation/object/name; parts of objects have names too, which are no classes.

    Raises:
        ValueError: a document type: the one way in XML to name other files or to grow without bound.
        expat.ExpatError: broken XML.
    """
    tags: list[str] = []
    names: list[str] = []

    def start(tag: str, _: dict[str, str]) -> None:
        tags.append(tag)
        if tags == _NAME:
            names.append("")

    def text(piece: str) -> None:
        if tags == _NAME:
            names[-1] += piece

    def doctype(*_: object) -> None:
        raise ValueError("it declares a document type, which no annotation needs")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _: tags.pop()
    parser.StartDoctypeDeclHandler = doctype
    parser.Parse(xml, True)
    return [name.strip() for name in names]


def open_voc(text: str) -> VocYear:
    """The year in a folder that is there, or the one year of a devkit.

    Raises:
        UsageError: no such folder or part, or not exactly one year in it.
    """
    named, part = split_part(text)
    where = f"SOURCE voc:{text}"
    path = existing(named, source=f"voc:{text}", folder=True)
    if part not in PARTS:
        raise unknown_name("part of Pascal VOC", part, ["segmentation"], where=where)
    if (path / "ImageSets").is_dir():
        return VocYear(path, part)
    years = sorted(p for folder in (path, path / "VOCdevkit") for p in folder.glob("VOC*") if _is_year(p))
    if len(years) == 1:
        return VocYear(years[0], part)
    found = f"{len(years)} years of Pascal VOC: {', '.join(p.name for p in years)}" if years else "no Pascal VOC"
    raise UsageError(
        f"this folder holds {found}",
        where=where,
        remedy="give the folder that holds ImageSets, JPEGImages and Annotations, for example VOCdevkit/VOC2012",
    )


def _is_year(path: Path) -> bool:
    return re.fullmatch(r"VOC\d{4}", path.name) is not None and (path / "ImageSets").is_dir()

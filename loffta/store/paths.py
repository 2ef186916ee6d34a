"""Every file name of a cache, spelled once. Nothing else joins these names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loffta.targets import TARGET_KINDS, TargetKind

THUMB = "thumb"
TARGETS = "targets"
NATIVE = "native"
LABELS = "labels"
_ARRAY_NAME = re.compile(r"(grid|prefix|mean)-(\d+)")
_TARGET_NAME = re.compile(rf"({'|'.join(TARGET_KINDS)})-(squash|(?:crop|view)-[0-9a-f]{{8}})")
_UNIT_NAME = re.compile(r"u(\d+)\.parquet")
_SET_NAME = re.compile(r"[^.].*\.parquet")
_OWN_FOLDER = re.compile(
    rf"{_ARRAY_NAME.pattern}(-int8)?|{_TARGET_NAME.pattern}|{'|'.join(TARGET_KINDS)}|{NATIVE}|scale|zero|damaged|\..+\.part"
)
_SHARD_PART = re.compile(r"\.c\.(\d+)\..+\.part")
_OWN_FILE = re.compile(r"zarr\.json|c(\.\d+)+|u\d+\.parquet|\..+\.part")


class UnitPaths:
    """A file per unit that says the unit is there."""

    name: str  # unique in the cache
    done_folder: Path

    def done(self, unit: int) -> Path:
        """The file that says this unit is there."""
        return self.done_folder / f"u{unit:06d}.parquet"

    def damaged(self, unit: int) -> Path:
        """Where a repair sets the done file of a damaged unit aside until the unit is written anew."""
        return self.damaged_folder / self.done(unit).name

    @property
    def damaged_folder(self) -> Path:
        """What a repair has set aside; it is there while one is under way."""
        return self.done_folder / "damaged"


@dataclass(frozen=True)
class FilePaths(UnitPaths):
    """Dense targets that are no array: the file of a unit is its own done file."""

    name: str  # "targets/native/<kind>" or "targets/boxes-<geometry>"
    done_folder: Path


@dataclass(frozen=True)
class ArrayPaths(UnitPaths):
    """One zarr array and the folder of its done files."""

    name: str  # "<store>/<kind>-<k>" or "targets/<name>"
    folder: Path  # holds zarr.json and the shards
    done_folder: Path

    @property
    def metadata(self) -> Path:
        """The array's zarr.json."""
        return self.folder / "zarr.json"

    @property
    def scales(self) -> Path:
        """The zarr group that decodes an int8 array."""
        return self.folder.with_name(f"{self.folder.name}-int8")

    @property
    def scales_metadata(self) -> Path:
        """That group's zarr.json."""
        return self.scales / "zarr.json"

    def scale_metadata(self, part: str) -> Path:
        """The zarr.json of one of the group's arrays, `scale` or `zero`."""
        return self.scales / part / "zarr.json"

    def scale_chunk(self, part: str) -> Path:
        """The one chunk of `scale` or `zero`."""
        return self.scales / part / "c.0.0"

    def shard(self, unit: int, ndim: int) -> Path:
        """The shard of one unit: a flat key, so that a shard costs one inode and no folders."""
        return self.folder / ".".join(["c", str(unit), *["0"] * (ndim - 1)])

    @staticmethod
    def unit_of_part(name: str) -> int | None:
        """The unit of a shard that is being written, by the name of its temporary file; None of other files."""
        match = _SHARD_PART.fullmatch(name)
        return int(match[1]) if match else None

    def shard_sizes(self, names: Iterable[str] | None = None) -> dict[str, int]:
        """Bytes of every shard that is there, by its name; one that a repair or a drop has just taken is left out.

        Args:
            names: of those to look at; None: all.
        """
        sizes = {}
        for name in names_in(self.folder) if names is None else names:
            if name.startswith("c."):
                with suppress(FileNotFoundError):
                    sizes[name] = (self.folder / name).stat().st_size
        return sizes


@dataclass(frozen=True)
class CachePaths:
    """The files of one cache."""

    root: Path

    @property
    def config(self) -> Path:
        """Format number, unit size, thumbnail size."""
        return self.root / "cache.json"

    @property
    def images(self) -> Path:
        """The table of images."""
        return self.root / "images.parquet"

    def is_foreign(self) -> bool:
        """Whether the root, not yet a cache, is more than a missing folder or one that a cache was begun in."""
        if not self.root.is_dir():
            return self.root.exists()
        return any(p.name != self.images.name and p.suffix != ".part" for p in self.root.iterdir())

    @property
    def stores(self) -> Path:
        """The folder of all stores."""
        return self.root / "stores"

    def store(self, store: str) -> Path:
        """One zarr group."""
        return self.stores / store

    def store_metadata(self, store: str) -> Path:
        """The group's zarr.json with the recipe in its attributes."""
        return self.store(store) / "zarr.json"

    def array(self, store: str, array: str) -> ArrayPaths:
        """One array of a store, named <kind>-<k>."""
        return ArrayPaths(f"{store}/{array}", self.store(store) / array, self.done_store(store) / array)

    def named(self, name: str) -> ArrayPaths:
        """The array of this `ArrayPaths.name`."""
        owner, _, array = name.partition("/")
        return self.target(array) if owner == TARGETS else self.array(owner, array)

    def units(self, name: str) -> UnitPaths:
        """The unit files of what has this name, an array or not."""
        return next((paths for paths in self.file_targets() if paths.name == name), None) or self.named(name)

    @property
    def done(self) -> Path:
        """The folder of all done files."""
        return self.root / "done"

    def done_store(self, store: str) -> Path:
        """The folder of a store's done files."""
        return self.done / store

    @property
    def labels(self) -> Path:
        """The folder of all sets of annotations."""
        return self.root / LABELS

    def label_set(self, name: str) -> Path:
        """One set of annotations; its name is a plain path component, see `labels.check_name`."""
        return self.labels / f"{name}.parquet"

    def label_names(self) -> list[str]:
        """The sets of annotations that there are, in order."""
        return sorted(name.removesuffix(".parquet") for name in names_in(self.labels) if _SET_NAME.fullmatch(name))

    @property
    def targets(self) -> Path:
        """The folder of all that belongs to the images."""
        return self.root / TARGETS

    def target(self, name: str) -> ArrayPaths:
        """An array that belongs to the images, not to a backbone."""
        return ArrayPaths(f"{TARGETS}/{name}", self.targets / name, self.done / TARGETS / name)

    def target_files(self, name: str) -> FilePaths:
        """Boxes over the square of one geometry, `boxes-<geometry>`."""
        return FilePaths(f"{TARGETS}/{name}", self.root / TARGETS / name)

    def native(self, kind: TargetKind) -> FilePaths:
        """Targets of one kind at their own sizes."""
        return FilePaths(f"{TARGETS}/{NATIVE}/{kind}", self.root / TARGETS / NATIVE / kind)

    def file_targets(self) -> list[FilePaths]:
        """All dense targets that are no arrays, whether they are there or not: native ones, and boxes over squares."""
        boxes = [self.target_files(found) for found in self.training_names() if found.startswith("boxes-")]
        return [*map(self.native, TARGET_KINDS), *boxes]

    def target_kinds(self) -> list[TargetKind]:
        """Kinds of dense targets of which a unit is there."""
        return [
            kind for kind in TARGET_KINDS if any(map(_UNIT_NAME.fullmatch, names_in(self.native(kind).done_folder)))
        ]

    def training_names(self) -> list[str]:
        """Dense targets over the squares of features, `<kind>-<geometry>`, of which anything is left, in order."""
        names = {*names_in(self.root / TARGETS), *names_in(self.done / TARGETS)}
        return sorted(name for name in names if _TARGET_NAME.fullmatch(name))

    def target_arrays(self) -> list[str]:
        """Those of `training_names` that are arrays, and are there."""
        return sorted(name for name in _with_metadata(self.root / TARGETS) if _TARGET_NAME.fullmatch(name))

    def store_names(self) -> list[str]:
        """The stores that exist, in order."""
        return sorted(_with_metadata(self.stores))

    def array_names(self, store: str) -> list[str]:
        """The arrays of a store that exist, as <kind>-<k>, by kind and then number."""
        return _in_order(_with_metadata(self.store(store)))

    def remains(self) -> dict[str, list[str]]:
        """Stores of which anything is left, and so of their arrays, whatever was dropped, purged or damaged."""
        names = {name for name in names_in(self.stores) + names_in(self.done) if not name.endswith(".part")}
        found = {}
        for name in sorted(names - {TARGETS}):
            arrays = names_in(self.store(name)) + names_in(self.done_store(name))
            found[name] = _in_order(array.removesuffix("-int8") for array in arrays)
        return found

    def done_arrays(self) -> list[ArrayPaths]:
        """Every array that has a folder of done files, whether it is there itself or not; by name."""
        stores = sorted(names_in(self.done))
        return [self.named(f"{store}/{name}") for store in stores for name in sorted(names_in(self.done / store))]


def _in_order(names: Iterable[str]) -> list[str]:
    """Those that are <kind>-<k>, each once, by kind and then number."""
    found = [match for name in {*names} if (match := _ARRAY_NAME.fullmatch(name))]
    return [match.group(0) for match in sorted(found, key=lambda m: (m.group(1), int(m.group(2))))]


def is_own(path: Path) -> bool:
    """Whether something inside a store or its done files has a name that loffta gives there."""
    pattern = _OWN_FOLDER if path.is_dir() else _OWN_FILE
    return pattern.fullmatch(path.name) is not None


def safe_name(name: str) -> str:
    """What a store's folder says of its backbone, one plain path component; the hash behind it tells stores apart.

    Not `words.file_name`, whose digest would be a second one, and whose names older caches do not have.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:100] or "backbone"


def names_in(folder: Path) -> list[str]:
    """What a folder holds; nothing where there is none. `glob` would take one that may not be read for empty."""
    try:
        with os.scandir(folder) as entries:  # a fifth of what a Path for each of 100,000 takes
            return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _with_metadata(folder: Path) -> Iterator[str]:
    """The names in a folder that are folders with a zarr.json."""
    for name in names_in(folder):
        with suppress(FileNotFoundError, NotADirectoryError):
            (folder / name / "zarr.json").stat()
            yield name

"""Dense targets of a cache: at their own sizes, and over the squares that features are of.

In: an open cache.   Out: NativeTargets for evaluation, boxes of squares and, as any other array, maps of squares for
training. `extraction` writes them. How they lie on disk: docs/store-format.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loffta.errors import DamageFound, LofftaError
from loffta.store.arrow import to_numbers
from loffta.store.ledger import READ_THREADS, done_units
from loffta.store.metadata import ArrayLayout, image_layout
from loffta.store.paths import FilePaths
from loffta.store.reads import REPAIR, reason
from loffta.store.target_codec import read_target
from loffta.store.target_files import BOX_TYPES, NATIVE_TYPES, OK, check_rows, open_unit, read_unit
from loffta.targets import IGNORE, BoxList, NativeTarget, TargetKind
from loffta.words import brief

if TYPE_CHECKING:
    from loffta.store.cache import Cache, CachedArray, Store

_SMALL = ("row", "status", "reason", "height", "width", "n_objects", "largest")


@dataclass(frozen=True)
class TargetInfo:
    """What a kind of targets is made of: the same for all of its units and forms."""

    kind: TargetKind
    classes: tuple[str, ...] = ()  # of masks and boxes
    palette: tuple[tuple[int, ...], ...] | None = None  # what turned colours into classes: red, green, blue, class

    def to_json(self) -> dict[str, Any]:
        """As in the metadata of units."""
        palette = None if self.palette is None else [list(entry) for entry in self.palette]
        return {"kind": self.kind, "classes": list(self.classes), "palette": palette}

    @classmethod
    def of(cls, made: Mapping[str, Any]) -> TargetInfo:
        """From a unit's metadata; ValueError, KeyError or TypeError where they are none."""
        classes, palette = made["classes"], made.get("palette")
        if not all(isinstance(name, str) for name in classes):
            raise ValueError("its classes are no names")
        entries = None if palette is None else tuple(tuple(map(int, entry)) for entry in palette)
        return cls(made["kind"], tuple(classes), entries)


def geometry_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which part of an image a store's features show: not its size in pixels, nor the interpolation."""
    if recipe["view"]:
        return {"view": recipe["view"]}  # it makes its own crop, from the whole image
    found = recipe["input"]
    names = ("resize", "crop_pct", "crop_mode") if found.get("resize") == "crop" else ()
    return {name: found[name] for name in names} or {"resize": "squash"}


def geometry_name(geometry: Mapping[str, Any]) -> str:
    """`squash`, `crop-<hash8>` or `view-<hash8>`; the hash as a store's has it, of the geometry."""
    kind = "view" if "view" in geometry else str(geometry["resize"])
    if kind == "squash":
        return kind
    text = json.dumps(geometry, sort_keys=True, separators=(",", ":"))
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def training_layout(
    info: TargetInfo, geometry: Mapping[str, Any], px: int, n_rows: int, unit_images: int
) -> ArrayLayout:
    """The array of maps over the square of one geometry, [n, S, S]: uint8 masks, of over 255 classes uint16."""
    wide = len(info.classes) > IGNORE
    dtype = {"mask": "uint16" if wide else "uint8", "instances": "uint16", "depth": "float32"}[info.kind]
    attributes = {"geometry": dict(geometry), "classes": list(info.classes)}
    return image_layout(n_rows, (px, px), dtype, unit_images, kind=info.kind, **attributes)


def training_fault(name: str, layout: ArrayLayout, unit_images: int) -> str | None:
    """Whether a zarr.json can be that of `targets/<kind>-<geometry>`."""
    said = layout.attributes
    try:
        info = TargetInfo.of({**said, "palette": None})
        due = training_layout(info, said["geometry"], layout.shape[1], layout.shape[0], unit_images)
        if due != layout or name != f"{info.kind}-{geometry_name(said['geometry'])}":
            raise ValueError("it is the array of other targets, or of another form")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return reason(error)
    return None


class NativeTargets:
    """The targets of one kind at the annotation's own sizes, as of the moment when they were opened."""

    def __init__(self, cache: Cache, kind: TargetKind) -> None:
        """Reads what is said of every row, no target.

        Raises:
            LofftaError: the cache has no targets of this kind.
            DamageFound: a unit cannot be read, or is one of other images or other classes.
        """
        self.paths = cache.paths.native(kind)
        self._unit_images = cache.unit_images
        n_rows = len(cache.table)
        self.status: NDArray[np.str_] = np.full(n_rows, "", "<U7")  # ok, missing or bad; empty: not extracted yet
        self.reasons: dict[int, str] = {}  # of rows that are missing or bad
        self.sizes = np.zeros((n_rows, 2), np.int64)  # height and width in pixels
        self.n_objects = np.zeros(n_rows, np.int64)  # boxes, or instances
        self._largest = -1
        units = done_units(self.paths)
        if not units:
            raise missing_targets(cache, kind)
        with ThreadPoolExecutor(READ_THREADS) as pool:
            read = list(pool.map(partial(read_unit, columns=_SMALL, types=NATIVE_TYPES), map(self.paths.done, units)))
        self.info = read_info(self.paths, units[0], read[0][1])
        for unit, (table, made) in zip(units, read, strict=True):
            path = self.paths.done(unit)
            rows = to_numbers(table["row"])
            check_rows(path, unit, self._unit_images, rows, made, cache.table)
            if read_info(self.paths, unit, made) != self.info:
                raise DamageFound("its classes are not those of the other units", where=path, remedy=REPAIR)
            known = rows < n_rows  # the set may have grown since the table was read
            rows, statuses = rows[known], np.array(table["status"].to_pylist())[known]
            self.status[rows] = statuses
            for i, name in enumerate(("height", "width")):
                self.sizes[rows, i] = to_numbers(table[name])[known]
            self.n_objects[rows] = to_numbers(table["n_objects"])[known]
            self._largest = max(self._largest, int(to_numbers(table["largest"])[known].max(initial=-1)))
            reasons: list[Any] = table["reason"].to_pylist()
            self.reasons |= {int(rows[i]): reasons[i] for i in np.flatnonzero(statuses != OK)}

    @property
    def kind(self) -> TargetKind:
        """Of what they are."""
        return self.info.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """Of masks and boxes, by number; 0, 1, ... up to the largest that there is where the set names none."""
        return self.info.classes or tuple(map(str, range(self._largest + 1)))

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> list[NativeTarget | None]:
        """The targets of some rows, in their order; None where there is none.

        Raises:
            DamageFound: the bytes on disk are no target.
        """
        found: dict[int, NativeTarget] = {}
        wanted = {int(row) for row in rows if self.status[int(row)] == OK}
        for unit in sorted({row // self._unit_images for row in wanted}):
            found |= self._read_unit(unit, {row for row in wanted if row // self._unit_images == unit})
        return [found.get(int(row)) for row in rows]

    def hashes(self, rows: Sequence[int]) -> dict[int, str]:
        """BLAKE2b-128 of the bytes that the source had, of some rows."""
        found: dict[int, str] = {}
        for unit in sorted({row // self._unit_images for row in rows}):
            table, _ = read_unit(self.paths.done(unit), ("row", "hash"), NATIVE_TYPES)
            found |= dict(zip(to_numbers(table["row"]).tolist(), map(str, table["hash"].to_pylist()), strict=True))
        return {row: found[row] for row in rows}

    def _read_unit(self, unit: int, wanted: set[int]) -> dict[int, NativeTarget]:
        found: dict[int, NativeTarget] = {}
        with open_unit(self.paths.done(unit)) as file:
            listed = to_numbers(file.read(columns=["row"], use_threads=False)["row"])
            first = 0
            for group in range(file.metadata.num_row_groups):
                here = listed[first : (first := first + file.metadata.row_group(group).num_rows)]
                if not wanted.intersection(here.tolist()):
                    continue
                table = file.read_row_group(group, columns=["data"], use_threads=False)
                for row, data in zip(here.tolist(), table["data"], strict=True):
                    if row in wanted:
                        height, width = self.sizes[row].tolist()
                        found[row] = read_target(self.kind, height, width, data.as_py())
        return found


def read_info(paths: FilePaths, unit: int, made: Mapping[str, Any]) -> TargetInfo:
    """What a unit says of its targets; DamageFound where it is none of this folder."""
    try:
        info = TargetInfo.of(made)
        if paths.name.rpartition("/")[2].partition("-")[0] != info.kind:
            raise ValueError(f"it holds {brief(info.kind)}")
        return info
    except (ValueError, KeyError, TypeError) as error:
        raise DamageFound(f"cannot be read ({reason(error)})", where=paths.done(unit), remedy=REPAIR) from error


class BoxTargets:
    """The boxes over the square of one geometry, all of them, as of the moment when they were opened."""

    def __init__(self, cache: Cache, geometry: str) -> None:
        """Reads them: 20 MB for COCO.

        Raises:
            LofftaError: the cache has none.
            DamageFound: a unit cannot be read, or is one of other images or other classes.
        """
        paths = self.paths = cache.paths.target_files(f"boxes-{geometry}")
        units = done_units(paths)
        if not units:
            raise missing_targets(cache, "boxes")
        with ThreadPoolExecutor(READ_THREADS) as pool:
            read = list(pool.map(partial(read_unit, columns=[*BOX_TYPES], types=BOX_TYPES), map(paths.done, units)))
        self.info = read_info(paths, units[0], read[0][1])
        n_rows = len(cache.table)
        self.ready = np.zeros(n_rows, np.bool_)  # per row: its boxes are known, though there may be none
        boxes: dict[int, BoxList] = {}
        for unit, (table, made) in zip(units, read, strict=True):
            path = paths.done(unit)
            check_rows(path, unit, cache.unit_images, to_numbers(table["row"]), made, cache.table)
            if read_info(paths, unit, made) != self.info:
                raise DamageFound("its classes are not those of the other units", where=path, remedy=REPAIR)
            for cells in table.to_pylist():
                if cells["row"] < n_rows and cells["status"] == OK:
                    boxes[cells["row"]] = _box_list(cells)
        self.ready[list(boxes)] = True
        self._boxes = boxes

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the boxes, by number."""
        return self.info.classes

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> list[BoxList]:
        """The boxes of some rows, in fractions of the square; KeyError where they are not there."""
        return [self._boxes[int(row)] for row in rows]


def _box_list(cells: Mapping[str, Any]) -> BoxList:
    corners = np.array(cells["corners"], np.float32).reshape(-1, 4)
    return BoxList(corners, np.array(cells["classes"], np.int64), np.array(cells["crowd"], np.bool_))


def training_target(cache: Cache, kind: TargetKind, store: Store) -> CachedArray | BoxTargets:
    """The targets of one kind over the squares that a store's features are of.

    Raises:
        LofftaError: the cache has none for them.
        DamageFound: they are not as they were written.
    """
    geometry = geometry_name(geometry_of(store.info.recipe))
    if kind == "boxes":
        return BoxTargets(cache, geometry)
    if not cache.paths.target(f"{kind}-{geometry}").metadata.exists():
        raise missing_targets(cache, kind, store.name)
    return cache.target_array(f"{kind}-{geometry}")


def missing_targets(cache: Cache, kind: TargetKind, store: str | None = None) -> LofftaError:
    """The error where there are no targets."""
    known = ", ".join(cache.paths.target_kinds()) or "none"
    of = f" for the squares of store {store}" if store else ""
    return LofftaError(
        f"the cache has no {kind}{of}; its dense targets: {known}",
        where=cache.paths.root,
        remedy=f"run the `loffta extract` that made it with --targets {kind}: it adds them and touches no feature",
    )

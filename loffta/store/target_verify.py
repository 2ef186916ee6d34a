"""Finds damage in dense targets that are no arrays: units of native ones, and of boxes over squares. Reads only.

The pages of their files have checksums of their own; what a page holds is decoded where every byte is asked for.
Called by `verify`.
"""

from __future__ import annotations

from loffta.errors import DamageFound
from loffta.store.arrow import to_numbers
from loffta.store.cache import Cache
from loffta.store.ledger import done_units
from loffta.store.paths import NATIVE, FilePaths
from loffta.store.reads import REPAIR
from loffta.store.target_codec import count_objects, largest_class, read_target
from loffta.store.target_files import (
    BAD,
    BOX_TYPES,
    MISSING,
    NATIVE_TYPES,
    OK,
    check_rows,
    open_unit,
    read_made,
    read_unit,
)
from loffta.store.targets import TargetInfo, read_info

_SMALL = [name for name in NATIVE_TYPES if name != "data"]


def check_target_unit(cache: Cache, paths: FilePaths, unit: int, *, deep: bool) -> None:
    """Raises DamageFound for the first fault of a unit.

    Args:
        deep: also decodes every native target; without it, none of their bytes are read.
    """
    path = paths.done(unit)
    is_native = f"/{NATIVE}/" in paths.name
    try:
        types = NATIVE_TYPES if is_native else BOX_TYPES
        table, made = read_unit(path, _SMALL if is_native else [*types], types)
        check_rows(path, unit, cache.unit_images, to_numbers(table["row"]), made, cache.table)
        info = read_info(paths, unit, made)
        if info != _first_info(paths):
            raise ValueError("its classes are not those of the first unit")
        if not {OK, MISSING, BAD} >= {*table["status"].to_pylist()}:
            raise ValueError("it has a status that nobody knows")
        if is_native and deep:
            _decode(paths, unit, info)
    except FileNotFoundError:  # a drop, or another repair
        return
    except ValueError as error:
        raise DamageFound(str(error), where=path, remedy=REPAIR) from error


def _first_info(paths: FilePaths) -> TargetInfo:
    first = done_units(paths)[0]
    return read_info(paths, first, read_made(paths.done(first)))


def _decode(paths: FilePaths, unit: int, info: TargetInfo) -> None:
    """Raises ValueError, or DamageFound, where a target is none, or not the one that the row speaks of."""
    with open_unit(paths.done(unit)) as file:
        for group in range(file.metadata.num_row_groups):
            for cells in file.read_row_group(group, use_threads=False).to_pylist():
                if cells["status"] != OK:
                    continue
                try:
                    target = read_target(info.kind, cells["height"], cells["width"], cells["data"])
                except ValueError as error:
                    raise ValueError(f"row {cells['row']}: {error}") from error
                if (count_objects(target), largest_class(target)) != (cells["n_objects"], cells["largest"]):
                    raise ValueError(f"row {cells['row']}: it has other objects or classes than were counted")

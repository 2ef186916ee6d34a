"""Which dense targets an extraction writes, in which forms: at their own sizes, and a square for every geometry.

In: `--targets`, the image set's listing and the geometries of the stores.   Out: Dense, whose arrays and files have a
place. Called by `begin` and by `repair`; `target_writer` fills them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loffta.config import ExtractConfig
from loffta.errors import DamageFound, LofftaError, UsageError
from loffta.files.durable import create_file
from loffta.images.geometry import PixelGeometry, View
from loffta.images.palette import read_palette
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import done_units
from loffta.store.metadata import ArrayLayout
from loffta.store.table import ImageTable
from loffta.store.target_files import BOX_TYPES, NATIVE_TYPES, UnitFiles, read_made
from loffta.store.targets import TargetInfo, geometry_name, geometry_of, read_info, training_layout
from loffta.targets import TargetKind

DEFAULT_PX = 224  # what most backbones see


@dataclass(frozen=True)
class Square:
    """One kind of targets over the square of one geometry."""

    geometry: PixelGeometry  # of the targets: its side is theirs
    form: CachedArray | UnitFiles


@dataclass(frozen=True)
class Dense:
    """One kind of targets that is to be written."""

    info: TargetInfo
    native: UnitFiles
    squares: tuple[Square, ...]

    @property
    def forms(self) -> list[CachedArray | UnitFiles]:
        """All that is written of it."""
        return [self.native, *(square.form for square in self.squares)]


def check_offered(config: ExtractConfig, listing: ImageTable) -> None:
    """Raises UsageError where the image set has no targets of a kind that is asked for."""
    for kind in config.targets:
        if kind not in listing.targets:
            raise UsageError(
                f"this image set has no target {kind!r}; it has {', '.join(listing.targets) or 'none'}",
                where=f"--targets, SOURCE {config.source}",
                remedy=f"leave it out; in a table, a column {kind!r} says where they are",
            )
    if config.palette is not None and "mask" not in config.targets:
        raise UsageError("--palette is for masks", where="--palette", remedy="add --targets mask, or leave it out")
    if config.palette is not None:
        read_palette(config.palette)


def prepare_targets(
    cache: Cache, config: ExtractConfig, listing: ImageTable, recipes: Iterable[Mapping[str, Any]]
) -> list[Dense]:
    """Finds or makes a place for every kind and form that `config` asks for.

    Args:
        recipes: of the stores whose geometries the squares have.
    Raises:
        LofftaError: what is there was made with other classes, colours or another size.
    """
    geometries = {geometry_name(geometry): geometry for geometry in map(geometry_of, recipes)}
    found = []
    for kind in config.targets:
        info = _agreed(cache, _asked(config, listing, kind))
        px = config.target_px or _px_there(cache) or DEFAULT_PX
        squares = [_square(cache, info, name, geometry, px, config) for name, geometry in geometries.items()]
        found.append(Dense(info, native_files(cache, info), tuple(squares)))
    return found


def native_files(cache: Cache, info: TargetInfo) -> UnitFiles:
    """The files of targets at their own sizes."""
    return UnitFiles(cache.paths.native(info.kind), cache.unit_images, NATIVE_TYPES, info.to_json())


def box_square(cache: Cache, info: TargetInfo, geometry: Mapping[str, Any], px: int) -> Square:
    """Boxes over the square of one geometry."""
    paths = cache.paths.target_files(f"boxes-{geometry_name(geometry)}")
    facts = {**info.to_json(), "geometry": dict(geometry), "px": px}
    return Square(pixel_geometry(geometry, px), UnitFiles(paths, cache.unit_images, BOX_TYPES, facts))


def pixel_geometry(geometry: Mapping[str, Any], px: int) -> PixelGeometry:
    """What `square_target` goes by."""
    view = geometry.get("view")
    return PixelGeometry(px, **({"view": View(view["seed"], view["index"])} if view else geometry))


def stated_info(cache: Cache, kind: TargetKind) -> TargetInfo | None:
    """What the units that are there say of a kind; None where none can be read."""
    paths = cache.paths.native(kind)
    for unit in done_units(paths):
        try:
            return read_info(paths, unit, read_made(paths.done(unit)))
        except (DamageFound, FileNotFoundError):  # `verify` names it
            continue
    return None


def _asked(config: ExtractConfig, listing: ImageTable, kind: TargetKind) -> TargetInfo:
    """What the image set and the palette say."""
    if kind == "mask" and config.palette is not None:
        palette = read_palette(config.palette)
        colours = tuple((*colour, number) for colour, number in palette.colours.items())
        return TargetInfo(kind, palette.classes, colours)
    return TargetInfo(kind, listing.target_classes.get(kind, ()))


def _agreed(cache: Cache, asked: TargetInfo) -> TargetInfo:
    """The same as what is there was made with, whose palette need not be given again."""
    there = stated_info(cache, asked.kind)
    if there is None or there == asked or (there.palette is not None and asked.palette is None):
        return there or asked
    raise _other_targets(cache, asked, there.classes)


def _other_targets(cache: Cache, asked: TargetInfo, classes: Sequence[str]) -> LofftaError:
    pairs = zip((*classes, "none"), (*asked.classes, "none"), strict=False)
    first = next((f"class {i} is {a!r} there and {b!r} now" for i, (a, b) in enumerate(pairs) if a != b), "the colours")
    drop = shlex.join(["loffta", "drop", str(cache.paths.root), f"targets:{asked.kind}", "--yes"])
    return LofftaError(
        f"the targets {asked.kind!r} of this cache were made with other classes or colours: {first}",
        where=cache.paths.native(asked.kind).done_folder,
        remedy=f"to make them anew, which touches no feature: {drop}\n    then the same command again",
    )


def _square(
    cache: Cache, info: TargetInfo, name: str, geometry: Mapping[str, Any], px: int, config: ExtractConfig
) -> Square:
    if info.kind == "boxes":
        return box_square(cache, info, geometry, px)
    layout = training_layout(info, geometry, px, len(cache.table), cache.unit_images)
    paths = cache.paths.target(f"{info.kind}-{name}")
    if not paths.metadata.exists():  # a finished cache is not even touched
        create_file(paths.metadata, layout.to_json())
    array = cache.target_array(f"{info.kind}-{name}")
    _refuse_other_size(cache, array.layout, f"{info.kind}-{name}", config)
    if array.layout.attributes != layout.attributes:
        raise _other_targets(cache, info, array.layout.attributes["classes"])
    return Square(pixel_geometry(geometry, array.layout.shape[1]), cache.extend(array))


def _refuse_other_size(cache: Cache, layout: ArrayLayout, name: str, config: ExtractConfig) -> None:
    px = layout.shape[1]
    if config.target_px not in (None, px):
        drop = shlex.join(["loffta", "drop", str(cache.paths.root), f"targets:{name}", "--yes"])
        raise UsageError(
            f"--target-px {config.target_px}, but the squares that are there have {px} pixels a side",
            where=cache.paths.target(name).metadata,
            remedy=f"leave the option out, or give these up: {drop}\n    then the same command makes them anew",
        )


def _px_there(cache: Cache) -> int | None:
    """The side that squares of this cache have, whatever their kind."""
    for name in cache.paths.target_arrays():
        return int(cache.target_array(name).layout.shape[1])
    return None

"""A cache: one image set, its stores and what of them is there.

`Cache.open` reads, `Cache.create` makes or grows; both are safe while other processes do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from loffta.errors import DamageFound, LofftaError
from loffta.files.durable import create_file, replace_file
from loffta.look import OLD, Look
from loffta.store.cache_file import DEFAULT_UNIT_IMAGES, Settings, make_files, read_settings, refuse_other_unit
from loffta.store.checks import array_fault, store_fault, target_fault
from loffta.store.follow import Read, follow
from loffta.store.growth import Gone
from loffta.store.label_sets import labelled, said_by_source
from loffta.store.labels import SOURCE
from loffta.store.ledger import Ledger, check_made, listed_rows, read_ledger, settles
from loffta.store.metadata import ArrayLayout, array_dtype, grid_layout, image_layout, read_layout
from loffta.store.numbers import place_array
from loffta.store.paths import THUMB, ArrayPaths, CachePaths
from loffta.store.reads import REPAIR, read_file, reason
from loffta.store.recipe import StoreInfo
from loffta.store.scales import Scales, read_scales
from loffta.store.table import ImageTable
from loffta.store.targets import BoxTargets, NativeTargets, training_fault, training_target
from loffta.store.units import count_units, rows_of
from loffta.targets import TargetKind
from loffta.tokens import Kind, TokenSpec

MAX_THUMB_PX = 112


@dataclass(frozen=True)
class CachedArray:
    """One array of a cache."""

    paths: ArrayPaths
    layout: ArrayLayout
    images: ImageTable | None = field(default=None, compare=False, repr=False, kw_only=True)  # whose features they are

    @property
    def taps(self) -> tuple[str, ...]:
        """Taps along axis 1."""
        return self.layout.taps

    @property
    def kind(self) -> str:
        """grid, prefix, mean, or a target's name."""
        return str(self.layout.attributes["kind"])

    @cached_property
    def ledger(self) -> Ledger:
        """The rows that are there, as of the first look.

        Raises:
            DamageFound: a done file is damaged, or is one of another array or other images.
        """
        return read_ledger(self.paths, self.layout, self.images)

    def forget_ledger(self) -> None:
        """The next look at `ledger` reads it anew."""
        self.__dict__.pop("ledger", None)

    @cached_property
    def scales(self) -> Scales | None:
        """What decodes an int8 array; None for others.

        Raises:
            DamageFound: they are gone or damaged, or finished units were written with others.
        """
        if self.layout.dtype != np.int8:
            return None
        scales = read_scales(self.paths, self.layout)
        if self.ledger.scales - {scales.digest}:
            raise DamageFound(
                "the scales of this int8 array are not those that its units were written with",
                where=self.paths.scales,
                remedy="run `loffta verify CACHE` to list the units, with --repair to write them anew",
            )
        return scales

    def has_unit(self, unit: int, rows: Sequence[int]) -> bool:
        """Whether a done file settles all of `rows`; a part-filled unit of a grown set is not there."""
        return settles(self.paths, unit, rows, self.layout.unit_images)

    def listed(self, unit: int) -> list[int]:
        """Rows that the done file of a unit lists, none where there is none."""
        return listed_rows(self.paths, unit)


@dataclass(frozen=True)
class Store:
    """One recipe's arrays."""

    name: str
    info: StoreInfo
    arrays: tuple[CachedArray, ...]

    @property
    def hash(self) -> str:
        """The recipe's first 8 hex digits."""
        return self.name.rsplit("-", 1)[1]

    def find(self, kind: str, tap: str) -> CachedArray | None:
        """The array that holds one kind of one tap."""
        return next((a for a in self.arrays if a.kind == kind and tap in a.taps), None)

    def stored_taps(self, kind: str | None = None) -> tuple[str, ...]:
        """Taps that have an array, in depth order."""
        held = {tap for array in self.arrays if kind in (None, array.kind) for tap in array.taps}
        return tuple(spec.tap for spec in self.info.taps if spec.tap in held)


@dataclass(frozen=True)
class Cache:
    """An open cache; reread it (`Cache.open`) to see what other processes added."""

    paths: CachePaths
    unit_images: int
    thumb_px: int
    table: ImageTable  # with what is said of the images now
    look: Look = OLD  # of extractions that name none
    labels: str | None = None  # the set of annotations that the table shows; None: as in images.parquet
    first_table: ImageTable | None = None  # as in images.parquet; None: `table` is that

    @classmethod
    def open(cls, root: Path) -> Cache:
        """Opens a cache that is there.

        Raises:
            LofftaError: there is none, or it is of a newer format.
            DamageFound: cache.json or images.parquet is not as it was written.
        """
        paths = CachePaths(root)
        settings = read_settings(paths)
        images = ImageTable.read(paths.images)
        said = said_by_source(paths, images)
        table, labels = (images, None) if said is None else (said, SOURCE)
        return cls(paths, settings.unit_images, settings.thumb_px, table, settings.look, labels, images)

    @classmethod
    def create(
        cls,
        root: Path,
        listing: ImageTable,
        *,
        unit_images: int | None,
        thumb_px: int,
        look: Look = OLD,
        read: Read | None = None,
        gone: Gone | None = None,
    ) -> Cache:
        """Makes a cache, or opens the one that is there, which follows `listing`.

        Args:
            unit_images: rows per unit, a power of two; None takes the cache's own, or 256 for a new one.
            thumb_px: side of the thumbnails of a new cache.
            look: of a new cache.
            read, gone: as in `follow`.
        Raises:
            LofftaError: the folder holds something else, the unit differs, or old images are gone or altered.
        """
        paths = CachePaths(root)
        if not paths.config.exists():
            make_files(paths, listing, Settings(unit_images or DEFAULT_UNIT_IMAGES, thumb_px, look))
        cache = cls.open(root)
        refuse_other_unit(paths, unit_images, cache.unit_images)
        return cls.open(root) if follow(cache, listing, read, gone) else cache

    @property
    def images(self) -> ImageTable:
        """What images.parquet says: of each image what its set said when it came."""
        return self.table if self.first_table is None else self.first_table

    def as_first_said(self) -> Cache:
        """The same cache with what images.parquet says, which never changes, whatever is said now."""
        return replace(self, table=self.images, labels=None)

    def with_labels(self, name_or_file: str | Path) -> Cache:
        """The same images with what a set of annotations of this cache, or a file, says of them; see `labelled`."""
        return labelled(self, str(name_or_file))

    @property
    def n_units(self) -> int:
        """Units that cover the image set."""
        return count_units(len(self.table), self.unit_images)

    def rows_of_unit(self, unit: int) -> range:
        """Rows of one unit."""
        return rows_of(unit, len(self.table), self.unit_images)

    def stores(self) -> list[Store]:
        """All stores, by name; read anew at each call."""
        return [self.store(name) for name in self.paths.store_names()]

    def arrays(self) -> list[CachedArray]:
        """Every array that there is: thumbnails, dense targets, then those of all stores; read anew at each call."""
        thumbs = [self.thumbs()] if self.paths.target(THUMB).metadata.exists() else []
        targets = map(self.target_array, self.paths.target_arrays())
        return [*thumbs, *targets, *(array for store in self.stores() for array in store.arrays)]

    def store(self, name: str) -> Store:
        """One store by its full name.

        Raises:
            DamageFound: its metadata are not those that it was made with.
        """
        info = self.store_info(name)
        arrays = [self.array(name, array, info) for array in self.paths.array_names(name)]
        return Store(name, info, tuple(arrays))

    def store_info(self, name: str) -> StoreInfo:
        """What a store says of itself; DamageFound where it cannot be read or belongs to another folder."""
        path = self.paths.store_metadata(name)
        try:
            info = StoreInfo.from_json(read_file(path))
            if (fault := store_fault(name, info)) is not None:
                raise ValueError(fault)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise DamageFound(
                f"cannot read the store's metadata ({type(error).__name__}: {reason(error)})",
                where=path,
                remedy="was it written by loffta? Restore it from a backup, or `loffta drop` the store",
            ) from error
        return info

    def array(self, store: str, name: str, info: StoreInfo) -> CachedArray:
        """One array of a store; DamageFound where its zarr.json is not the one that it was written with."""
        array = self.read_array(self.paths.array(store, name))
        fault = array_fault(name, array.layout, info, self.unit_images)
        if fault is not None:
            raise DamageFound(f"the zarr.json was changed: {fault}", where=array.paths.metadata, remedy=REPAIR)
        check_made(array.paths, array.layout)
        return array

    def create_store(self, info: StoreInfo) -> Store:
        """Makes the store of `info`, or opens it when another process was first."""
        create_file(self.paths.store_metadata(info.name), info.to_json())
        return self.store(info.name)

    def add_arrays(self, store: Store, kind: Kind, specs: Sequence[TokenSpec], dtype: str) -> list[CachedArray]:
        """Arrays of one kind for taps that have none yet: one per shape, taps of one shape side by side.

        Args:
            dtype: the store's; see `array_dtype`.
        """
        groups: dict[tuple[int, ...], list[str]] = {}
        for spec in specs:
            if store.find(kind, spec.tap) is None and 0 not in spec.shape(kind):
                groups.setdefault(spec.shape(kind), []).append(spec.tap)
        make, stored_as = grid_layout if kind == "grid" else image_layout, array_dtype(kind, dtype)
        layouts = [
            make(len(self.table), (len(taps), *shape), stored_as, self.unit_images, kind=kind, taps=taps)
            for shape, taps in groups.items()
        ]
        return [self.read_array(place_array(self, store.name, layout)) for layout in layouts]

    @property
    def thumb_layout(self) -> ArrayLayout:
        """What the thumbnails' zarr.json must say: the cache knows all of it."""
        shape = (self.thumb_px, self.thumb_px, 3)
        return image_layout(len(self.table), shape, np.uint8, self.unit_images, kind=THUMB)

    def thumbs(self, *, create: bool = False) -> CachedArray:
        """The thumbnails, [n, T, T, 3] uint8."""
        paths, layout = self.paths.target(THUMB), self.thumb_layout
        if create:
            create_file(paths.metadata, layout.to_json())
        elif not paths.metadata.exists():
            return CachedArray(paths, layout, images=self.table)  # purged; it says nothing that the cache does not know
        array = self.read_array(paths)
        if (fault := target_fault(array.layout, layout)) is not None:
            raise DamageFound(f"the zarr.json was changed: {fault}", where=paths.metadata, remedy=REPAIR)
        return array

    def target_kinds(self) -> list[TargetKind]:
        """Kinds of dense targets that there are."""
        return self.paths.target_kinds()

    def native(self, kind: TargetKind) -> NativeTargets:
        """The targets of one kind at their own sizes, as they are now; errors as NativeTargets."""
        return NativeTargets(self, kind)

    def training_target(self, kind: TargetKind, store: Store) -> CachedArray | BoxTargets:
        """The targets of one kind over the squares of a store's features; errors as `targets.training_target`."""
        return training_target(self, kind, store)

    def target_array(self, name: str) -> CachedArray:
        """Maps over the squares of one geometry, `<kind>-<geometry>`; DamageFound where its zarr.json is another's."""
        array = self.read_array(self.paths.target(name))
        if (fault := training_fault(name, array.layout, self.unit_images)) is not None:
            raise DamageFound(f"the zarr.json was changed: {fault}", where=array.paths.metadata, remedy=REPAIR)
        check_made(array.paths, array.layout)
        return array

    def extend(self, array: CachedArray) -> CachedArray:
        """The array with as many rows as the image set has now; its old shards stay as they are."""
        if array.layout.shape[0] < len(self.table):
            array = self.read_array(array.paths)  # as it is now: another process may have grown it further
        if array.layout.shape[0] >= len(self.table):
            return array
        array.layout.refuse_packed(array.paths.metadata)
        layout = array.layout.resized(len(self.table))
        replace_file(array.paths.metadata, layout.to_json())
        return CachedArray(array.paths, layout, images=self.table)

    def read_array(self, paths: ArrayPaths) -> CachedArray:
        """An array as its zarr.json describes it, with the rows that the table of images has."""
        layout = read_layout(paths.metadata)
        if layout is None:
            raise LofftaError(
                "an array of this cache has been rewritten in another encoding",
                where=paths.metadata,
                remedy="restore it, or drop the store and extract it again",
            )
        if layout.shape[0] > len(self.table):  # the set has grown since the table was read: this is the view before
            layout = layout.resized(self._old_rows(layout, paths))
        return CachedArray(paths, layout, images=self.table)

    def _old_rows(self, layout: ArrayLayout, paths: ArrayPaths) -> int:
        n_rows = len(ImageTable.read(self.paths.images))
        if layout.shape[0] > n_rows:
            raise DamageFound(
                f"the array has {layout.shape[0]} rows, the table of images {n_rows}",
                where=paths.metadata,
                remedy="was the table restored from an older backup? The same `loffta extract` brings it up to date",
            )
        return len(self.table)

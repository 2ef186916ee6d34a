"""Which images a run knows: the first so many rows of an image set, by their digest. A cache is found again by them.

In: an open cache, or a run.   Out: KnownImages, kept in the run's images.json before anything is trained. An image set
only ever grows at its end, so the digest over its first rows tells a cache that has grown from another one, wherever it
lies. Runs of older versions have no such file: of them, only the path is known.

What is said of the images may change: a run keeps its own labels, in a file beside images.json, or, where it has none,
goes by those of images.parquet, which never change.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loffta.config import TrainConfig
from loffta.errors import DamageFound, LofftaError
from loffta.runs.records import Natural, Record
from loffta.runs.run import RunPaths, read_json
from loffta.store.cache import Cache
from loffta.store.labels import Annotations


class KnownImages(Record):
    """What images.json says."""

    images: Natural  # rows of the set when the training began
    classes: list[str]  # then, in their order
    digest: str  # of both: the image set's, as images.parquet had it
    cache: str = ""  # where it lay, from the run: both may move together
    labels: str | None = None  # the set or file that they are called by; None: as in images.parquet
    labels_digest: str | None = None  # of the run's own copy of it

    @classmethod
    def of(cls, cache: Cache, run: Path) -> KnownImages:
        """All that a cache has now."""
        table = cache.table
        try:
            place = os.path.relpath(cache.paths.root.absolute(), run.absolute())
        except ValueError:  # another drive of Windows
            place = ""
        said = None if cache.labels is None else Annotations.of(table).digest
        return cls(
            images=len(table),
            classes=list(table.classes),
            digest=table.digest,
            cache=place,
            labels=cache.labels,
            labels_digest=said,
        )

    def view(self, cache: Cache) -> Cache | None:
        """A cache as it was when the training began; None where it does not begin with these images."""
        table, classes = cache.table, tuple(self.classes)
        first = table if (len(table), table.classes) == (self.images, classes) else table.first(self.images, classes)
        if first is None or first.digest != self.digest:
            return None
        return cache if first is table else replace(cache, table=first)

    def begins(self, cache: Cache) -> bool:
        """Whether a cache is the one of the training, grown or not."""
        return self.view(cache) is not None

    def growth_in(self, cache: Cache) -> dict[str, int]:
        """How many images are known and how many there are now, where these are more, for results.json."""
        now = len(cache.table)
        return {"known": self.images, "now": now} if now > self.images and self.begins(cache) else {}


def read_known(paths: RunPaths) -> KnownImages | None:
    """What a run knows; None for one of an older version, or one that has not begun.

    Raises:
        LofftaError: the file is damaged.
    """
    return read_json(paths.images, KnownImages) if paths.images.exists() else None


def as_trained(paths: RunPaths, cache: Cache) -> Cache:
    """A cache as a run sees it: by its own labels, whatever is said now. One of other images stays as it is.

    Raises:
        DamageFound: the run's labels are not those that it was trained with.
    """
    known, seen = read_known(paths), cache.as_first_said()
    if known is not None and known.labels is not None:
        said = Annotations.read(paths.labels, remedy="restore it from a backup, or train again with another --out")
        if said.digest != known.labels_digest:
            raise DamageFound(
                "these labels are not those that the run was trained with",
                where=paths.labels,
                remedy="restore them from a backup, or train again with another --out",
            )
        try:
            table = said.on(cache.images, where=paths.labels)
        except LofftaError:
            return cache
        seen = replace(cache, table=table, labels=known.labels, first_table=cache.images)
    return seen if known is None or known.begins(seen) else cache


def growth(known: int, now: int) -> str:
    """What to say of a cache that has grown since a training."""
    return f"the cache has {now:,} images now, {now - known:,} more than the {known:,} that this run knows"


def open_cache(paths: RunPaths, config: TrainConfig, elsewhere: Path | None = None) -> Cache:
    """The cache of a run, looked for where it was, and from the run where it lay; known by its images.

    Args:
        elsewhere: where it is now, as the user says; another image set is taken as it is then, for `evaluate`.
    Raises:
        LofftaError: it is at none of these places, or another image set is.
    """
    if elsewhere is not None:
        return as_trained(paths, Cache.open(elsewhere))
    found = CacheFinder().find(paths, config)
    if found is not None:
        return found
    try:
        Cache.open(config.cache)
    except LofftaError as error:
        error.add_note("a cache that was moved is named with --cache DIR")
        raise
    raise LofftaError(
        "another image set is where the cache of this run was",
        where=config.cache,
        remedy="name the place where the run's cache is now with --cache DIR",
    )


class CacheFinder:
    """Finds the caches of runs by their images; each place is opened once.

    Args:
        elsewhere: places that the user names, for caches that were moved; they come first.
    """

    def __init__(self, elsewhere: Sequence[Path] = ()) -> None:
        self._elsewhere = list(elsewhere)
        self._opened: dict[Path, Cache | None] = {}

    def find(self, paths: RunPaths, config: TrainConfig) -> Cache | None:
        """The cache of a run: one that begins with its images; of a run that keeps no word of them, any."""
        known = read_known(paths)
        beside = [paths.root / known.cache] if known is not None and known.cache else []
        for place in [*self._elsewhere, config.cache, *beside]:
            cache = self._open(place)
            seen = None if cache is None else as_trained(paths, cache)
            if seen is not None and (known is None or known.begins(seen)):
                return seen
        return None

    def _open(self, place: Path) -> Cache | None:
        if place not in self._opened:
            try:
                self._opened[place] = Cache.open(place)
            except (LofftaError, OSError):
                self._opened[place] = None
        return self._opened[place]

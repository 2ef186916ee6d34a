"""The sets of annotations of a cache: which there are, what they say, and the cache seen with one of them.

In: an open cache, and the name of a set or a file.   Out: the cache with another table; facts for `loffta info`. Called
by `Cache`, `loffta label` and `info`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loffta.errors import LofftaError, unknown_name
from loffta.files.durable import replace_file
from loffta.store.columns import SUFFIXES
from loffta.store.label_file import read_label_file
from loffta.store.labels import SOURCE, Annotations
from loffta.store.paths import CachePaths
from loffta.store.table import ImageTable

if TYPE_CHECKING:
    from loffta.store.cache import Cache

_AGAIN = "make it anew with `loffta label CACHE FILE --name NAME`, or restore it from a backup"
_FOLLOW = "delete it: the `loffta extract` that made the cache writes it anew"


@dataclass(frozen=True)
class LabelFacts:
    """What `loffta info` tells of a set."""

    name: str
    labelled: int  # images
    label_kind: str
    classes: int
    splits: dict[str, int]
    groups: int | None  # different ones; None: it says nothing of groups
    group_column: str | None
    digest: str


def said_by_source(paths: CachePaths, images: ImageTable) -> ImageTable | None:
    """The images of images.parquet with what their set said later; None where it always said the same.

    Raises:
        DamageFound: the set `source` is not as it was written.
    """
    path = paths.label_set(SOURCE)
    return read_set(paths, SOURCE).on(images, where=path, places=True) if path.exists() else None


def read_set(paths: CachePaths, name: str) -> Annotations:
    """One set that is there; DamageFound where it is not as it was written."""
    return Annotations.read(paths.label_set(name), remedy=_FOLLOW if name == SOURCE else _AGAIN)


def write_set(cache: Cache, name: str, said: Annotations) -> bool:
    """Writes a set, in place of another of this name; returns whether there was one."""
    path = cache.paths.label_set(name)
    is_there = path.exists()
    replace_file(path, said.to_parquet())
    return is_there


def labelled(cache: Cache, name_or_file: str) -> Cache:
    """A cache with what a set, or a file, says of its images; what that leaves open is as `source` says it.

    Args:
        name_or_file: a file ends in .csv, .tsv or .parquet, and a set does not.
    Raises:
        UsageError: there is no such set (near names are given), or the file cannot be used.
        LofftaError: the labels are of other images.
        DamageFound: the set is not as it was written.
    """
    path = Path(name_or_file)
    if path.suffix.lower() in SUFFIXES:
        said, name = read_label_file(path, cache.table).said, path.stem
    elif name_or_file == SOURCE:
        return cache
    else:
        path, name = find_set(cache, name_or_file), name_or_file
        said = read_set(cache.paths, name)
    return replace(cache, table=said.on(cache.table, where=path), labels=name, first_table=cache.images)


def find_set(cache: Cache, name: str) -> Path:
    """The file of a set that is there.

    Raises:
        UsageError: there is none of this name; near names are given.
    """
    known = cache.paths.label_names()
    if name not in known:
        raise unknown_name("set of labels", name, [SOURCE, *known], where=cache.paths.labels)
    return cache.paths.label_set(name)


def take_sets(cache: Cache) -> tuple[list[LabelFacts], list[tuple[Path, str]]]:
    """What every set says, `source` first; and those that cannot be read or are of other images, with why."""
    sets, faults = [facts_of(cache, SOURCE)], []
    for name in cache.paths.label_names():
        if name != SOURCE:
            try:
                sets.append(facts_of(cache, name))
            except LofftaError as error:
                faults.append((cache.paths.label_set(name), error.what))
    return sets, faults


def facts_of(cache: Cache, name: str) -> LabelFacts:
    """What one set says, with what it leaves to `source`."""
    table = labelled(cache, name).table
    groups = None if table.groups is None else len({*table.groups} - {None})
    return LabelFacts(
        name,
        int(table.is_labelled().sum()),
        table.label_kind,
        len(table.classes),
        table.split_sizes(),
        groups,
        table.group_column,
        Annotations.of(table).digest,
    )

"""`loffta.label`: what a file says of the images of a cache becomes a set of annotations beside their features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loffta.door.options import PathLike
from loffta.errors import UsageError
from loffta.machine.progress import silenced
from loffta.store.cache import Cache
from loffta.store.label_file import LabelColumns, read_label_file
from loffta.store.label_sets import LabelFacts, facts_of, write_set
from loffta.store.labels import check_name


@dataclass(frozen=True)
class Labelled:
    """What came of a file."""

    set: LabelFacts
    images: int  # of the cache
    matched: int  # images that the file says something of
    by_file_name: int  # of these: their keys differ in their folders
    strangers: list[str]  # keys in the file that no image has
    unknown: list[str]  # keys of images that the file says nothing of
    replaced: bool  # whether the cache had a set of this name


def label(
    cache: PathLike,
    file: PathLike,
    *,
    name: str | None = None,
    key: str | None = None,
    label: str | None = None,
    value: str | None = None,
    split: str | None = None,
    group: str | None = None,
    progress: bool = True,
) -> Labelled:
    """Adds a set of annotations to a cache, or replaces one; no feature is touched.

    >>> import pyarrow.parquet
    >>> table = loffta.open_cache("cache").table().select(["key", "split", "label"])
    >>> pyarrow.parquet.write_table(table, "mine.parquet")
    >>> done = loffta.label("cache", "mine.parquet")
    >>> done.set.name, done.matched, done.strangers
    ('mine', 150, [])

    Args:
        file: CSV, TSV or parquet; its rows are found by their keys, or by their file names where these are unique.
        name: of the set. None: the file's.
        key, label, value, split, group: columns. None: image or key; label, labels or value; split; group.
        progress: show notes on stderr.
    Returns:
        The set, and which rows found no image and which images no row.
    Raises:
        UsageError: a name or column that cannot be used, or rows that cannot.
        LofftaError: the file is one of loffta's about other images.
    """
    path = Path(file)
    name = path.stem if name is None else name
    check_name(name)
    if label is not None and value is not None:
        raise UsageError("a set has labels or values, not both", where="--value", remedy="give --label or --value")
    with silenced(not progress):  # torch, which `borrowed` looks after, is not loaded
        opened = Cache.open(Path(cache))
        joined = read_label_file(path, opened.table, LabelColumns(key, label, value, split, group))
        replaced = write_set(opened, name, joined.said)
        facts = facts_of(opened, name)
    found = joined.matched, joined.by_file_name, joined.strangers, joined.unknown
    return Labelled(facts, len(opened.table), *found, replaced)

"""A cache follows its image set: new images come behind the old ones, and what the set says now is what the cache says.

In: an open cache and a listing of its set as it is now.   Out: the cache as it is then. Called by `Cache.create`. No
shard and no done file is touched: features belong to images, and what is said of these is another file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import count, islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from loffta.files.durable import create_file, replace_file
from loffta.machine.progress import Progress, say
from loffta.store.growth import FindMoved, Gone, grow, match_images, say_source
from loffta.store.hashes import recorded_hashes
from loffta.store.labels import SOURCE, Annotations
from loffta.store.reads import read_file
from loffta.store.table import MAX_BYTES, ImageTable

if TYPE_CHECKING:
    from loffta.store.cache import Cache

Read = Callable[[str], bytes]  # the bytes of an image of the listing; OSError where they cannot be had
_N_THREADS = 8


def follow(cache: Cache, listing: ImageTable, read: Read | None, gone: Gone | None) -> bool:
    """Brings the table of images and the set `source` up to date; says what differs.

    Args:
        read: to tell by their content images whose files were moved; None: they are gone.
        gone: what becomes of rows whose files are gone.
    Returns:
        Whether anything was written.
    Raises:
        LofftaError: an old image is gone or altered.
    """
    paths, before = cache.paths, cache.table
    if before is cache.images and before.says_the_same(listing):
        return False  # most often; all below takes 10 us an image
    find = None if read is None else _finder(cache, listing, read)
    match = match_images(before, listing, where=paths.images, find_moved=find, gone=gone)
    images = grow(cache.images, match)
    said, words = say_source(images, before, match, gone)
    kept = _keep_older(cache) if words else ""
    if images is not cache.images:
        replace_file(paths.images, images.to_parquet())
    is_other_kind = said.kind != images.label_kind
    follows = words or ((is_other_kind or before is not cache.images) and images is not cache.images)
    if follows:
        replace_file(paths.label_set(SOURCE), said.to_parquet())
    if words:
        say(f"{words}: the features are untouched; the older labels are the set '{kept}'", keep="\n")
    return bool(follows) or images is not cache.images


def _keep_older(cache: Cache) -> str:
    """The name under which what was said until now is kept: source@<date>, or with a number where that is taken."""
    path = cache.paths.label_set(SOURCE)
    older = read_file(path, MAX_BYTES) if path.exists() else Annotations.of(cache.images).to_parquet()
    day = datetime.now().astimezone().date().isoformat()
    for number in count(1):
        name = f"{SOURCE}@{day}" + (f".{number}" if number > 1 else "")
        kept = cache.paths.label_set(name)
        if create_file(kept, older) or read_file(kept, MAX_BYTES) == older:  # another process was faster
            break
    return name


def _finder(cache: Cache, listing: ImageTable, read: Read) -> FindMoved:
    """Finds images whose files were moved: by name and size first, then by the hash that the done files keep."""

    def find(rows: Sequence[int], places: Sequence[int]) -> Mapping[int, int]:
        by_look: dict[tuple[str, int], list[int]] = {}
        for i in places:
            by_look.setdefault((_name(listing.keys[i]), int(listing.sizes[i])), []).append(i)
        sought = {row: by_look.get((_name(cache.table.key_now(row)), int(cache.table.sizes[row])), []) for row in rows}
        sought = {row: found for row, found in sought.items() if found}
        if not sought:
            return {}
        recorded = recorded_hashes(cache, {row // cache.unit_images for row in sought})
        there = dict(_hashes(listing, sorted({i for found in sought.values() for i in found}), read))
        moved: dict[int, int] = {}  # row by place
        for row, found in sought.items():
            digests = {*recorded.get(row, {}).values()}  # several, where it was altered between two backbones
            free = (i for i in found if i not in moved and {there[i]} == digests)
            moved |= dict.fromkeys(islice(free, 1), row)
        return {row: i for i, row in moved.items()}

    return find


def _hashes(listing: ImageTable, places: Sequence[int], read: Read) -> Iterator[tuple[int, str | None]]:
    def digest(i: int) -> tuple[int, str | None]:
        try:
            return i, hashlib.blake2b(read(listing.keys[i]), digest_size=16).hexdigest()
        except OSError:
            return i, None

    with Progress("looking for moved files", len(places), "images") as progress, ThreadPoolExecutor(_N_THREADS) as pool:
        for found in pool.map(digest, places):
            progress.advance(1)
            yield found


def _name(key: str) -> str:
    return PurePosixPath(key).name

"""Compares a cache with what it was made from: the images by their hashes. `online.recompute` compares the features.

Called by `loffta verify --images`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from loffta.extraction.target_report import changed_targets
from loffta.images.sources import ImageSource
from loffta.machine.progress import Progress
from loffta.store.cache import Cache
from loffta.store.hashes import recorded_hashes
from loffta.store.target_files import OK
from loffta.targets import TargetKind

_N_THREADS = 8


@dataclass(frozen=True)
class Altered:
    """A source image that is not the one whose features are cached."""

    row: int
    key: str
    what: str
    target: TargetKind | None = None  # where the image is, and this target of it is not


def verify_images(cache: Cache, source: ImageSource) -> Iterator[Altered]:
    """Hashes every source image that has features and compares it with its done file.

    Quarantined images have no features and are left out; so are rows that were never extracted, and those whose files
    are known to be gone.
    """
    recorded = {row: digests for row, digests in recorded_hashes(cache).items() if row not in cache.table.gone}

    def fault(row: int) -> Altered | None:
        key = cache.table.key_now(row)
        try:
            data = source.read(key)
        except OSError as error:
            return Altered(row, key, f"cannot be read: {error.strerror or error}")
        fresh = hashlib.blake2b(data, digest_size=16).hexdigest()
        others = [array for array, digest in recorded[row].items() if digest != fresh]
        return Altered(row, key, f"other bytes than those that {', '.join(others)} were made from") if others else None

    with Progress("verify --images", len(recorded), "images") as progress, ThreadPoolExecutor(_N_THREADS) as pool:
        for found in pool.map(fault, sorted(recorded)):
            progress.advance(1)
            if found is not None:
                yield found
    for kind in cache.target_kinds():
        native = cache.native(kind)
        there = [row for row in range(len(cache.table)) if native.status[row] == OK and row not in cache.table.gone]
        for row in changed_targets(cache, source, kind, there):
            yield Altered(row, cache.table.key_now(row), f"another {kind} than the one that is cached", kind)

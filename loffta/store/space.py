"""What an extraction will weigh, to the byte, before it is made; and the refusal of one that cannot fit.

In: layouts and the units that are missing.   Out: bytes and files. Called by `extract` before its first unit and by
`plan`. Images that turn out to be bad are counted as good: they make a cache smaller, never larger.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loffta.errors import LofftaError
from loffta.machine.quota import Quota, Room, free_room, user_quota
from loffta.store.asked import list_done, look_at
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import OK, Audit, ImageStatus, encode_done
from loffta.store.metadata import CRC_BYTES, ArrayLayout

INDEX_ENTRY_BYTES = 16  # offset and length of one inner chunk


@dataclass(frozen=True)
class Work:
    """What an array lacks."""

    array: CachedArray
    units: tuple[int, ...]
    images: int  # of these units
    shard_bytes: int  # exact, if no image is bad
    done_bytes: int  # of the done files; to about a percent

    @property
    def bytes(self) -> int:
        """All that will be written."""
        return self.shard_bytes + self.done_bytes

    @property
    def files(self) -> int:
        """A shard and a done file per unit."""
        return 2 * len(self.units)


def missing_work(arrays: Iterable[CachedArray], asked: Mapping[int, Sequence[int]]) -> list[Work]:
    """What each array lacks of `asked`, rows by unit."""
    work = []
    arrays = list({array.paths.name: array for array in arrays}.values())  # two backbones may share a store
    seen = list_done(arrays)
    lacks = {unit: look_at(arrays, unit, rows, seen) for unit, rows in asked.items()}
    for array in arrays:
        lacking = tuple(unit for unit, lack in lacks.items() if array.paths.name in lack.names)
        sizes = [len(lacks[unit].rows) for unit in lacking]
        work.append(
            Work(
                array,
                lacking,
                sum(sizes),
                sum(shard_bytes(array.layout, n) for n in sizes),
                sum(done_bytes(array.layout.chunks_per_image, len(array.taps), n) for n in sizes),
            )
        )
    return work


def shard_bytes(layout: ArrayLayout, n_images: int) -> int:
    """Exact size of a shard that holds `n_images`: chunks with their crc32c, and the whole unit's index."""
    n_chunks = layout.unit_images * layout.chunks_per_image
    data = n_images * layout.chunks_per_image * layout.stored_chunk_bytes
    return data + n_chunks * INDEX_ENTRY_BYTES + CRC_BYTES


@functools.lru_cache
def done_bytes(n_chunks: int, n_taps: int, n_images: int) -> int:
    """Size of a done file, from one with random numbers in place of what cannot be known yet: they do not compress.

    Args:
        n_chunks: inner chunks of one image.
    """
    rng = np.random.default_rng(0)
    images = [ImageStatus(row, OK, "", row, row, rng.bytes(16).hex()) for row in range(n_images)]
    audits = [
        Audit([True] * n_taps, rng.random(n_taps).tolist(), rng.integers(2**32, size=n_chunks).tolist())
        for _ in range(n_images)
    ]
    array = {"kind": "grid", "taps": [f"blocks.{i:02d}" for i in range(n_taps)], "dtype": "float16", "unit_images": 256}
    made = {"batch_size": 32, "device": "cpu", "versions": {}, "images": rng.bytes(16).hex(), "array": array}
    return len(encode_done(images, audits, made))


def check_room(
    cache: Cache,
    arrays: Iterable[CachedArray],
    asked: Mapping[int, Sequence[int]],
    files: tuple[int, int] = (0, 0),
) -> None:
    """check_space for all that `arrays` lack of `asked`, and for bytes and number of `files` beside them."""
    work = missing_work(arrays, asked)
    check_space(cache.paths.root, files[0] + sum(w.bytes for w in work), files[1] + sum(w.files for w in work))


def check_space(cache_root: Path, missing_bytes: int, missing_files: int) -> None:
    """Refuses work that the file system or the user's quota has no room for.

    Raises:
        LofftaError: what is needed, what is free, and the ways out.
    """
    if not missing_bytes:
        return
    short = shortages(missing_bytes, missing_files, free_room(cache_root), user_quota(cache_root))
    if short:
        raise LofftaError(
            "; ".join(short),
            where=cache_root,
            remedy="see what takes the room and what it would cost with less: `loffta plan` with the same options.\n"
            "    Less: --dtype int8, --kinds mean,prefix, fewer --taps. More room: `loffta drop "
            f"{shlex.quote(str(cache_root))} STORE`.\n    Or go on all the same with --ignore-space",
        )


def shortages(n_bytes: int, n_files: int, room: Room, quota: Quota | None) -> list[str]:
    """Every limit that the work is over, in words; empty where it fits."""
    left: list[tuple[str, int | None, int | None]] = [("free on this file system", room.bytes, room.files)]
    if quota is not None:
        left.append((f"left of your quota ({quota.tool})", quota.bytes, quota.files))
    short = []
    for name, free_bytes, free_files in left:
        if free_bytes is not None and n_bytes > free_bytes:
            short.append(f"{_gb(n_bytes)} are needed, {_gb(free_bytes)} are {name}")
        if free_files is not None and n_files > free_files:
            short.append(f"{n_files} files are needed, {free_files} are {name}")
    return short


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.3f} GB"

"""`loffta.pack` and `loffta.unpack`: a cache as a compressed copy, and back in its fast form."""

from __future__ import annotations

import os
from pathlib import Path

from loffta.door.options import PathLike
from loffta.machine.borrowed import borrowed
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.packing import CopyReport, copy_cache


def pack(
    cache: PathLike, store: str | None = None, *, out: PathLike, codec: str = "zstd", progress: bool = True
) -> CopyReport:
    """Writes a compressed copy of a cache, or of one store of it; a second call continues.

    >>> done = loffta.pack("cache", out="packed")
    >>> done.units, done.arrays[0].codec, done.bytes < done.plain_bytes
    (2, 'zstd', True)

    Every function reads the copy as it is, slower.

    Args:
        store: as `OpenCache.stores` names it. None: all.
        out: the folder of the copy; made when it is not there.
        codec: zstd, blosc or pcodec, all lossless; arrays that it makes larger stay plain.
        progress: show progress and notes on stderr.
    Returns:
        What the copy holds, array by array; sizes in bytes.
    Raises:
        UsageError: no such store or codec, or `out` lies inside the cache.
        LofftaError: the folder holds something else, there is no room, the codec is not installed.
        DamageFound: a chunk of the cache is not the one that was extracted.
    """
    with borrowed(progress=progress):
        return copy_cache(_open(cache), Path(os.fspath(out)), codec=codec, store=store, stop=StopFlag())


def unpack(cache: PathLike, *, out: PathLike, progress: bool = True) -> CopyReport:
    """Writes a packed copy in its fast form, chunk for chunk the bytes that were extracted; a second call continues.

    >>> again = loffta.unpack("packed", out="unpacked")
    >>> again.arrays[0].codec is None, again.bytes == done.plain_bytes
    (True, True)

    Args:
        cache: what `pack` made.
        out: the folder of the cache: a new one, or the cache of the same images that a store was packed from.
        progress: show progress and notes on stderr.
    Returns:
        What the cache holds, array by array; sizes in bytes.
    Raises:
        UsageError: `out` lies inside the copy.
        LofftaError: the folder holds something else, there is no room, the codec is not installed.
        DamageFound: a chunk of the copy is not the one that was packed.
    """
    with borrowed(progress=progress):
        return copy_cache(_open(cache), Path(os.fspath(out)), codec=None, stop=StopFlag())


def _open(cache: PathLike) -> Cache:
    return Cache.open(Path(os.fspath(cache)))

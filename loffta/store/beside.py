"""What lies beside the shards of a cache and goes with every copy, byte for byte: scales, labels, targets.

In: the paths of a cache and of its copy.   Out: files there. Called by `packing`.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from loffta.errors import LofftaError
from loffta.files.durable import create_folder, new_file
from loffta.files.os_words import guard
from loffta.store.cache import CachedArray
from loffta.store.paths import ArrayPaths, CachePaths
from loffta.store.reads import read_file
from loffta.store.scales import has_scales, read_scales


def copy_scales(array: CachedArray, copy: ArrayPaths) -> None:
    """The scales of an int8 array; LofftaError where the copy has others."""
    if array.layout.dtype != np.int8 or not has_scales(array.paths):
        return
    digest = read_scales(array.paths, array.layout).digest  # DamageFound where they are not whole
    files = {copy.scales / file.relative_to(array.paths.scales): read_file(file) for file in _files(array.paths.scales)}
    if not create_folder(copy.scales, files) and read_scales(copy, array.layout).digest != digest:
        raise LofftaError(
            "this int8 array is there already, with other scales",
            where=copy.scales,
            remedy="give another --out, or drop the store there: `loffta drop DIR STORE`",
        )


def copy_beside(cache: CachePaths, copy: CachePaths, *, refresh: bool) -> None:
    """Labels and targets; the done files of targets last, since they vouch for the rest.

    Args:
        refresh: write those anew that the original has otherwise now; else what is there stays.
    """
    for folder in (cache.labels, cache.targets, cache.done_store(cache.targets.name)):
        for file in _files(folder):
            place = copy.root / file.relative_to(cache.root)
            if not place.exists() or (refresh and not filecmp.cmp(file, place, shallow=False)):
                with guard(file), file.open("rb") as source, new_file(place) as target:
                    shutil.copyfileobj(source, target)


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but temporary ones, in order."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.endswith(".part"))
        yield from (Path(place, name) for name in sorted(names) if not name.endswith(".part"))

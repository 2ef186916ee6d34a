"""The crc32c of every inner chunk of a unit, as its done file lists them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.errors import DamageFound
from loffta.store.ledger import read_done
from loffta.store.metadata import ArrayLayout
from loffta.store.paths import ArrayPaths
from loffta.store.reads import REPAIR


def read_checksums(paths: ArrayPaths, unit: int, layout: ArrayLayout, n_rows: int) -> NDArray[np.uint32] | None:
    """crc32c of every inner chunk of a unit's `n_rows` images, 0 where there is none, by its done file.

    Returns:
        [n_rows * chunks_per_image], or None where the done file does not vouch for the shard that is there: it lists
        fewer rows, for the unit is being written anew, or has just gone.
    Raises:
        DamageFound: it cannot be read, or has other checksums than its array has chunks.
    """
    try:
        table = read_done(paths.done(unit), ("row", "crc32c"))
    except FileNotFoundError:
        return None
    if len(table) < n_rows:
        return None
    lists: Any = table["crc32c"].slice(0, n_rows).combine_chunks()
    offsets: NDArray[Any] = np.from_dlpack(lists.offsets)
    counts, per_image = offsets[1:] - offsets[:-1], layout.chunks_per_image
    held = counts > 0
    if lists.null_count or (counts[held] != per_image).any():
        what = "done file has other checksums than its array has chunks"
        raise DamageFound(what, where=paths.done(unit), remedy=REPAIR)
    crcs = np.zeros((n_rows, per_image), dtype=np.uint32)
    listed: NDArray[Any] = np.from_dlpack(lists.values)[offsets[0] : offsets[-1]]  # `flatten` imports pyarrow.compute
    crcs[held] = listed.reshape(-1, per_image)
    return crcs.reshape(-1)

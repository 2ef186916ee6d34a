"""Which reader an array needs, and the slowest road of all: what neither of ours takes, through zarr-python."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from loffta.machine.progress import say
from loffta.store.codecs import codec_name
from loffta.store.metadata import read_layout
from loffta.store.near import Near
from loffta.store.packed_reader import PackedReader
from loffta.store.paths import ArrayPaths
from loffta.store.reader import ArrayReader, Check


class ZarrReader:
    """Same contract as ArrayReader, one zarr-python read per image: about 20 times slower (fancy indexing: 300)."""

    def __init__(self, paths: ArrayPaths) -> None:
        import zarr

        self.paths = paths
        self._array: Any = zarr.open_array(store=paths.folder, mode="r")
        self.dtype = np.dtype(self._array.dtype)
        self.shape: tuple[int, ...] = tuple(self._array.shape)

    def read(
        self,
        rows: NDArray[np.int64],
        taps: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
        *,
        pool: Executor | None = None,  # noqa: ARG002  zarr-python brings its own threads
        n_parts: int = 1,  # noqa: ARG002
    ) -> NDArray[Any]:
        """Reads images by row into `out` [B, len(taps), ...]; see ArrayReader.read."""
        out = self.empty(len(rows), taps) if out is None else out
        if taps is not None and not all(0 <= tap < self.shape[1] for tap in taps):
            raise IndexError(f"taps {list(taps)} outside 0..{self.shape[1] - 1} of {self.paths.name}")
        for i, row in enumerate(rows.tolist()):
            if not 0 <= row < self.shape[0]:
                raise IndexError(f"row {row} outside 0..{self.shape[0] - 1} of {self.paths.name}")
            image = np.asarray(self._array[row])
            out[i] = image if taps is None else image[list(taps)]
        return out

    def empty(self, n_rows: int, taps: Sequence[int] | None = None) -> NDArray[Any]:
        """A buffer for `n_rows` images."""
        item = self.shape[1:] if taps is None else (len(taps), *self.shape[2:])
        return np.empty((n_rows, *item), self.dtype)


AnyReader: TypeAlias = ArrayReader | PackedReader | ZarrReader
_told: set[Path] = set()  # packed stores that this process has spoken of


def open_array(paths: ArrayPaths, *, check: Check = "first", near: Near | None = None) -> AnyReader:
    """The fastest reader that understands the array; says once of each store that it is packed.

    Args:
        check: of the direct reader; the others check whatever they decode.
        near: copies of shards, for all readers but zarr-python's.
    """
    layout = read_layout(paths.metadata)
    if layout is None:
        return ZarrReader(paths)
    if layout.codec is None:
        return ArrayReader(paths, check=check, near=near)
    store = paths.folder.parent
    if store not in _told:
        _told.add(store)
        say(
            f"{store.name} is packed ({codec_name(layout)}) and read as it is, which is slow; "
            f"`loffta unpack {store.parent.parent} --out DIR` gives the fast form"
        )
    return PackedReader(paths, near)

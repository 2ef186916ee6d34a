"""One image file as an image set of one row, without a class: for `loffta predict RUN IMAGE.jpg`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loffta.errors import UsageError
from loffta.images.files import FileRoot, key_fault
from loffta.store.table import ImageTable


class OneFile:
    """An image file; its key is its name."""

    def __init__(self, path: Path) -> None:
        fault = key_fault(path.name)
        if fault:
            raise UsageError(f"the file's name cannot be used: {fault}", where=f"SOURCE {path}", remedy="rename it")
        self._root, self._key = FileRoot(path.parent), path.name
        self.read = self._root.read

    def listing(self) -> ImageTable:
        """One row; OSError where the file is gone."""
        size = self._root.size(self._key)
        source = str(self._root.path / self._key)
        return ImageTable(source, [self._key], np.array([size]), ["train"], np.array([-1]), ())

"""The dense targets of images that no cache holds, with classes as a run numbers them.

In: a source, its listing, a task and its classes.   Out: of each image a NativeTarget, or why there is none.
`extraction` reads the same bytes when it writes a cache. Called by `dense_evaluate` and `dense_learning`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.crop import Centre
from loffta.dataset.shown import cut_target
from loffta.dataset.splits import name_some
from loffta.errors import LofftaError, UsageError
from loffta.files.os_words import PASSING, explain
from loffta.images.decode import one_line
from loffta.images.sources import ImageSource
from loffta.images.targets import BadTarget, decode_target
from loffta.store.names import in_order
from loffta.store.table import ImageTable
from loffta.targets import IGNORE, IGNORE_16, NativeTarget
from loffta.tasks.dense import DENSE_TASKS
from loffta.words import first_of


@dataclass(frozen=True)
class ReadTarget:
    """One target, of what the features show of its image, and the BLAKE2b-128 of the bytes that the source had."""

    native: NativeTarget
    digest: str


class SourceTargets:
    """The targets of one task's kind."""

    def __init__(
        self,
        source: ImageSource,
        listing: ImageTable,
        task: str,
        classes: tuple[str, ...],
        known_to: str | Path,
        centre: Centre | None = None,
    ) -> None:
        """Compares the classes; no target is read.

        Args:
            classes: as they are to be numbered.
            known_to: the run that these are of, for messages.
            centre: what alone is seen of the images; None: all.
        Raises:
            UsageError: the image set has no targets of this kind.
            LofftaError: it has classes that the run does not know.
        """
        kind = DENSE_TASKS[task].target
        if kind not in listing.targets:
            raise UsageError(
                f"this image set has no target '{kind}', by which {task} is measured; it has "
                f"{', '.join(listing.targets) or 'none'}",
                where=f"--online {listing.source}",
                remedy=f"name a set that has it; in a table, a column '{kind}' says where they are",
            )
        self._source, self._listing, self._kind = source, listing, kind
        self._classes = listing.target_classes.get(kind, ()) or classes
        unknown = in_order({*self._classes}.difference(classes))
        if unknown:
            raise LofftaError(
                f"the targets have classes that the run was not trained on: {first_of(unknown, ', ')}",
                where=f"{listing.source}; {known_to} knows {name_some(classes)}",
                remedy="name the classes as in training",
            )
        places = {name: i for i, name in enumerate(classes)}
        self._numbers = np.array([places[name] for name in self._classes], np.int64)
        self._centre = centre
        self.bad: dict[int, str] = {}  # why one cannot be used, by row

    def read(self, row: int, height: int, width: int) -> ReadTarget | None:
        """The target of an image of this size; None where there is none, or a bad one."""
        path = self._listing.target(self._kind, row)
        if path is None:
            return None
        try:
            data = self._source.read(path)
            native = decode_target(self._kind, data, classes=self._classes, size=(height, width))
        except (BadTarget, OSError) as error:
            if isinstance(error, OSError) and error.errno in PASSING:
                raise explain(error) from error
            self.bad[row] = str(error) if isinstance(error, BadTarget) else one_line(f"cannot be read: {error}")
            return None
        native = self._renumbered(native)
        return ReadTarget(
            native if self._centre is None else cut_target(native, self._centre),
            hashlib.blake2b(data, digest_size=16).hexdigest(),
        )

    def _renumbered(self, native: NativeTarget) -> NativeTarget:
        if native.boxes is not None:
            classes = self._numbers[native.boxes.classes]
            return replace(native, boxes=replace(native.boxes, classes=classes))
        return replace(native, map=self._of_classes(native.map)) if native.kind == "mask" else native

    def _of_classes(self, mask: Any) -> NDArray[Any]:
        ignored = mask == (IGNORE if mask.dtype == np.uint8 else IGNORE_16)
        wide = np.uint16 if len(self._numbers) and self._numbers.max() >= IGNORE else mask.dtype
        found = self._numbers[np.where(ignored, 0, mask)].astype(wide)
        found[ignored] = IGNORE if found.dtype == np.uint8 else IGNORE_16
        return found

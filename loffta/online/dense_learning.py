"""What a training of a dense head without a cache learns: targets that are read with their images, and cut as they are.

In: an image set whose listing says where targets are.   Out: FreshTargets, which gives the targets of a batch. `train`
and `feed` of this package call it; `dataset.dense` is the same of a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.config import TrainConfig
from loffta.dataset.dense import choose_dense_task
from loffta.errors import LofftaError, UsageError
from loffta.heads import find_head
from loffta.heads.dense import DenseRecipe
from loffta.images.geometry import PixelGeometry
from loffta.images.sources import ImageSource
from loffta.images.target_square import square_target
from loffta.machine import process
from loffta.online.dense_targets import SourceTargets
from loffta.shapes import TargetBatch
from loffta.store.ledger import ImageStatus
from loffta.store.table import ImageTable
from loffta.store.targets import BoxTargets
from loffta.targets import BoxList, TargetKind
from loffta.tasks.dense import DENSE_TASKS
from loffta.training.dense import box_batch


@dataclass(frozen=True)
class FreshTargets:
    """The targets of one kind of an image set, made squares of whenever their images are."""

    task: str
    classes: tuple[str, ...]
    paths: Sequence[str | None]  # per row of the listing
    source: SourceTargets
    px: int  # side of the squares of maps
    boxes: ClassVar[tuple[BoxTargets, ...]] = ()  # they come with their batches, as maps do

    @property
    def kind(self) -> TargetKind:
        return DENSE_TASKS[self.task].target

    @property
    def has(self) -> NDArray[np.bool_]:
        """Per row of the listing, whether it has a target; whether it can be used shows when it is read."""
        return np.array([path is not None for path in self.paths])

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Of where they are: their bytes are read with the images."""
        said = json.dumps([self.task, list(self.classes), [self.paths[row] for row in rows.tolist()]])
        return hashlib.blake2b(said.encode(errors="surrogatepass"), digest_size=8).hexdigest()

    def squares(
        self, images: Sequence[ImageStatus], geometry: PixelGeometry, keys: Sequence[str]
    ) -> list[NDArray[Any] | BoxList | None]:
        """Of each image what `geometry` shows of its target; None where that cannot be used: `source.bad` says why."""

        def read(status: ImageStatus) -> NDArray[Any] | BoxList | None:
            found = self.source.read(status.row, int(status.height), int(status.width))
            return None if found is None else square_target(found.native, geometry, keys[status.row], self.px)

        with ThreadPoolExecutor(process.available_cpus()) as pool:
            return list(pool.map(read, images))


def target_batch(squares: Sequence[Any], device: torch.device) -> TargetBatch:
    """The targets of one batch, as a feed gives them: maps of 16 bits are int32."""
    if isinstance(squares[0], BoxList):
        return box_batch(squares, device)
    maps = np.stack(squares)
    return TargetBatch(torch.from_numpy(maps.astype(np.int32) if maps.dtype == np.uint16 else maps).to(device))


def choose_fresh_task(config: TrainConfig, listing: ImageTable) -> str:
    """The dense task that a head is trained for on images.

    Raises:
        UsageError: as `choose_dense_task`; a head or a task that needs a cache.
    """
    where = f"--online {listing.source}"
    task = choose_dense_task(config.head, config.task, listing.targets, "image set", where, _name_it)
    head, lacking = find_head(config.head).head, ""
    if getattr(head, "needs_thumb", False):
        lacking = f"head '{config.head}' is guided by the thumbnails of a cache"
    elif getattr(head, "remembers", False):
        lacking = f"head '{config.head}' remembers images, and takes no steps"
    elif task == "instances":
        lacking = "task 'instances' has to know all objects before the first step"
    elif config.search:
        lacking = "--search scores dense heads on stored features"
    elif config.online is not None and config.online.unfrozen:
        lacking = f"head '{config.head}' is trained on a frozen backbone"
    elif DENSE_TASKS[task].target in ("mask", "boxes") and not listing.target_classes.get(DENSE_TASKS[task].target):
        lacking = "this image set does not say which classes there are, and a cache counts them"
    if lacking:
        remedy = "extract first: `loffta extract SOURCE --cache CACHE --targets ...`, then `loffta train CACHE`"
        raise UsageError(lacking, where=where, remedy=remedy)
    return task


def fresh_targets(task: str, source: ImageSource, listing: ImageTable, recipe: DenseRecipe) -> FreshTargets:
    """Of an image set; no target is read."""
    kind = DENSE_TASKS[task].target
    classes = listing.target_classes.get(kind, ())
    reader = SourceTargets(source, listing, task, classes, listing.source)
    return FreshTargets(task, classes, listing.targets[kind], reader, recipe.output_px)


def rows_with_paths(targets: FreshTargets, listing: ImageTable, split: str) -> NDArray[np.int64]:
    """Rows of a split that have a target.

    Raises:
        UsageError: no such split.
        LofftaError: none of its rows has one.
    """
    listing.check_split(split, where=f"--split, {listing.source}")
    rows = listing.rows_of(split)
    found = rows[targets.has[rows]]
    if not len(found):
        raise LofftaError(
            f"no image of split '{split}' has a target '{targets.kind}' ({len(rows)} have none)",
            where=listing.source,
            remedy="choose a split whose images have them",
        )
    return found


def _name_it(kind: str) -> str:
    return f"name a set that has them; in a table, a column '{kind}' says where they are"

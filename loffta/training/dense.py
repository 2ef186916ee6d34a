"""What a training of a dense head learns: masks, depths, boxes or instances, moved as the features of their images are.

In: the targets of an image set, in the geometry of its features.   Out: Dense, an Objective for `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta.augment import Parameters, apply_targets
from loffta.dataset.dense import DenseTargets
from loffta.errors import LofftaError
from loffta.evaluation.dense import Stream
from loffta.feed.batches import Batch
from loffta.heads import Head
from loffta.heads.dense import DenseRecipe
from loffta.heads.recipe import Recipe
from loffta.shapes import Boxes, TargetBatch
from loffta.store.table import ImageTable
from loffta.store.targets import BoxTargets
from loffta.targets import IGNORE, IGNORE_16, NO_INSTANCE, BoxList
from loffta.tasks.dense import DENSE_TASKS, DenseTask
from loffta.tasks.pixels import Losses
from loffta.training.loss import Mix
from loffta.training.members import Member
from loffta.training.objective import Learner, defined, digest_of, left_out
from loffta.training.optim import make_optimizer
from loffta.training.supply import Learnt

_OF_PROXIES = 1 << 40  # beside a member's seed, away from those that phases draw from


@dataclass(frozen=True)
class Dense:
    """Of pixels or objects."""

    table: ImageTable
    dense: Learnt
    device: torch.device
    total: Callable[[Tensor], Tensor] | None = None  # over the processes of a training; None: there is one

    @property
    def task(self) -> DenseTask:
        return DENSE_TASKS[self.dense.task]

    @property
    def main_metric(self) -> str:
        return self.task.main_metric

    def begin(self, rows: NDArray[np.int64], members: Sequence[Member]) -> Learner:
        first = self._count_instances(rows, members) if self.dense.task == "instances" else None

        def targets(batch: Batch) -> TargetBatch:
            if self.dense.boxes:
                return boxes_of(self.dense.boxes, batch)
            assert batch.targets is not None, "the feed reads targets beside the features"
            return batch.targets if first is None else replace(batch.targets, first_instance=first[batch.rows])

        return Learner(targets, self._lower)

    def moved(self, targets: TargetBatch, drawn: Parameters) -> TargetBatch:
        if targets.boxes is not None:
            return replace(targets, boxes=apply_targets(targets.boxes, drawn, "boxes"))
        assert targets.maps is not None, "targets are boxes or maps"
        outside = {"mask": IGNORE if targets.maps.dtype == torch.uint8 else IGNORE_16, "instances": NO_INSTANCE}
        maps = apply_targets(targets.maps, drawn, self.dense.kind, outside=outside.get(self.dense.kind))
        return replace(targets, maps=maps)

    def scores(self, heads: Sequence[Head], rows: NDArray[np.int64], recipe: Recipe) -> list[float]:
        assert isinstance(recipe, DenseRecipe), "dense tasks are for dense heads"
        assert isinstance(self.dense, DenseTargets), "a search is on a cache"
        stream = Stream(self.dense, recipe, recipe.batch_size, self.device, self.table.keys)
        classes, settings = self.dense.classes, recipe.settings()
        found = [self.task.metrics(records, classes, settings) for records in stream.records(heads, rows)]
        return [defined(self.main_metric, metrics, len(rows)) for metrics in found]

    def warnings(self, rows: NDArray[np.int64], split: str) -> list[str]:  # noqa: ARG002
        return left_out(self.dense.has[self.table.rows_of(split)], split, f"target '{self.dense.kind}'")

    def digest(self, rows: NDArray[np.int64]) -> str:
        return f"{digest_of(self.table, rows)}, targets {self.dense.digest(rows)}"

    def _lower(self, member: Member, outputs: Tensor, targets: TargetBatch, mix: Mix | None) -> Tensor:
        """The mean over what counts in the batch; a mixed image is both of its images, in their shares."""
        assert isinstance(member.recipe, DenseRecipe), "dense tasks are for dense heads"
        settings, proxies = member.recipe.settings(), getattr(member.head, "proxies", None)

        def losses(of: TargetBatch) -> Losses:
            found: Losses = self.task.loss(outputs, of, settings, proxies, member.rng)
            return found

        if mix is None:
            return losses(targets).mean(self.total)
        one, other = losses(targets), losses(taken(targets, mix.partner))
        share = mix.weight
        sums = share * one.sums + (1 - share) * other.sums
        return Losses(sums, share * one.counts + (1 - share) * other.counts).mean()

    def _count_instances(self, rows: NDArray[np.int64], members: Sequence[Member]) -> Tensor:
        """Of every row of the table the first of its instances among those of `rows`; members get a proxy for each."""
        assert isinstance(self.dense, DenseTargets), "instances are learnt on a cache"
        counts = np.asarray(self.dense.native.n_objects)[rows]
        if not counts.any():
            raise LofftaError(
                f"none of the {len(rows)} images to train on has an instance",
                where="targets 'instances'",
                remedy="train on a split with objects: --train-on SPLIT",
            )
        first = np.zeros(len(self.table), np.int64)
        first[rows] = counts.cumsum() - counts
        for member in members:
            rng = torch.Generator().manual_seed(member.seed + _OF_PROXIES)
            member.head.add_proxies(int(counts.sum()), rng)  # type: ignore[attr-defined]
            member.head.to(self.device)
            member.optimizer = make_optimizer(member.head, member.recipe, self.device)
        return torch.from_numpy(first).to(self.device)


def boxes_of(boxes: Sequence[BoxTargets], batch: Batch) -> TargetBatch:
    """The boxes of a batch's images, on its device. Crowds are no object to learn: a box of one shows many.

    Args:
        boxes: by view.
    """
    rows = batch.rows.tolist()
    views = [0] * len(rows) if batch.views is None else batch.views.tolist()
    return box_batch([boxes[view].read([row])[0] for view, row in zip(views, rows, strict=True)], batch.rows.device)


def box_batch(found: Sequence[BoxList], device: torch.device) -> TargetBatch:
    """The boxes of some images, as fractions of their squares."""
    counts = [int((~one.crowd).sum()) for one in found]
    corners = np.concatenate([one.corners[~one.crowd] for one in found]).reshape(-1, 4)
    classes = np.concatenate([one.classes[~one.crowd] for one in found])
    image = torch.repeat_interleave(torch.arange(len(found)), torch.tensor(counts))
    listed = (image, torch.from_numpy(corners), torch.arange(len(corners)), torch.from_numpy(classes))
    image, at, number, of = (tensor.to(device) for tensor in listed)
    return TargetBatch(boxes=Boxes(image, at, number), box_classes=of)


def taken(targets: TargetBatch, places: Tensor) -> TargetBatch:
    """The targets of other images of the batch: of image i those of image `places[i]`."""
    boxes = targets.boxes
    if boxes is not None:
        image, which = (places[:, None] == boxes.image).nonzero(as_tuple=True)
        boxes = Boxes(image, boxes.corners[which], boxes.number[which])
    return replace(
        targets,
        maps=None if targets.maps is None else targets.maps[places],
        boxes=boxes,
        first_instance=None if targets.first_instance is None else targets.first_instance[places],
    )

"""What a training learns: the targets of a batch, the number that a step lowers, and what a search chooses by.

In: the supply of a run.   Out: the protocol Objective, which `fit`, `search` and `train` ask, and Labels, where images
have a class, several or a number. `dense` is the other one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta.augment import Parameters
from loffta.config import TrainConfig
from loffta.dataset.splits import name_some
from loffta.dataset.targets import read_targets, spread_of
from loffta.errors import LofftaError
from loffta.feed.batches import Batch
from loffta.heads import Head
from loffta.heads.recipe import Recipe
from loffta.store.table import ImageTable
from loffta.tasks import Task, find_task
from loffta.training.loss import Mix, class_weights, loss_of, reduce_loss
from loffta.training.members import Member
from loffta.training.supply import Supply


class Learner(NamedTuple):
    """What the steps of one training do with a batch."""

    targets: Callable[[Batch], Any]  # on its device
    lower: Callable[[Member, Any, Any, Mix | None], Tensor]  # member, outputs, targets, mix -> the loss, a scalar


@runtime_checkable
class Objective(Protocol):
    """What is to be learnt of the images of a run."""

    @property
    def main_metric(self) -> str: ...  # what a search chooses by; `figures` knows whether more of it is better

    def begin(self, rows: NDArray[np.int64], members: Sequence[Member]) -> Learner:
        """Of a training on these rows; members, before their first step, get what depends on them."""

    def moved(self, targets: Any, drawn: Parameters) -> Any:
        """The same where the features have been moved."""

    def scores(self, heads: Sequence[Head], rows: NDArray[np.int64], recipe: Recipe) -> list[float]:
        """The main metric of trained heads on some rows; LofftaError where it is not defined there."""

    def warnings(self, rows: NDArray[np.int64], split: str) -> list[str]:
        """Lines on what a user may not have meant: what cannot be learnt of the rows to train on, of a split."""

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Which images, and what is to be learnt of them: the same words for the same ones."""


@dataclass(frozen=True)
class Labels:
    """Of whole images: a class, several, or a number."""

    config: TrainConfig
    supply: Supply
    device: torch.device
    total: Callable[[Tensor], Tensor] | None = None  # over the processes of a training; None: there is one

    @property
    def task(self) -> Task:
        return find_task(self.config.task)

    @property
    def main_metric(self) -> str:
        return self.task.main_metric

    @cached_property
    def of_all(self) -> Tensor:
        """Of every row of the table, on the device; numbers in float64, but on mps, which has none."""
        found = read_targets(self.supply.table, self.config.task)
        return (found.float() if self.device.type == "mps" and found.is_floating_point() else found).to(self.device)

    def begin(self, rows: NDArray[np.int64], members: Sequence[Member]) -> Learner:
        table, recipe, weights = self.supply.table, members[0].recipe, None
        if recipe.class_weights:
            weights = class_weights(self.of_all[torch.from_numpy(rows).to(self.device)], len(table.classes))
        if self.task.label_kind == "regression":  # learnt in standard deviations of these images, and nothing else
            mean, deviation = spread_of(table, rows, self.config.train_on)
            for member in members:
                assert member.head.scale is not None, "there are no classes"
                member.head.scale.set(mean, deviation)

        def lower(member: Member, outputs: Any, targets: Tensor, mix: Mix | None) -> Tensor:
            if (scale := member.head.scale) is not None:
                targets = scale.standardise(targets)
            return reduce_loss(
                loss_of(self.task, member.recipe), outputs, targets, weights=weights, mix=mix, total=self.total
            )

        return Learner(lambda batch: self.of_all[batch.rows], lower)

    def moved(self, targets: Tensor, drawn: Parameters) -> Tensor:  # noqa: ARG002
        """Themselves: an image that is moved is of the same class."""
        return targets

    def scores(self, heads: Sequence[Head], rows: NDArray[np.int64], recipe: Recipe) -> list[float]:
        rows, logits = self.supply.predict(heads, rows, recipe)
        targets = self.of_all[torch.from_numpy(rows)].cpu().numpy()
        found = [self.task.metrics(of_head, targets, self.supply.table.classes) for of_head in logits]
        return [defined(self.main_metric, metrics, len(rows)) for metrics in found]

    def warnings(self, rows: NDArray[np.int64], split: str) -> list[str]:
        table, targets = self.supply.table, self.of_all.cpu().numpy()[rows]
        present = set(np.unique(targets)) if targets.ndim == 1 else set(np.flatnonzero((targets > 0).any(axis=0)))
        missing = [name for i, name in enumerate(table.classes) if i not in present]
        words = f"no image to train on of {name_some(missing)}: the head cannot learn what is not there"
        return ([words] if missing else []) + left_out(table.is_labelled()[table.rows_of(split)], split, "label")

    def digest(self, rows: NDArray[np.int64]) -> str:
        return digest_of(self.supply.table, rows)


def left_out(known: NDArray[np.bool_], split: str, what: str) -> list[str]:
    """A line on images that nothing is known of; none where there are none.

    Args:
        known: of each image of the split, whether it has one.
        what: is known of an image: "label".
    """
    return [f"images of split {split} without a {what}: {n}, left out"] if (n := int((~known).sum())) else []


def defined(name: str, metrics: dict[str, float], n_images: int) -> float:
    """The metric that a search chooses by.

    Raises:
        LofftaError: these images do not define it.
    """
    if name not in metrics or np.isnan(metrics[name]):
        raise LofftaError(
            f"{name} is not defined on the {n_images} images that --search scores its settings on",
            where="--search",
            remedy="name a split with images of some class, or of several values: --validate-on SPLIT",
        )
    return metrics[name]


def digest_of(table: ImageTable, rows: NDArray[np.int64]) -> str:
    """Which images, and of which class or value: the same words for the same ones."""
    keys = "\n".join(table.keys[row] for row in rows)
    labels: Any = table.labels[rows] if table.label_sets is None else [table.label_sets[row] for row in rows]
    if table.values is not None:
        labels = table.values[rows].tolist()
    text = f"{keys}\n{list(labels)}"
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{len(rows)}, digest {digest}"

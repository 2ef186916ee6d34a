"""What a training is fed from, as the loop and the driver know it: a cache, or images through a network at every step.

In: nothing.   Out: the protocols Supply, Learnt and TrainingFeed. `training.cached` and `online.supply` are the two
that there are; `fit`, `search` and `train` ask for no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from loffta.feed.batches import Batch
from loffta.feed.order import OrderChoice, Window
from loffta.heads import Head
from loffta.heads.recipe import Recipe
from loffta.machine import process
from loffta.machine.ranks import Rank
from loffta.runs.run import RunPaths
from loffta.store.cache import Cache
from loffta.store.table import ImageTable
from loffta.store.targets import BoxTargets
from loffta.targets import TargetKind
from loffta.tokens import FeatureSpec
from loffta.training.members import Member


@runtime_checkable
class TrainingFeed(Protocol):
    """Batches of some rows on the device, in an order that depends on the data's seed and the epoch alone."""

    rows: NDArray[np.int64]  # each once an epoch

    def __len__(self) -> int: ...  # batches per epoch
    @property
    def ordering(self) -> dict[str, Any]: ...  # all that decides it beside seed and rows: `feed.order`
    def describe(self) -> str: ...
    def __enter__(self) -> TrainingFeed: ...
    def __exit__(self, *_: object) -> None: ...

    def epoch(self, epoch: int, start: int = 0, *, more: bool = False) -> Iterator[Batch]:
        """All batches of an epoch from number `start` on; one whose images are all bad is empty.

        Args:
            more: the next epoch will be asked for behind this one.
        """


@runtime_checkable
class Learnt(Protocol):
    """What is learnt of pixels or objects: targets of one kind. `dataset.dense` has those of a cache."""

    @property
    def task(self) -> str: ...
    @property
    def kind(self) -> TargetKind: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def has(self) -> NDArray[np.bool_]: ...  # per row of the table, whether it has a target
    @property
    def boxes(self) -> Sequence[BoxTargets]: ...  # by view, where they do not come with their batches

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Of the targets of some rows: a training goes on with the same ones alone."""


@runtime_checkable
class Supply(Protocol):
    """The images of one training, their features, and the members that take these."""

    @property
    def cache(self) -> Cache | None: ...  # whose images the run is to know
    @property
    def table(self) -> ImageTable: ...
    @property
    def specs(self) -> Sequence[FeatureSpec]: ...  # of what a head is fed
    @property
    def names(self) -> Sequence[str]: ...  # of the same as STORE:TAPS: a checkpoint goes with these
    @property
    def dense(self) -> Learnt | None: ...  # what is learnt of pixels or objects; None: of whole images
    @property
    def less_memory(self) -> str: ...  # the remedy where the memory is not enough
    @property
    def against_divergence(self) -> str: ...  # and where a loss is not finite

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split that have a label and, as far as is known, features; LofftaError where there is none."""

    def of_rank(self, rank: Rank) -> Supply:
        """The same for one of several processes: its feeds give it its share of every batch.

        Raises:
            UsageError: every process would have to read all of it.
        """

    def member(self, recipe: Recipe, seed: int) -> Member:
        """A member before its first step."""

    def feed(self, rows: NDArray[np.int64], recipe: Recipe, order: OrderChoice, window: Window | None) -> TrainingFeed:
        """Batches of some rows for a training by a recipe."""

    def sharing(self, rows: NDArray[np.int64], recipe: Recipe) -> AbstractContextManager[Supply]:
        """The same supply while it lasts; feeds of some of these rows share what is kept in memory of them."""

    def predict(
        self, heads: Sequence[Head], rows: NDArray[np.int64], recipe: Recipe
    ) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
        """Those of the rows that can be used, and their logits [S, B, C] by the heads of members."""

    def save_origins(self, paths: RunPaths) -> None:
        """Writes down where the features came from, for those who have the run and not the cache."""

    def evaluate(self, paths: RunPaths, split: str, seconds: float, stop: process.StopFlag) -> dict[str, Any]:
        """Measures the trained run, which took so many seconds, on a split, and writes the results."""

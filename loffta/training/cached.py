"""The supply of a training on a cache: its images that have features, and the feed that reads these.

In: an open cache and Features, resolved.   Out: CachedSupply, which `train` hands to the driver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.config import TrainConfig
from loffta.dataset.dense import DenseTargets, rows_with_targets
from loffta.dataset.features import Feature, resolved_choices, usable_rows
from loffta.dataset.splits import HOLDOUT, OUT_OF_FOLD
from loffta.dataset.targets import labelled_rows
from loffta.evaluation.evaluate import evaluate, predict
from loffta.feed.batches import Feed
from loffta.feed.order import OrderChoice, Window
from loffta.feed.staged import Needs, Stage
from loffta.heads import Head
from loffta.heads.recipe import Recipe
from loffta.machine import process
from loffta.machine.ranks import Rank
from loffta.runs.origins import Thumbs, write_origins
from loffta.runs.run import RunPaths
from loffta.store.cache import Cache
from loffta.store.table import ImageTable
from loffta.tokens import FeatureSpec
from loffta.training.members import Member, build_dense_member, build_member


@dataclass(frozen=True)
class CachedSupply:
    """A `Supply` from a cache; what its parts are, that protocol says."""

    config: TrainConfig
    cache: Cache
    features: Sequence[Feature]
    whole: Feed | None = None  # of more rows, open: its memory serves the feeds of some of them
    dense: DenseTargets | None = None  # what a dense head learns
    stage: Stage = field(default_factory=lambda: Stage(None))  # copies of both on the node's own disk
    rank: Rank = Rank()  # noqa: RUF009  it is frozen
    less_memory: ClassVar[str] = process.LESS_MEMORY
    against_divergence: ClassVar[str] = (
        "lower the learning rate (--set lr=...) and give a new --out, or look for damage with `loffta verify CACHE "
        "--deep`"
    )

    @cached_property
    def device(self) -> torch.device:
        """Where heads are; asked for late, for a finished run is read back on a machine without it."""
        return process.resolve_device(self.config.device)

    @property
    def table(self) -> ImageTable:
        return self.cache.table

    @property
    def specs(self) -> Sequence[FeatureSpec]:
        return [feature.spec for feature in self._inputs]

    @property
    def names(self) -> Sequence[str]:
        views = [feature for i in range(len(self.features[0].views)) for feature in self._view(i)]
        return resolved_choices([*self.features, *views])

    def rows(self, split: str) -> NDArray[np.int64]:
        features = list(self.features)
        if split == self.config.train_on:  # other splits are measured on whole images alone
            features += [feature for i in range(len(features[0].views)) for feature in self._view(i)]
        found = usable_rows(self.cache, features, split, partial=self.config.partial)
        if self.dense is not None:
            return rows_with_targets(self.dense, self.cache, found, split, partial=self.config.partial)
        return labelled_rows(self.table, found, split, self.config.task)

    def of_rank(self, rank: Rank) -> CachedSupply:
        return replace(self, rank=rank)

    def member(self, recipe: Recipe, seed: int) -> Member:
        if self.dense is not None:
            task, n_classes = self.dense.task, len(self.dense.classes)
            return build_dense_member(self.config.head, self.specs, task, n_classes, recipe, seed, self.device)
        return build_member(self.config.head, self.specs, len(self.table.classes), recipe, seed, self.device)

    def feed(self, rows: NDArray[np.int64], recipe: Recipe, order: OrderChoice, window: Window | None) -> Feed:
        if self.stage.waits:
            self.stage.bring(self._needs())
        maps = None if self.dense is None else self.dense.maps
        return Feed(
            self.stage.use(self._inputs),
            rows,
            batch_size=recipe.batch_size,
            device=self.device,
            mode=self.config.feed,
            order=order,
            window=window,
            seed=self.config.data_seed,
            n_alike=recipe.epochs if recipe.same_batches else 1,
            of=self.whole,
            maps=None if maps is None else self.stage.use([maps])[0],
            views=self.config.views,
            process=(self.rank.number, self.rank.of),
        )

    @property
    def _inputs(self) -> Sequence[Feature]:
        return self.features if self.dense is None else self.dense.inputs

    def _needs(self) -> Needs:
        """All that the run reads: its features and maps to train on, and features of what it is measured on."""
        maps = [self.dense.maps] if self.dense is not None and self.dense.maps is not None else []
        whole = [replace(feature, views=()) for feature in self._inputs]
        drawn = HOLDOUT if self.config.holdout is not None else OUT_OF_FOLD  # parts of the training split
        measured = {self.config.validate_on, self.config.test_on} - {None, drawn}
        trained = [*self._inputs, *maps], self.rows(self.config.train_on)
        return [trained, *((whole, self.rows(split)) for split in measured if split is not None)]

    def _view(self, i: int) -> list[Feature]:
        return [feature.views[i] for feature in self.features]

    @contextmanager
    def sharing(self, rows: NDArray[np.int64], recipe: Recipe) -> Iterator[CachedSupply]:
        with self.feed(rows, recipe, self.config.order, None) as whole:
            yield replace(self, whole=whole)

    def predict(
        self, heads: Sequence[Head], rows: NDArray[np.int64], recipe: Recipe
    ) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
        size = recipe.batch_size
        return rows, predict(
            heads, self.stage.use(self.features), rows, recipe=recipe, batch_size=size, device=self.device
        )

    def save_origins(self, paths: RunPaths) -> None:
        classes = self.table.classes if self.dense is None else self.dense.classes
        guided = any(spec.kind == "thumb" for spec in self.specs)
        thumbs = Thumbs(self.cache.thumb_px, self.cache.look) if guided else None
        write_origins(paths.stores, self.features, classes, thumbs)

    def evaluate(self, paths: RunPaths, split: str, seconds: float, stop: process.StopFlag) -> dict[str, Any]:
        how: dict[str, Any] = {"cache": self.cache, "device": self.config.device, "stage": self.stage}
        return evaluate(paths.root, split, train_seconds=seconds, stop=stop, **how)

"""The supply of a training without a cache: images, the network that makes features of them, members on these.

In: a TrainConfig and OnlineImages.   Out: OnlineSupply, which `train` of this package hands to the driver of
`training.train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.config import OnlineConfig, TrainConfig
from loffta.dataset.splits import HOLDOUT
from loffta.dataset.targets import read_targets
from loffta.errors import UsageError
from loffta.evaluation.calibrated import calibrate, save
from loffta.evaluation.evaluate import score
from loffta.evaluation.findings import Findings
from loffta.evaluation.measure import measure, prediction_columns
from loffta.evaluation.told import cost_told, count_left_out, describe, describe_training
from loffta.feed.order import OrderChoice, Window
from loffta.heads import Head, build_head
from loffta.heads.recipe import Recipe
from loffta.machine import process
from loffta.machine.ranks import Rank
from loffta.machine.usage import Meter
from loffta.online import head_of
from loffta.online.dense_evaluate import measure_images
from loffta.online.dense_learning import FreshTargets, rows_with_paths
from loffta.online.evaluate import rows_to_use, save_all
from loffta.online.feed import OnlineFeed, OnlineImages
from loffta.online.opened_dense import open_dense
from loffta.online.stream import BATCH_SIZE
from loffta.online.trained import TrainedNetwork
from loffta.runs.holdout import held_rows
from loffta.runs.origins import fresh_feature, write_origins
from loffta.runs.records import Training
from loffta.runs.run import RunPaths, load_head, read_json
from loffta.store.recipe import recipe_hash
from loffta.store.table import ImageTable
from loffta.tasks import find_task
from loffta.tokens import FeatureSpec
from loffta.training.members import Member, build_dense_member, build_member
from loffta.training.optim import make_adamw


@dataclass(frozen=True)
class OnlineSupply:
    """A `Supply` from images; what its parts are, that protocol says."""

    config: TrainConfig
    online: OnlineConfig  # that of `config`
    recipe: Recipe  # that of `config`, parsed
    images: OnlineImages
    measured: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # rows of the splits that were measured
    cache: ClassVar[None] = None
    less_memory: ClassVar[str] = (
        "a smaller batch (--set batch_size=...), a smaller --image-px, fewer --seeds of a backbone that is trained, or "
        "--device cpu need less"
    )
    against_divergence: ClassVar[str] = "lower the learning rate (--set lr=..., --lr-backbone) and give a new --out"

    @property
    def table(self) -> ImageTable:
        return self.images.table

    @property
    def dense(self) -> FreshTargets | None:
        return self.images.targets

    @property
    def specs(self) -> Sequence[FeatureSpec]:
        return self.images.network.specs

    @property
    def names(self) -> Sequence[str]:
        return [f"{self.images.network.info.name}:{','.join(spec.taps)}" for spec in self.specs]

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of a split that have a label, or a target; which images are bad shows when they are read."""
        if self.dense is not None:
            return rows_with_paths(self.dense, self.table, split)
        return rows_to_use(self.table, split, self.config.task)

    def of_rank(self, rank: Rank) -> OnlineSupply:
        raise UsageError(
            f"images without a cache cannot be parted among {rank.of} ranks: a bad one shows when it is read",
            where="--ranks batches, with --online",
            remedy="deal seeds out (--seeds, --ranks members), or extract a cache first",
        )

    def member(self, recipe: Recipe, seed: int) -> Member:
        """A head on the network's features; where the network is trained, the two of them."""
        head, n_classes, device = head_of(self.config.head), len(self.table.classes), self.images.device
        if self.dense is not None:
            return build_dense_member(head, self.specs, self.dense.task, len(self.dense.classes), recipe, seed, device)
        if not self.online.unfrozen:
            return build_member(head, self.specs, n_classes, recipe, seed, device)
        both = TrainedNetwork(build_head(head, self.specs, n_classes, recipe, seed), self.images.network, seed)
        both.to(device).train()
        groups = both.groups(recipe.weight_decay, self.online.lr_backbone / recipe.lr)
        rng = torch.Generator(device).manual_seed(seed)
        return Member(seed, recipe, both, make_adamw(groups, recipe, device), rng, both.parts)

    def feed(
        self,
        rows: NDArray[np.int64],
        recipe: Recipe,
        order: OrderChoice,  # noqa: ARG002
        window: Window | None,  # noqa: ARG002
    ) -> OnlineFeed:
        n_alike = recipe.epochs if recipe.same_batches else 1
        size = recipe.batch_size
        return OnlineFeed(self.images, rows, batch_size=size, seed=self.config.data_seed, n_alike=n_alike)

    def sharing(self, rows: NDArray[np.int64], recipe: Recipe) -> AbstractContextManager[OnlineSupply]:  # noqa: ARG002
        """Itself: nothing is kept of images that are read at every step."""
        return nullcontext(self)

    def predict(
        self, heads: Sequence[Head], rows: NDArray[np.int64], recipe: Recipe, told: Findings | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
        """The good ones of the rows, and their logits [S, B, C]; `told` gets the features, too."""
        good: list[int] = []
        found: list[torch.Tensor] = []
        for batch in self.images.batches(rows.tolist(), min(recipe.batch_size, BATCH_SIZE)):
            if len(batch.rows):
                good += batch.rows.tolist()
                found.append(score(heads, batch.features, recipe, told))
        if not found:
            self.images.refuse_bad(rows, done="no results were written")
        return np.array(good, dtype=np.int64), torch.cat(found, dim=1).numpy()

    def save_origins(self, paths: RunPaths) -> None:
        """Of dense heads the store that these features would have been of: they predict as those of a cache do."""
        if self.dense is not None:
            info = self.images.network.info
            write_origins(paths.stores, [fresh_feature(info, spec) for spec in self.specs], self.dense.classes)

    def evaluate(self, paths: RunPaths, split: str, seconds: float, stop: process.StopFlag) -> dict[str, Any]:
        """Measures all seeds on whole images of a split, in one pass."""
        meter = Meter()
        config, table = self.config, self.table
        held_out = split == HOLDOUT and config.holdout is not None
        asked = held_rows(paths, table, table.source) if held_out else self.rows(split)
        n_unlabelled = 0 if held_out else len(table.rows_of(split)) - len(asked)
        if self.dense is not None:
            return self._evaluate_dense(paths, split, asked, seconds, stop)
        task = find_task(config.task)
        recipe = self.recipe.model_copy(update={"precision": read_json(paths.training, Training).precision})
        with (
            stop.at_once(f"evaluating split '{split}'; no results were written"),
            process.explain_memory(self.images.device, paths.root, self.less_memory),
        ):
            members = [self._load(paths, seed, recipe) for seed in range(config.seeds)]
            heads = [member.head.eval() for member in members]
            told = Findings(heads)
            rows, logits = self.predict(heads, asked, recipe, told)
            keys, targets = [table.keys[row] for row in rows], read_targets(table, config.task)[rows].numpy()
            measured = measure(task, logits, targets, table.classes, keys=keys, seed=config.data_seed)
            calibrated = calibrate(paths, config, split, logits, targets, may_fit=True)
        self.measured[split] = asked
        left_out = count_left_out(len(asked) - len(rows), n_unlabelled)
        results = self._describe(split, len(rows), left_out) | measured
        results |= describe_training(paths, config, recipe, [m.parts["head"] for m in members]) | told.entries()
        results |= calibrated.told
        results |= cost_told(paths, meter)
        results |= {"versions": process.versions(), "train_seconds": seconds}
        save(paths, split, results, prediction_columns(task, logits, targets, rows, keys), calibrated.fitted)
        return results

    def _evaluate_dense(
        self, paths: RunPaths, split: str, rows: NDArray[np.int64], seconds: float, stop: process.StopFlag
    ) -> dict[str, Any]:
        """As `evaluate --online` measures a run that was trained on a cache, on these rows."""
        meter, device, network = Meter(), self.images.device, self.images.network
        with process.explain_memory(device, paths.root, self.less_memory):
            run = open_dense(paths.root, device)
            how = {"load": lambda _: network.backbone, "device": device}
            (measured,), bad = measure_images([run], self.images.source, self.table, split, rows, stop, how)
        self.images.bad.update(bad)
        self.measured[split] = rows
        measured.results["train_seconds"] = seconds
        save_all([paths], split, [measured], meter, dense=True)
        return measured.results

    def refuse_bad(self, *, done: str) -> None:
        """Raises TooManyBadImages where a split that was measured has too many."""
        for rows in self.measured.values():
            self.images.refuse_bad(rows, done=done)

    def _load(self, paths: RunPaths, seed: int, recipe: Recipe) -> Member:
        """A trained member."""
        member = self.member(recipe, seed)
        for part, module in member.parts.items():
            module.load_state_dict(load_head(paths.weights(seed, part)))
        return member

    def _describe(self, split: str, n_used: int, left_out: dict[str, int]) -> dict[str, Any]:
        """What results.json says of the run and of features that no store holds."""
        online, info = self.online, self.images.network.info
        label = f"{info.label} (trained, too)" if online.unfrozen else info.label
        used = {"store": info.name, "label": label, "recipe_hash": recipe_hash(info.recipe)}
        source = {"source": self.table.source, "digest": self.table.digest}
        return describe(self.config, (), split, n_used, left_out) | {
            "features": [used | {"taps": list(spec.taps)} for spec in self.specs],
            "online": source | {"unfrozen": online.unfrozen, "augment": online.augment, "backbone": info.recipe},
        }

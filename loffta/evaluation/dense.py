"""Measures trained dense heads on a split of a cache, at the labels' own size.

In: a run.   Out: results.json, and predictions-dense.parquet with the figures of every image and seed. Maps are never
kept: what a batch gives becomes one small record an image and seed, so that memory does not grow with what is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta.config import TrainConfig
from loffta.dataset.dense import DenseTargets, open_targets, rows_with_targets
from loffta.dataset.features import choose_features, n_bad
from loffta.errors import LofftaError, UsageError
from loffta.evaluation.clock import Clock
from loffta.evaluation.dense_measure import Goal, figure_columns, measure_dense_run
from loffta.evaluation.findings import Findings, together
from loffta.evaluation.told import compare, cost_told, count_left_out, describe, describe_training
from loffta.evaluation.trained import batch_size_of, load_each, trained_recipe
from loffta.feed.batches import Feed
from loffta.feed.staged import Stage
from loffta.heads import Head, build_dense_head
from loffta.heads.dense import DenseRecipe
from loffta.heads.precision import autocast, matmul_precision
from loffta.machine import process
from loffta.machine.progress import say
from loffta.machine.usage import Meter
from loffta.runs.holdout import learnt_told, split_rows
from loffta.runs.known_images import open_cache
from loffta.runs.origins import read_origins
from loffta.runs.run import RunPaths, open_run, read_results, save_results
from loffta.runs.turns import Turns, is_of_folds, read_turns
from loffta.store.cache import Cache, Store
from loffta.store.targets import geometry_of
from loffta.targets import TargetKind
from loffta.tasks.dense import DENSE_TASKS
from loffta.tokens import FeatureSpec

OUTPUT_BYTES = 512 << 20  # that a head's outputs for one batch may take: COCO-Stuff's 171 classes at 448 px are 137 MB
MAX_OUTPUT_PX = 4096  # side; a map of 21 classes takes 1.4 GB there
_LESS_MEMORY = "measure where there is more: `loffta evaluate RUN --device cpu`; the trained heads are kept"


@dataclass(frozen=True)
class Stream:
    """What trained heads are run on: the inputs of some images, batch by batch, and their targets."""

    targets: DenseTargets
    recipe: DenseRecipe
    batch_size: int
    device: torch.device
    keys: Sequence[str]  # of all rows

    @torch.no_grad()
    def records(self, heads: Sequence[Head], rows: NDArray[np.int64], told: Findings | None = None) -> list[list[Any]]:
        """Records [S][B] of S heads for B rows, in the order of `rows`; one read feeds all heads, and `told`.

        One head after the other gives its maps, in float32, and they are gone before the next one's.

        Raises:
            LofftaError: outputs that are no numbers.
        """
        heads = [head.to(self.device) for head in heads]
        found: list[list[Any]] = [[] for _ in heads]
        size, settings, n_classes = self._images_at_once(heads[0]), self.recipe.settings(), len(self.targets.classes)
        task, inputs = DENSE_TASKS[self.targets.task], self.targets.inputs
        with (
            Feed(inputs, rows, batch_size=size, device=self.device, mode="stream") as feed,  # each is read once
            matmul_precision(self.recipe, self.device),
        ):
            for batch in feed.in_order():
                here = batch.rows.cpu().numpy()
                natives = self.targets.shown(here)
                clock = told.clock if told is not None else Clock()
                with clock.shared(self.device, len(here)):
                    prepared = heads[0].prepare(batch.features)
                if told is not None:
                    told.add(prepared, len(here))
                for i, head in enumerate(heads):
                    with clock.own(self.device, len(here)):
                        outputs = head_outputs(head, prepared, self.recipe, self.device)
                    refuse_infinite(outputs, i, [self.keys[row] for row in here.tolist()])
                    found[i] += task.records(outputs, natives, settings, n_classes)
        return found

    def _images_at_once(self, head: Any) -> int:
        readout = DENSE_TASKS[self.targets.task].readout(len(self.targets.classes), self.recipe.settings())
        return max(1, min(self.batch_size, images_at_once(readout.n_outputs, int(head.output_px))))


def images_at_once(n_outputs: int, output_px: int) -> int:
    """How many images' outputs OUTPUT_BYTES hold; 0 where not even one's."""
    return OUTPUT_BYTES // (4 * n_outputs * output_px**2)


def head_outputs(head: Head, prepared: Any, recipe: DenseRecipe, device: torch.device) -> Tensor:
    """[B, K, S, S] of one head in float32, computed in the precision of its training."""
    with autocast(recipe, device):
        outputs: Tensor = head(prepared)
    return outputs.float()


def refuse_infinite(outputs: Tensor, seed: int, keys: Sequence[str]) -> None:
    """Refuses outputs that are no numbers; `keys` of their images."""
    bad = ~outputs.isfinite().flatten(1).all(1)
    if bad.any():
        raise LofftaError(
            f"the head of seed {seed} gives no finite output for an image",
            where=f"image {keys[int(bad.nonzero()[0])]}",
            remedy="train again with a lower learning rate, or look for damaged features with "
            "`loffta verify CACHE --deep`",
        )


def evaluate_dense(
    run: Path,
    split: str,
    *,
    cache: Cache | None = None,
    cache_root: Path | None = None,
    output_px: int | None = None,
    device: str = "auto",
    train_seconds: float | None = None,
    stop: process.StopFlag | None = None,
    stage: Stage | None = None,
) -> dict[str, Any]:
    """Evaluates every seed of a finished training of a dense head; arguments and errors as `evaluate` has them.

    Args:
        output_px: side of the heads' outputs; None: as in training. Labels keep their own size.
    """
    meter = Meter()
    process.cap_threads()
    paths, config = open_run(run)
    cache = cache or open_cache(paths, config, cache_root)
    recipe = trained_recipe(paths, config)
    assert isinstance(recipe, DenseRecipe), "dense tasks are for dense heads"
    recipe = with_output_px(recipe, output_px)
    features = choose_features(cache, config.features, recipe.kinds(), default_taps="all")
    targets = open_targets(cache, config.task, config.head, features, training=False)
    _check_classes(paths, targets, cache)
    target = process.resolve_device(device)
    asked = split_rows(paths, config, cache, features, split)
    rows = rows_with_targets(targets, cache, asked, split, partial=config.partial)
    specs = [feature.spec for feature in targets.inputs]
    heads = load_dense_heads(paths, config, recipe, specs, len(targets.classes))
    doing = f"evaluating split '{split}'; no results were written"
    with (stop or process.StopFlag()).at_once(doing), process.explain_memory(target, run, _LESS_MEMORY):
        stage = stage or Stage(None)
        stage.bring([(targets.inputs, rows)])
        near = replace(targets, inputs=tuple(stage.use(targets.inputs)))
        stream = Stream(near, recipe, batch_size_of(paths, recipe), target, cache.table.keys)
        turns = read_turns(paths, cache.table, cache.paths.root) if config.shots or is_of_folds(config, split) else None
        records, told = _records(stream, heads, rows, turns)
        goal = Goal(DENSE_TASKS[config.task], targets.classes, recipe.settings())
        measured = measure_dense_run(goal, config, turns, records, rows, cache.paths.root)
    n_shown = len(next(iter(measured["metrics"].values()))["per_seed"])
    left_out = count_left_out(n_bad(cache, features, split), len(asked) - len(rows))
    results = describe(config, features, split, len(rows), left_out) | measured
    results |= describe_training(paths, config, recipe, heads) | together(told)
    results["images"] |= compare(paths, cache) | learnt_told(paths, config, cache, split, rows)
    results["protocol"] = config.protocol
    if recipe.flip_average:
        say("the mean over mirror images is for `--online`: on a cache no image is mirrored, nor were these")
    of_figures = recipe.model_copy(update={"flip_average": False})
    results["dense"] |= describe_dense(
        targets.kind, targets.classes, targets.digest(rows), features[0].store, of_figures, heads[0]
    )
    results |= cost_told(paths, meter) | stage.told
    results["versions"] = process.versions()
    if train_seconds is None and paths.results(split).exists():
        train_seconds = read_results(paths.results(split)).get("train_seconds")
    if train_seconds is not None:
        results["train_seconds"] = train_seconds
    columns = figure_columns(goal, records[-n_shown:], rows, [cache.table.keys[row] for row in rows])
    save_results(paths, split, results, columns, dense=True)
    return results


def with_output_px(recipe: DenseRecipe, output_px: int | None) -> DenseRecipe:
    """The recipe with another side of outputs; None: as in training.

    Raises:
        UsageError: a side that no head can give.
    """
    if output_px is None:
        return recipe
    if not 1 <= output_px <= MAX_OUTPUT_PX:
        raise UsageError(
            f"{output_px} is no side of an output", where="--output-px", remedy=f"give 1 to {MAX_OUTPUT_PX}"
        )
    return recipe.model_copy(update={"output_px": output_px})


def load_dense_heads(
    paths: RunPaths,
    config: TrainConfig,
    recipe: DenseRecipe,
    specs: Sequence[FeatureSpec],
    n_classes: int,
    *,
    shown: bool = False,
) -> list[Head]:
    """The trained heads of a run, one per seed and turn, in evaluation mode; arguments and errors as `load_heads`."""
    readout = DENSE_TASKS[config.task].readout(n_classes, recipe.settings())
    trained = trained_recipe(paths, config)
    assert isinstance(trained, DenseRecipe), "dense tasks are for dense heads"

    def build(seed: int) -> Head:
        head = build_dense_head(config.head, specs, readout, trained, seed)  # deconv's layers depend on its output_px
        head.output_px = recipe.output_px
        return cast("Head", head)

    return load_each(paths, config, build, n_classes, shown=shown)


def _records(
    stream: Stream, heads: Sequence[Head], rows: NDArray[np.int64], turns: Turns | None
) -> tuple[list[list[Any]], list[Findings]]:
    """Records [S][B], of folds each image's by the heads that have not seen it; and what the heads tell."""
    if turns is None or turns.folds is None:
        told = [Findings(heads)]
        return stream.records(heads, rows, told[0]), told
    folds, n_seeds, told = turns.fold_of(rows), len(heads) // len(turns.trained), []
    found: list[list[Any]] = [[None] * len(rows) for _ in range(n_seeds)]
    for k in np.unique(folds).tolist():
        tested, places = heads[k * n_seeds : (k + 1) * n_seeds], np.flatnonzero(folds == k).tolist()
        told.append(Findings(tested))
        for of_seed, records in zip(found, stream.records(tested, rows[places], told[-1]), strict=True):
            for place, record in zip(places, records, strict=True):
                of_seed[place] = record
    return found, told


def _check_classes(paths: RunPaths, targets: DenseTargets, cache: Cache) -> None:
    """Refuses targets whose classes are not those of the training, in their order."""
    trained = read_origins(paths.stores).classes if paths.stores.exists() else targets.classes
    if trained != targets.classes:
        raise LofftaError(
            f"the targets '{targets.kind}' of this cache have other classes than the training: "
            f"{', '.join(targets.classes[:5]) or 'none'} instead of {', '.join(trained[:5]) or 'none'}",
            where=cache.paths.root,
            remedy="name the cache of the training with --cache",
        )


def describe_dense(
    kind: TargetKind, classes: Sequence[str], digest: str, store: Store, recipe: DenseRecipe, head: Any
) -> dict[str, Any]:
    """All that decides a figure beside features and weights, and is not the same in every paper."""
    return {
        "target": kind,
        "classes": list(classes),
        "targets": digest,
        "geometry": geometry_of(store.info.recipe),  # labels are cut to what the features show
        "output_px": head.output_px,
        "settings": asdict(recipe.settings()),
        "adapter_parameters": head.n_adapter_parameters(),
    }

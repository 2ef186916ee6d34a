"""Measures trained heads on a split of a cache.

In: a run.   Out: results.json and predictions.parquet in it, for another split than test with its name in theirs, and
the results as a mapping. Called by `loffta evaluate` and at the end of `loffta train`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loffta.dataset.features import Feature, choose_features, n_bad
from loffta.dataset.targets import labelled_rows, read_targets
from loffta.errors import LofftaError, UsageError
from loffta.evaluation.calibrated import calibrate, save
from loffta.evaluation.clock import Clock
from loffta.evaluation.dense import evaluate_dense
from loffta.evaluation.findings import Findings, together
from loffta.evaluation.measure import prediction_columns
from loffta.evaluation.told import compare, cost_told, count_left_out, describe, describe_training
from loffta.evaluation.trained import batch_size_of, load_heads, trained_recipe
from loffta.evaluation.turns import measure_run
from loffta.feed.batches import Batch, Feed
from loffta.feed.staged import Stage
from loffta.heads import Head
from loffta.heads.precision import autocast, matmul_precision
from loffta.heads.recipe import Recipe
from loffta.machine import process
from loffta.machine.progress import say
from loffta.machine.usage import Meter
from loffta.runs.holdout import learnt_told, split_rows
from loffta.runs.known_images import open_cache
from loffta.runs.origins import read_origins
from loffta.runs.run import RunPaths, open_run, read_results
from loffta.runs.turns import Turns, is_of_folds, read_turns
from loffta.store.cache import Cache
from loffta.store.table import ImageTable
from loffta.tasks import find_task
from loffta.tasks.dense import DENSE_TASKS

_LESS_MEMORY = "measure where there is more: `loffta evaluate RUN --device cpu`; the trained heads are kept"


def evaluate(
    run: Path,
    split: str,
    *,
    cache: Cache | None = None,
    cache_root: Path | None = None,
    labels: str | None = None,
    output_px: int | None = None,
    device: str = "auto",
    train_seconds: float | None = None,
    stop: process.StopFlag | None = None,
    stage: Stage | None = None,
) -> dict[str, Any]:
    """Evaluates every seed of a finished training.

    Args:
        cache: what `train` has open: the images that the run knows.
        cache_root: where the cache is now; None: see `open_cache`.
        labels: a set of annotations of the cache, or a file, instead of the run's own: the results are those of the
            split SPLIT@LABELS.
        output_px: of dense heads: side of their outputs; None: as in training.
        train_seconds: what the training took; None: what the results of this split said before, if anything.
        stop: listened to while the heads predict.
        stage: where features are copied to before they are read.
    Raises:
        LofftaError: no run, no trained head, or a cache that lacks its features.
        NotSaved: measured, and nothing could be written; the error has the results.
        Stopped: a signal came.
    """
    meter = Meter()
    process.cap_threads()
    paths, config = open_run(run)
    if config.task in DENSE_TASKS:
        if labels is not None:
            raise UsageError("a dense run is measured by targets", where="--labels", remedy="leave it out")
        return evaluate_dense(
            run,
            split,
            cache=cache,
            cache_root=cache_root,
            output_px=output_px,
            device=device,
            train_seconds=train_seconds,
            stop=stop,
            stage=stage,
        )
    if output_px is not None:
        raise UsageError(
            "this run gives no maps, whose size could be chosen", where="--output-px", remedy="leave it out"
        )
    trained = cache or open_cache(paths, config, cache_root)
    cache = trained if labels is None else Cache.open(trained.paths.root).with_labels(labels)
    recipe = trained_recipe(paths, config)
    features = choose_features(cache, config.features, recipe.kinds(), default_taps="all")
    whole, cache = cache.table, _as_trained(paths, cache)
    task, target = find_task(config.task), process.resolve_device(device)
    asked = _known_to(cache.table, whole, split_rows(paths, config, cache, features, split))
    rows = labelled_rows(cache.table, asked, split, config.task)
    heads = load_heads(paths, config, features, recipe, len(cache.table.classes))
    doing = f"evaluating split '{split}'; no results were written"
    with (stop or process.StopFlag()).at_once(doing), process.explain_memory(target, run, _LESS_MEMORY):
        how: dict[str, Any] = {"recipe": recipe, "batch_size": batch_size_of(paths, recipe), "device": target}
        turns = read_turns(paths, whole, cache.paths.root) if config.shots or is_of_folds(config, split) else None
        stage = stage or Stage(None)
        stage.bring([(features, rows)])
        if turns is None or turns.folds is None:
            told = [Findings(heads)]
            logits = predict(heads, stage.use(features), rows, **how, told=told[0])
        else:
            logits, told = predict_folds(heads, stage.use(features), rows, turns, **how)
        targets = read_targets(cache.table, config.task)[rows].numpy()
        keys = [cache.table.keys[row] for row in rows]
        measured = measure_run(task, config, turns, logits, targets, cache.table.classes, rows, keys)
        n_shown = len(measured["metrics"][task.headline]["per_seed"])
        logits = logits[-n_shown:]  # of draws, by the heads with the most images
        compared = compare(paths, trained)
        own = labels is None and "other_set" not in compared
        calibrated = calibrate(paths, config, split, logits, targets, may_fit=own)
    left_out = count_left_out(n_bad(cache, features, split), len(asked) - len(rows))
    saved_as = split if labels is None else f"{split}@{cache.labels}"
    results = describe(config, features, saved_as, len(rows), left_out) | measured
    results |= {} if cache.labels is None else {"labels": cache.labels}
    results |= describe_training(paths, config, recipe, heads) | together(told) | calibrated.told
    results["images"] |= compared | learnt_told(paths, config, trained, split, rows)
    results |= cost_told(paths, meter) | stage.told
    results["versions"] = process.versions()
    if train_seconds is None and paths.results(saved_as).exists():
        train_seconds = read_results(paths.results(saved_as)).get("train_seconds")
    if train_seconds is not None:
        results["train_seconds"] = train_seconds
    columns = prediction_columns(task, logits, targets, rows, keys)
    if turns is not None and turns.folds is not None:
        columns["fold"] = np.tile(turns.fold_of(rows), n_shown)
    save(paths, saved_as, results, columns, calibrated.fitted)
    return results


def _as_trained(paths: RunPaths, cache: Cache) -> Cache:
    """The cache with its classes as the run numbers them; by name, for one that has grown may have others in between.

    Raises:
        LofftaError: the cache has none of them.
    """
    # older runs do not keep them, and numbers have none
    if not paths.stores.exists() or not (classes := read_origins(paths.stores).classes):
        return cache
    if not {*classes} & {*cache.table.classes}:
        raise LofftaError(
            f"this cache has other classes than the training: '{cache.table.classes[0]}', ... instead of "
            f"'{classes[0]}', ..."
            if cache.table.classes
            else "this cache has no classes",
            where=cache.paths.root,
            remedy="name the cache of the training with --cache, or labels of its classes with --labels",
        )
    return replace(cache, table=cache.table.numbered_by(classes))


def _known_to(table: ImageTable, whole: ImageTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows without those of classes that came later: no head can be right about them.

    Args:
        table: with the run's classes.
        whole: with all of the cache's.
    """
    strange = whole.is_labelled()[rows] & ~table.is_labelled()[rows]
    if not strange.any():
        return rows
    if strange.all():
        raise LofftaError(
            "no image is of a class that the run knows", where=whole.source, remedy="train again with another --out"
        )
    say(f"{strange.sum()} of the {len(rows)} images are of classes that the training did not know: they are left out")
    return rows[~strange]


def predict(
    heads: Sequence[Head],
    features: Sequence[Feature],
    rows: NDArray[np.int64],
    *,
    recipe: Recipe,
    batch_size: int,
    device: torch.device,
    told: Findings | None = None,
) -> NDArray[np.floating[Any]]:
    """Logits [S, B, C] of S heads for B rows, in the order of `rows`; one read feeds all heads, and `told`."""
    heads = [head.to(device) for head in heads]
    with Feed(features, rows, batch_size=batch_size, device=device, mode="stream") as feed:  # each is read once
        return predict_batches(heads, feed.in_order(), recipe, told)


def predict_folds(
    heads: Sequence[Head], features: Sequence[Feature], rows: NDArray[np.int64], turns: Turns, **how: Any
) -> tuple[NDArray[np.floating[Any]], list[Findings]]:
    """Logits [S, B, C] of each row by the S heads that have not seen it; and what they tell of these rows.

    Args:
        heads: fold by fold.
    """
    folds, n_seeds = turns.fold_of(rows), len(heads) // len(turns.trained)
    parts, told = [], []
    for k in np.unique(folds):
        tested = heads[k * n_seeds : (k + 1) * n_seeds]
        told.append(Findings(tested))
        parts.append(predict(tested, features, rows[folds == k], **how, told=told[-1]))
    order = np.argsort(np.argsort(folds, kind="stable"), kind="stable")
    return np.concatenate(parts, axis=1)[:, order], told


def predict_batches(
    heads: Sequence[Head], batches: Iterable[Batch], recipe: Recipe, told: Findings | None = None
) -> NDArray[np.floating[Any]]:
    """Logits [S, B, C] of S heads for the images of all batches, which lie on the heads' device."""
    return torch.cat([score(heads, batch.features, recipe, told) for batch in batches], dim=1).numpy()


@torch.no_grad()
def score(
    heads: Sequence[Head], features: Sequence[Tensor], recipe: Recipe, told: Findings | None = None
) -> Float[Tensor, "S B C"]:
    """Logits, in float32, of S heads for the images of one batch, on the CPU; `prepare` is done once for all heads.

    Of heads that learn numbers these, [S, B, 1], in their unit and float64.

    Args:
        features: one [B, L, *shape] per Feature, on the heads' device.
        recipe: of the heads; they compute in its precision.
        told: gets what was prepared, too.
    """
    device, n_images = features[0].device, len(features[0])
    clock = told.clock if told is not None else Clock()
    with clock.shared(device, n_images):
        prepared = heads[0].prepare(features)
    if told is not None:
        told.add(prepared, n_images)
    with matmul_precision(recipe, device), autocast(recipe, device), clock.own(device, n_images, len(heads)):
        logits = [head(prepared) for head in heads]
    found = torch.stack(logits).float().cpu()
    scales = [head.scale for head in heads]
    return torch.stack([o if s is None else s.to_values(o) for s, o in zip(scales, found, strict=True)])

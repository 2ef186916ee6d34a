"""From the logits of trained heads to metrics with their spread, and to a table of predictions.

In: logits [S, B, C] of S seeds for B images, wherever they come from, and targets.   Out: the parts of results.json
that say how good a head is, and the columns of predictions.parquet. Knows neither caches nor runs: `evaluate` and
`online` call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped
from numpy.typing import NDArray

from loffta.errors import LofftaError
from loffta.tasks import Task
from loffta.tasks.bootstrap import N_RESAMPLES, group_weights, image_weights, interval

PROBABILITY_CLASSES = 200  # predictions keep logits and probabilities of up to so many classes: 1,600 bytes each


def measure(
    task: Task,
    logits: Float[np.ndarray, "S B C"],
    targets: Shaped[np.ndarray, "B *target"],
    classes: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Metrics of a task, with their mean and standard deviation over seeds and 95 % intervals over images.

    The interval is a percentile bootstrap of the mean over seeds: images are drawn anew, the heads stay.

    Args:
        logits: of a head per seed.
        targets: of the same images, none without a label.
        classes: names of the C classes.
        keys: of the images, to name one in an error.
        seed: of the resamples.
        groups: of the images: resamples draw whole ones; None: images.
    Returns:
        metrics, by name mean, std (None for one seed), per_seed and ci95; notes, by metric, on what these labels leave
        undefined; and the task's own: confusion or confused_pairs, or per_class.
    Raises:
        LofftaError: logits that are not finite, or targets that define no metric at all.
    """
    bad = ~np.isfinite(logits).all(axis=2)
    if bad.any():
        seed_, image = np.argwhere(bad)[0]
        raise LofftaError(
            f"the head of seed {seed_} gives no finite score for {int(bad[seed_].sum())} of {bad.shape[1]} images",
            where=f"image {keys[image] if keys else image}",
            remedy="train again with a lower learning rate, or look for damaged features with "
            "`loffta verify CACHE --deep`",
        )
    per_seed = [task.metrics(of_seed, targets, classes) for of_seed in logits]
    notes = task.notes(targets, classes)
    if task.headline not in per_seed[0]:
        raise LofftaError(
            f"{task.headline} is not defined on these {len(targets)} images",
            where=notes.get(task.headline, "targets"),
            remedy="measure on images that have labels of the run's classes"
            if classes
            else "measure on images whose values differ",
        )
    if groups is None:
        blocks = image_weights(len(targets), N_RESAMPLES, seed=seed)
    else:
        blocks = group_weights(groups, N_RESAMPLES, seed=seed)
    resampled = task.resampled(logits, targets, classes, blocks)
    found = {name: [of_seed[name] for of_seed in per_seed] for name in per_seed[0]}
    metrics = {name: summary(values) | {"ci95": list(interval(resampled[name]))} for name, values in found.items()}
    return {"metrics": metrics, "notes": notes, **task.details(logits, targets, classes)}


def summary(per_seed: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1) over seeds; no deviation of one."""
    std = float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None
    return {"mean": float(np.mean(per_seed)), "std": std, "per_seed": [float(value) for value in per_seed]}


def prediction_columns(
    task: Task,
    logits: Float[np.ndarray, "S B C"],
    targets: Shaped[np.ndarray, "B *target"],
    rows: Integer[np.ndarray, " B"],
    keys: Sequence[str],
) -> dict[str, NDArray[Any] | list[Any]]:
    """The columns of predictions.parquet: a line per image and seed, all images of a seed in turn.

    row, key, label, seed, predicted; confidence, the highest probability; and where there are at most
    PROBABILITY_CLASSES classes logits and probabilities, one per class: what ranks images needs logits, for
    probabilities of float32 end at 1.0. Labels are numbers of classes: one, or a list of those that the image has; or
    values, of which no head says how sure it is.

    Args:
        keys: of the same images as `rows`.
    """
    n_seeds, n_classes = len(logits), logits.shape[2]
    columns: dict[str, NDArray[Any] | list[Any]] = {
        "row": np.tile(rows, n_seeds),
        "key": list(keys) * n_seeds,
        "label": _numbers(np.concatenate([targets] * n_seeds)),
        "seed": np.repeat(np.arange(n_seeds), len(rows)),
        "predicted": _numbers(np.concatenate(task.decide(logits))),
    }
    if task.label_kind == "regression":
        return columns
    probabilities = task.activation(torch.tensor(logits)).numpy()
    columns["confidence"] = probabilities.max(axis=2).reshape(-1)
    if n_classes <= PROBABILITY_CLASSES:
        columns["logits"] = logits.reshape(-1, n_classes)
        columns["probabilities"] = probabilities.reshape(-1, n_classes)
    return columns


def _numbers(classes: NDArray[Any]) -> NDArray[Any] | list[Any]:
    """[n] numbers as they are; [n, C] of yes and no as lists of numbers."""
    return classes if classes.ndim == 1 else [np.flatnonzero(row).tolist() for row in classes]

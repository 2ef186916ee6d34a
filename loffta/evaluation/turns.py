"""What a run with folds, or with draws of a few labels, comes to: of each fold, of all predictions, and of each size.

In: logits of the heads of all turns, targets.   Out: the parts of results.json that say how good they are. Called by
`evaluate`, in place of `measure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray

from loffta.config import TrainConfig
from loffta.evaluation.learning import fit_curve, tell
from loffta.evaluation.measure import measure, summary
from loffta.runs.turns import Turns, turn_names
from loffta.tasks import Task
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.figures import possible
from loffta.tasks.paired import Scored, interval_of


def measure_run(
    task: Task,
    config: TrainConfig,
    turns: Turns | None,
    logits: Float[np.ndarray, "M B C"],
    targets: Shaped[np.ndarray, "B *target"],
    classes: Sequence[str],
    rows: NDArray[np.int64],
    keys: Sequence[str],
) -> dict[str, Any]:
    """As `measure`: of a plain run, of out-of-fold predictions, or of a run with draws.

    Args:
        turns: None where every head is to be measured on every image alike.
        rows: of the images, in the table that the turns are of.
    """
    if turns is None:
        return measure(task, logits, targets, classes, keys=keys, seed=config.data_seed)
    if turns.folds is not None:
        groups = None if turns.groups is None else [turns.groups[i] for i in np.searchsorted(turns.rows, rows)]
        folds = turns.fold_of(rows)
        return measure_folds(task, logits, targets, classes, folds, keys=keys, groups=groups, config=config)
    n_images = [len(turns.trained[name]) for name in turn_names(config)[:: config.draws]]
    return measure_shots(task, logits, targets, classes, keys=keys, n_images=n_images, config=config)


def measure_folds(
    task: Task,
    logits: Float[np.ndarray, "S B C"],
    targets: Shaped[np.ndarray, "B *target"],
    classes: Sequence[str],
    folds: NDArray[np.int64],
    *,
    keys: Sequence[str],
    groups: Sequence[str] | None,
    config: TrainConfig,
) -> dict[str, Any]:
    """Metrics of all out-of-fold predictions together, as `measure` gives them; and `folds`, of each fold for itself.

    Where images come in groups, an interval is over groups: a patient's images fail together.

    Args:
        logits: of each image by the heads, one per seed, that have not seen it.
        folds: [B], where each is tested.
        groups: [B], their names; None: every image is for itself.
    """
    pooled = measure(task, logits, targets, classes, keys=keys, seed=config.data_seed, groups=groups)
    assert config.folds is not None, "whoever has folds asked for them"
    n_folds = config.folds
    per_fold: list[dict[str, float]] = []
    for k in range(n_folds):
        here = folds == k
        of_seeds = [task.metrics(of_seed[here], targets[here], classes) for of_seed in logits] if here.any() else [{}]
        per_fold.append({name: float(np.mean([of_seed[name] for of_seed in of_seeds])) for name in of_seeds[0]})
    return pooled | {"folds": describe_folds(config, list(pooled["metrics"]), per_fold, folds, groups)}


def describe_folds(
    config: TrainConfig,
    names: Sequence[str],
    per_fold: Sequence[Mapping[str, float]],
    folds: NDArray[np.int64],
    groups: Sequence[str] | None,
) -> dict[str, Any]:
    """What results.json says of folds beside the metrics of all of their predictions together.

    Args:
        names: of the metrics.
        per_fold: the metrics of each fold, mean over seeds; without those that its images do not define.
        folds: [B], where each image is tested.
        groups: [B], their names; None: every image is for itself.
    """
    metrics = {}
    for name in names:
        values = [found.get(name) for found in per_fold]
        if defined := [value for value in values if value is not None]:
            told = summary(defined)
            metrics[name] = {"mean": told["mean"], "std": told["std"], "per_fold": values}
    told_groups = {} if groups is None else {"group": config.group, "groups": len({*groups})}
    images = np.bincount(folds, minlength=len(per_fold)).tolist()
    return {"n": len(per_fold), **told_groups, "images": images, "metrics": metrics}


def measure_shots(
    task: Task,
    logits: Float[np.ndarray, "M B C"],
    targets: Shaped[np.ndarray, "B *target"],
    classes: Sequence[str],
    *,
    keys: Sequence[str],
    n_images: Sequence[int],
    config: TrainConfig,
) -> dict[str, Any]:
    """Metrics of the heads that had the most labels, and `learning_curve`: of all sizes, and what more labels bring.

    Args:
        logits: of the heads of all turns: sizes, draws, seeds.
        n_images: that the heads of each size trained on.
    """
    by_size = logits.reshape(len(config.shots), -1, *logits.shape[1:])
    points = []
    for shots, n, of_size in zip(config.shots, n_images, by_size, strict=True):
        found = measure(task, of_size, targets, classes, keys=keys, seed=config.data_seed)
        values = np.array(found["metrics"][task.headline]["per_seed"])
        recount = task.recount(targets, task.decide(of_size), of_size)
        assert recount is not None, "single labels are recounted from decisions"
        drawn = np.concatenate([recount(weights) for weights in image_weights(len(targets), seed=config.data_seed)])
        interval = possible(task.headline, interval_of(Scored(values, drawn)))
        points.append({"shots": shots, "images": n, "metrics": found["metrics"], "interval": interval})
    fit = fit_curve(config.shots, [point["metrics"][task.headline]["per_seed"] for point in points])
    curve = {"metric": task.headline, "draws": config.draws, "points": points, "fit": fit and fit.as_json()}
    curve["told"] = tell(task.headline, config.shots[-1], fit)
    return found | {"learning_curve": curve}

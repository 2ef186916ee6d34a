"""From records of dense predictions to metrics with their spread over seeds and intervals over images.

In: records [S][B] of S seeds for B images, a small one each.   Out: the parts of results.json that say how good the
heads are, and the columns of predictions-dense.parquet. Called by `dense`; `measure` is the same for logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.config import TrainConfig
from loffta.errors import LofftaError
from loffta.evaluation.learning import fit_curve, tell
from loffta.evaluation.measure import summary
from loffta.evaluation.turns import describe_folds
from loffta.runs.turns import Turns, turn_names
from loffta.targets import DenseSettings
from loffta.tasks.bootstrap import N_RESAMPLES, group_weights, image_weights, interval
from loffta.tasks.dense import DenseTask
from loffta.tasks.figures import possible
from loffta.tasks.paired import Scored, interval_of
from loffta.tasks.records import pack

Records = Sequence[Sequence[Any]]  # of seeds, then images


@dataclass(frozen=True)
class Goal:
    """What records are measured by."""

    task: DenseTask
    classes: tuple[str, ...]
    settings: DenseSettings

    def metrics(self, records: Sequence[Any]) -> dict[str, float]:
        """Of one seed; those that these targets do not define are left out."""
        return self.task.metrics(records, self.classes, self.settings)


def measure_dense_run(
    goal: Goal, config: TrainConfig, turns: Turns | None, records: Records, rows: NDArray[np.int64], where: str | Path
) -> dict[str, Any]:
    """As `measure_dense`: of a plain run, of out-of-fold predictions, or of a run with draws of a few images.

    Args:
        turns: None where every head is to be measured on every image alike.
        where: the images are, for messages.
    """
    if turns is None:
        return measure_dense(goal, records, config.data_seed, where)
    if turns.folds is None:
        return _measure_shots(goal, config, turns, records, where)
    groups = None if turns.groups is None else [turns.groups[i] for i in np.searchsorted(turns.rows, rows)]
    pooled = measure_dense(goal, records, config.data_seed, where, groups)
    folds, per_fold = turns.fold_of(rows), []
    for k in range(len(turns.trained)):
        here = np.flatnonzero(folds == k).tolist()
        of_seeds = [goal.metrics([of_seed[i] for i in here]) for of_seed in records] if here else [{}]
        known = set.intersection(*map(set, of_seeds))
        per_fold.append({name: float(np.mean([of_seed[name] for of_seed in of_seeds])) for name in known})
    return pooled | {"folds": describe_folds(config, list(pooled["metrics"]), per_fold, folds, groups)}


def measure_dense(
    goal: Goal, records: Records, seed: int, where: str | Path, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """Metrics of a dense task, with their mean and standard deviation over seeds and 95 % intervals over images.

    Args:
        seed: of the resamples.
        groups: of the images: resamples draw whole ones; None: images.
    Returns:
        As `measure`; what the task keeps beside metrics stands in `dense`.
    Raises:
        LofftaError: targets that define no metric at all.
    """
    task, classes, settings = goal.task, goal.classes, goal.settings
    per_seed = [goal.metrics(of_seed) for of_seed in records]
    notes = task.notes(records[0], classes, settings)
    known = [name for name in per_seed[0] if all(name in of_seed for of_seed in per_seed)]
    if task.headline not in known:
        raise LofftaError(
            f"{task.headline} is not defined on these {len(records[0])} images",
            where=notes.get(task.headline, where),
            remedy=f"measure on images that have {task.targets}, and not of ignored pixels alone",
        )
    if groups is None:
        blocks = image_weights(len(records[0]), N_RESAMPLES, seed=seed)
    else:
        blocks = group_weights(groups, N_RESAMPLES, seed=seed)
    resampled = task.resampled(records, classes, settings, blocks)
    metrics = {
        name: summary([of_seed[name] for of_seed in per_seed]) | {"ci95": list(interval(resampled[name]))}
        for name in known
    }
    return {"metrics": metrics, "notes": notes, "dense": task.details(records, classes, settings)}


def figure_columns(
    goal: Goal, records: Records, rows: NDArray[np.int64], keys: Sequence[str]
) -> dict[str, NDArray[Any] | list[Any]]:
    """The columns of predictions-dense.parquet: a line per image and seed, all images of a seed in turn.

    row, key, seed, a column a figure, NaN where an image does not define it, and the image's record, of which reports
    count the figures of images drawn anew.
    """
    of_seeds = [goal.task.per_image(of_seed, goal.classes, goal.settings) for of_seed in records]
    columns: dict[str, NDArray[Any] | list[Any]] = {
        "row": np.tile(rows, len(records)),
        "key": list(keys) * len(records),
        "seed": np.repeat(np.arange(len(records)), len(rows)),
    }
    columns |= {name: np.concatenate([of_seed[name] for of_seed in of_seeds]) for name in of_seeds[0]}
    return columns | {"record": [pack(record) for of_seed in records for record in of_seed]}


def _measure_shots(
    goal: Goal, config: TrainConfig, turns: Turns, records: Records, where: str | Path
) -> dict[str, Any]:
    """Metrics of the heads that had the most images, and `learning_curve`: of all sizes, and what more would bring."""
    n_images = [len(turns.trained[name]) for name in turn_names(config)[:: config.draws]]
    of_each, headline, points = len(records) // len(config.shots), goal.task.headline, []
    for i, (shots, n) in enumerate(zip(config.shots, n_images, strict=True)):
        of_size = records[i * of_each : (i + 1) * of_each]
        found = measure_dense(goal, of_size, config.data_seed, where)
        values = np.array(found["metrics"][headline]["per_seed"])
        counts = [goal.task.recount(of_seed, goal.classes, goal.settings) for of_seed in of_size]
        drawn = np.concatenate(
            [
                np.stack([count(weights)[headline] for count in counts], axis=1)
                for weights in image_weights(len(of_size[0]), seed=config.data_seed)
            ]
        )
        bounds = possible(headline, interval_of(Scored(values, drawn)))
        points.append({"shots": shots, "images": n, "metrics": found["metrics"], "interval": bounds})
    fit = fit_curve(config.shots, [point["metrics"][headline]["per_seed"] for point in points])
    curve = {"metric": headline, "draws": config.draws, "points": points, "fit": fit and fit.as_json()}
    return found | {"learning_curve": curve | {"told": tell(headline, config.shots[-1], fit)}}

"""Tasks: from logits and targets to a loss, predictions and metrics, one file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from loffta.tasks import classification


class Task(NamedTuple):
    """What `train` and `evaluate` use of a task; S seeds, fractions 0-1."""

    loss: Callable[[Tensor, Tensor], Tensor]  # logits, targets -> [B], of each image
    predict: Callable[[Tensor], Tensor]  # logits -> what predictions.parquet keeps
    metrics: Callable[[Any, Any], dict[str, float]]  # predictions and targets of all images, of one seed
    ci95: Callable[..., dict[str, tuple[float, float]]]  # predictions [S, ...] and targets, seed=


TASKS: dict[str, Task] = {
    "classification": Task(
        loss=classification.loss,
        predict=classification.predict,
        metrics=classification.metrics,
        ci95=classification.bootstrap_ci95,
    ),
}

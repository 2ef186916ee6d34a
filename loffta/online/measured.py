"""From what heads say about images of a listing to metrics and predictions: where the online twins meet the tasks.

In: logits, labels in the run's order of classes.   Out: what results.json and predictions.parquet hold. Called by
`evaluate`, `predict` and `train` of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loffta.store.table import ImageTable
from loffta.tasks import TASKS
from loffta.tokens import Logits


@dataclass(frozen=True)
class Measured:
    """What the heads of one run said about the good images, in the order of `rows`."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]  # in the run's order of classes
    probabilities: NDArray[np.float32]  # [S, B, C]


def activate(logits: Logits) -> Float[Tensor, "B C"]:
    """Class probabilities, float32."""
    return logits.float().softmax(dim=1)


def measure(task_name: str, measured: Measured, *, seed: int) -> dict[str, Any]:
    """The `metrics` of results.json.

    Args:
        seed: of the bootstrap.
    """
    task = TASKS[task_name]
    predicted = np.stack([task.predict(torch.from_numpy(p)).numpy() for p in measured.probabilities])
    per_seed = [task.metrics(p, measured.labels) for p in predicted]
    ci95 = task.ci95(predicted, measured.labels, seed=seed)
    values = {name: [metrics[name] for metrics in per_seed] for name in per_seed[0]}
    return {
        name: {
            "mean": float(np.mean(v)),
            "std": float(np.std(v, ddof=1)) if len(v) > 1 else None,
            "per_seed": v,
            "ci95": list(ci95[name]),
        }
        for name, v in values.items()
    }


def prediction_columns(listing: ImageTable, measured: Measured) -> dict[str, Any]:
    """The columns of predictions.parquet; rows count in the listing."""
    n_seeds = len(measured.probabilities)
    return {
        "row": np.tile(measured.rows, n_seeds),
        "key": [listing.keys[row] for row in measured.rows] * n_seeds,
        "label": np.tile(measured.labels, n_seeds),
        "seed": np.repeat(np.arange(n_seeds), len(measured.rows)),
        "predicted": measured.probabilities.argmax(axis=2).reshape(-1),
        "confidence": measured.probabilities.max(axis=2).reshape(-1),
    }

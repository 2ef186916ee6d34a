"""A task to copy: one class an image, learnt with smoothed labels. Say here what a task of yours learns.

In:  logits [S, B, C] of the heads of S seeds, labels [B].   Out: losses, probabilities, metrics, and their resamples.
Copy it to loffta/tasks/NAME.py and add its Task to TASKS in loffta/tasks/__init__.py. A metric that is new needs a line
in loffta/tasks/figures.py, which says how it is called and printed. `loffta train CACHE --task NAME` learns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loffta.tasks import Task
from loffta.tasks.bootstrap import Weights

Labels = Int[np.ndarray, " B"]


def loss(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Cross-entropy of each image; a tenth of the target is spread over all classes."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def activation(logits: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
    """Probabilities, in float32."""
    return logits.float().softmax(dim=-1)


def decide(logits: Float[np.ndarray, "*batch C"]) -> Int[np.ndarray, "*batch"]:
    """The class with the highest logit."""
    return np.asarray(logits.argmax(axis=-1))


def metrics(logits: Float[np.ndarray, "B C"], labels: Labels, _classes: Sequence[str]) -> dict[str, float]:
    """Fractions from 0 to 1, of one seed."""
    return {"top1": float((decide(logits) == labels).mean())}


def notes(_labels: Labels, _classes: Sequence[str]) -> dict[str, str]:
    """By metric: why these labels do not define it. It is then left out of `metrics` and `resampled`."""
    return {}


def resampled(
    logits: Float[np.ndarray, "S B C"], labels: Labels, _classes: Sequence[str], blocks: Iterable[Weights]
) -> dict[str, Float[np.ndarray, " R"]]:
    """Every metric of `metrics`, mean over seeds, in every resample of the images."""
    right = (decide(logits) == labels).mean(axis=0)
    return {"top1": np.concatenate([weights @ right / len(right) for weights in blocks])}


def recount(labels: Labels, predicted: Int[np.ndarray, "S B"], _scores: object) -> Callable[[Weights], Any]:
    """The headline of each seed in any resample [R, S], from predictions that a run kept."""
    right = (predicted == labels).astype(np.float32)
    return lambda weights: weights @ right.T / right.shape[1]


def details(_logits: Float[np.ndarray, "S B C"], labels: Labels, _classes: Sequence[str]) -> dict[str, Any]:
    """What results.json keeps beside the metrics."""
    return {"images_of_class": np.bincount(labels).tolist()}


TASK = Task(
    label_kind="single-label",  # of the image sets that it is for
    targets="one class per image",
    main_metric="top1",  # what a search maximises
    headline="top1",  # what reports rank by
    loss=loss,
    activation=activation,
    decide=decide,
    metrics=metrics,
    notes=notes,
    resampled=resampled,
    needs_scores=False,  # decisions alone give the headline
    recount=recount,
    details=details,
)

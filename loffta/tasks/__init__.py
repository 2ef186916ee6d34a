"""Tasks: from logits and targets to a loss, probabilities and metrics, one file each.

Metrics take logits: what ranks by probabilities of float32 loses the order of all that are 1.0. Nothing here knows
tables or files: `targets` reads the targets of an image set, `measure` puts metrics together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from loffta.errors import unknown_name
from loffta.tasks import classification, multi_label, regression


class Task(NamedTuple):
    """What `train`, `measure` and the reports use of a task; S seeds, B images, C classes.

    Metrics are of the logits [B, C] of one seed, intervals and details of those of all, [S, B, C]; see `figures` for
    their names and units.
    """

    label_kind: str  # of the image sets that it is for
    targets: str  # in words: what it needs of every image
    main_metric: str  # what a search chooses by; `figures` knows whether more of it is better
    headline: str  # the metric that reports rank by
    loss: Callable[[Tensor, Tensor], Tensor]  # logits, targets -> [B], of each image
    activation: Callable[[Tensor], Tensor]  # logits -> probabilities; numbers stay what they are
    decide: Callable[[NDArray[Any]], NDArray[Any]]  # logits -> the class, per class whether it is there, or the number
    metrics: Callable[[NDArray[Any], NDArray[Any], Sequence[str]], dict[str, float]]  # logits, targets, classes
    notes: Callable[[NDArray[Any], Sequence[str]], dict[str, str]]  # targets, classes -> what is left out, by metric
    resampled: Callable[..., dict[str, NDArray[Any]]]  # logits, targets, classes, blocks of `bootstrap.image_weights`
    needs_scores: bool  # whether the headline ranks: then decisions alone do not give it
    recount: Callable[..., Callable[[Any], NDArray[Any]] | None]  # labels, predicted, scores: see the tasks' own
    details: Callable[[NDArray[Any], NDArray[Any], Sequence[str]], dict[str, Any]]  # what results keep beside metrics
    has_confidence: bool = False  # whether its probabilities are a softmax over one class per image: see `calibration`


TASKS: dict[str, Task] = {
    "classification": Task(
        label_kind="single-label",
        targets="one class per image",
        main_metric="balanced_accuracy",
        headline="top1",
        loss=classification.loss,
        activation=classification.activation,
        decide=classification.decide,
        metrics=classification.metrics,
        notes=classification.notes,
        resampled=classification.resampled,
        needs_scores=False,
        recount=classification.recount,
        details=classification.details,
        has_confidence=True,
    ),
    "multi-label": Task(
        label_kind="multi-label",
        targets="any number of classes per image",
        main_metric="map",
        headline="map",
        loss=multi_label.loss,
        activation=multi_label.activation,
        decide=multi_label.decide,
        metrics=multi_label.metrics,
        notes=multi_label.notes,
        resampled=multi_label.resampled,
        needs_scores=True,
        recount=multi_label.recount,
        details=multi_label.details,
    ),
    "regression": Task(
        label_kind="regression",
        targets="a number per image",
        main_metric="r2",
        headline="r2",
        loss=regression.loss,
        activation=regression.activation,
        decide=regression.decide,
        metrics=regression.metrics,
        notes=regression.notes,
        resampled=regression.resampled,
        needs_scores=False,
        recount=regression.recount,
        details=regression.details,
    ),
}


def find_task(name: str) -> Task:
    """Looks a task up.

    Raises:
        UsageError: unknown name, with its nearest neighbours.
    """
    if name not in TASKS:
        raise unknown_name("task", name, ["auto", *TASKS], where="--task")
    return TASKS[name]

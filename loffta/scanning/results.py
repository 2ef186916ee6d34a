"""From each head's answers to a table: scores, 95 % intervals, ranks; what is tied with the best.

In:  what every head answers on the tested images.   Out: Rows, the best first. Intervals are over images, those of
several draws over these, too; ranks are `tasks.ranks`, over all rows that were tested alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.config import HeadName, Pooling
from loffta.scanning.layers import Layer
from loffta.tasks import Task
from loffta.tasks.bootstrap import group_weights, image_weights, interval
from loffta.tasks.paired import Scored
from loffta.tasks.ranks import rank_runs


@dataclass(frozen=True)
class Row:
    """One head on one layer."""

    store: str
    backbone: str  # as users know it; random weights say so here
    tap: str
    pooling: Pooling
    n_columns: int
    head: HeadName
    shots: int | None  # images of each class that it was trained on; None: all
    score: float  # of the metric, mean over draws: a fraction
    per_draw: list[float]
    ci95: tuple[float, float]
    rank: tuple[int, int]  # places that it may have among the rows of the same shots
    tied: bool  # with the best of these
    chosen: list[dict[str, Any]]  # k, C or strength, of each draw or fold


@dataclass(frozen=True)
class Scan:
    """Every layer with every head, the best first; of few images each number a class for itself."""

    cache: str
    source: str  # of the images
    task: str
    metric: str
    tested_on: str  # the split
    n_images: int  # that were tested
    n_trained: int  # training images, those included that choose strengths
    n_folds: int | None
    n_draws: int | None  # of every number of shots
    chosen_on: str  # what strengths were chosen on
    standardised: bool
    rows: list[Row]
    depths: dict[str, list[str]]  # of each store its taps, the shallowest first
    left_out: dict[str, int]  # images by why: bad, unlabelled
    bytes_read: int
    seconds: float
    versions: dict[str, str] = field(repr=False)
    staging: dict[str, Any] | None = None  # copies on the node's own disk; None: none were asked for

    @property
    def best(self) -> Row:
        """The row with the highest score."""
        return max(self.rows, key=lambda row: row.score)

    @property
    def shots(self) -> list[int | None]:
        """The numbers of images a class that were trained on, rising; None alone where all were."""
        return list(dict.fromkeys(row.shots for row in self.rows))

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        found = asdict(self)
        return found if self.staging is not None else {key: found[key] for key in found if key != "staging"}


@dataclass
class Answer:
    """What one head answered on one layer: as it is kept until all rows are scored together."""

    layer: Layer
    head: HeadName
    shots: int | None
    predicted: NDArray[Any]  # [S, B]: classes, or [S, B, C] scores where these rank
    chosen: list[dict[str, Any]]


Recount = Callable[[NDArray[Any]], NDArray[Any]]


def score_rows(
    answers: Sequence[Answer], task: Task, labels: NDArray[Any], groups: Sequence[str] | None = None
) -> list[Row]:
    """All rows, for each number of shots the best first.

    Args:
        labels: [B] or [B, C], of the tested images, as `task.recount` takes them.
        groups: [B], whom these images are of: resamples draw whole ones; None: images.
    """
    recounts = [_recount(answer, task, labels) for answer in answers]
    once = np.ones((1, len(labels)))
    drawn: list[list[NDArray[Any]]] = [[] for _ in answers]
    for weights in image_weights(len(labels)) if groups is None else group_weights(groups):
        for blocks, recount in zip(drawn, recounts, strict=True):
            blocks.append(recount(weights))
    scored = [
        Scored(recount(once)[0].astype(np.float64), np.concatenate(blocks))
        for recount, blocks in zip(recounts, drawn, strict=True)
    ]
    rows: list[Row] = []
    for shots in dict.fromkeys(answer.shots for answer in answers):
        places = [i for i, answer in enumerate(answers) if answer.shots == shots]
        rows += _ranked([answers[i] for i in places], [scored[i] for i in places])
    return rows


def _recount(answer: Answer, task: Task, labels: NDArray[Any]) -> Recount:
    predicted, scores = (None, answer.predicted) if task.needs_scores else (answer.predicted, None)
    found = task.recount(labels, predicted, scores)
    assert found is not None, "there are predictions and scores"
    return found


def _ranked(answers: Sequence[Answer], scored: Sequence[Scored]) -> list[Row]:
    ranks = rank_runs(scored)
    rows = [
        Row(
            answer.layer.store,
            answer.layer.backbone,
            answer.layer.tap,
            answer.layer.pooling,
            answer.layer.n_columns,
            answer.head,
            answer.shots,
            float(found.values.mean()),
            found.values.tolist(),
            interval(found.resampled.mean(axis=1)),
            (int(low), int(high)),
            bool(tied),
            answer.chosen,
        )
        for answer, found, low, high, tied in zip(
            answers, scored, ranks.low, ranks.high, ranks.tied_with_best, strict=True
        )
    ]
    return sorted(rows, key=lambda row: -row.score)

"""What an audit finds: images by their rows, and the same by their names for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.store.table import ImageTable

LABELS = "label_errors"


@dataclass(frozen=True)
class CopyGroup:
    """Two or more rows with one picture."""

    rows: tuple[int, ...]
    similarity: float  # the lowest cosine that holds them together; 1.0 for equal bytes
    splits: tuple[str, ...]
    labels_differ: bool

    @property
    def leaks(self) -> bool:
        """Whether they lie in several splits."""
        return len(self.splits) > 1


@dataclass(frozen=True)
class LabelError:
    """A label that is probably wrong."""

    row: int
    suggested: int  # position in the classes
    chance_given: float  # out of fold, of the label
    chance: float  # and of the suggestion


@dataclass(frozen=True)
class Outlier:
    """An image far from all others."""

    row: int
    distance: float  # 1 - cosine, mean over the 10 nearest


@dataclass(frozen=True)
class Audit:
    """All of it, the worst first. Rows are those of the table of images."""

    table: ImageTable = field(repr=False)
    features: tuple[str, ...]
    rows: NDArray[np.int64] = field(repr=False)  # that were looked at
    similar_from: float  # a cosine
    far_from: float  # a distance
    median_distance: float
    copies: tuple[CopyGroup, ...]
    outliers: tuple[Outlier, ...]
    typical: Mapping[int, tuple[int, ...]] = field(repr=False)  # by class, nearest to its mean first
    label_errors: tuple[LabelError, ...] = ()
    agreement: float | None = None  # the share of labels that have the highest chance out of fold
    n_judged: int = 0
    not_done: Mapping[str, str] = field(default_factory=dict)  # by kind, why it was not looked for

    @property
    def leaks(self) -> tuple[CopyGroup, ...]:
        """Copies in several splits."""
        return tuple(group for group in self.copies if group.leaks)

    def with_labels(self, errors: tuple[LabelError, ...], agreement: float, n_judged: int) -> Audit:
        """The same, labels looked at."""
        return replace(self, label_errors=errors, agreement=agreement, n_judged=n_judged)

    def without_labels(self, why: str) -> Audit:
        """The same; labels could not be looked at."""
        return replace(self, not_done={**self.not_done, LABELS: why})

    def as_json(self) -> dict[str, Any]:
        """For programs: images by their keys, classes by their names."""
        keys, classes = self.table.keys, self.table.classes
        return {
            "source": self.table.source,
            "features": list(self.features),
            "images": len(self.rows),
            "similar_from": self.similar_from,
            "far_from": self.far_from,
            "copies": [
                {
                    "images": [keys[row] for row in group.rows],
                    "similarity": group.similarity,
                    "splits": list(group.splits),
                    "labels_differ": group.labels_differ,
                }
                for group in self.copies
            ],
            "label_errors": [
                {
                    "image": keys[error.row],
                    "label": self.table.class_name(error.row),
                    "suggested": classes[error.suggested],
                    "chance_of_label": error.chance_given,
                    "chance_of_suggested": error.chance,
                }
                for error in self.label_errors
            ],
            "outliers": [{"image": keys[outlier.row], "distance": outlier.distance} for outlier in self.outliers],
            "typical": {classes[label]: [keys[row] for row in rows] for label, rows in self.typical.items()},
            "labels_judged": self.n_judged,
            "agreement": self.agreement,
            "not_done": dict(self.not_done),
        }

"""Cohen's kappa with quadratic weights, for classes that are grades: only these have distances.

In: classes and labels of an image set, predictions.   Out: the classes' own values, and kappa in any resample.

An image set does not say whether its classes have an order; their names do where each is a number ("0" ... "4" of
APTOS, "2.5"). Distances are those of the numbers, as the metric's users have them (Kaggle's diabetic retinopathy: the
difference of the ratings): for grades without a gap the same as scikit-learn's, which takes positions. The order in
which classes happen to be stored has no part in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from loffta.tasks.bootstrap import Weights, mean_of_defined, ratio
from loffta.tasks.counts import Classes

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)  # no prefix: "n01440764" and "class_7" are numbered, not graded


def grades_of(classes: Sequence[str]) -> Float[np.ndarray, " C"] | None:
    """The classes' values; None where a name is no number, or two are the same number ("1" and "01")."""
    if not all(_NUMBER.fullmatch(name) for name in classes):
        return None
    values = np.array([float(name) for name in classes])
    return values if np.isfinite(values).all() and len(np.unique(values)) == len(values) else None


class Kappa:
    """Quadratic kappa, mean over seeds, of any resample, from first and second moments alone.

    1 - E[(y - p)^2] / E'[(y - p)^2], where E' draws label y and prediction p apart: E[y^2] + E[p^2] - 2 E[y] E[p].
    """

    def __init__(self, predicted: Int[np.ndarray, "S B"], labels: Classes, grades: Float[np.ndarray, " C"]) -> None:
        """Grades are put into 0 ... 1: kappa has no scale."""
        placed = (grades - grades.min()) / max(np.ptp(grades), 1e-300)
        y, p = placed[labels], placed[predicted]
        columns = [y, y**2, *(column for q in p for column in (q, q**2, (y - q) ** 2))]
        self._columns = np.stack(columns, axis=1) / len(labels)  # float64: differences of nearly equal moments

    def __call__(self, weights: Weights) -> Float[np.ndarray, " R"]:
        """NaN where labels and predictions of a resample are one and the same class."""
        moments = weights @ self._columns
        y, y2 = moments[:, :1], moments[:, 1:2]
        p, p2, apart = (moments[:, i::3] for i in (2, 3, 4))
        by_chance = y2 + p2 - 2 * y * p
        return mean_of_defined(1 - ratio(apart, np.where(by_chance > 1e-13, by_chance, 0.0)))

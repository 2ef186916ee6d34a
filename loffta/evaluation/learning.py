"""How many more labels a point more costs: a power law of the error, fitted to a learning curve and checked on it.

In: scores at several numbers of labels a class, of several draws each.   Out: the law, how far off it was at the
largest number, which it had not been shown, and a sentence.

The error falls as a + b n^-c (Cortes et al., Learning curves: asymptotic values and rate of convergence, NIPS 1993;
Hestness et al., arXiv 1712.00409), a the error that no number of labels takes away. Laws fitted to few labels mislead
where they are extrapolated (Viering and Loog, The shape of learning curves, arXiv 2103.10948): so it is fitted to all
sizes but the largest first, has to foretell that one, and is used no further than ten times as many labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from loffta.tasks.figures import metric_name, show, unit
from loffta.words import plural

POINT = 0.01
N_FITTED = 3  # sizes, as many as the law has numbers; one more checks it
_EXPONENTS = np.linspace(0.02, 3.0, 150)  # those that are seen lie between 0.1 and 1
_LEAST_ERROR = 0.002  # a size whose draws agree by chance is no more certain than this
_FURTHEST = 10  # times as many labels

Values = Float[np.ndarray, " K"]


@dataclass(frozen=True)
class Fit:
    """The law of all sizes; and what a law of all but the largest made of that."""

    a: float
    b: float
    c: float
    predicted: float  # score at the largest size
    off: float  # that, less what was seen
    holds: bool
    more_per_point: float | None  # labels a class for a point more; None: it does not hold, or they are too many

    def as_json(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self)


def fit_curve(shots: Sequence[int], scores: Sequence[Sequence[float]]) -> Fit | None:
    """Fits and checks the law; None where there are fewer than four sizes.

    It holds where it foretells the largest size to a point, or to twice the standard error that draws leave.

    Args:
        shots: labels a class, rising.
        scores: at each, of all draws and seeds: shares, 1 without error.
    """
    if len(shots) <= N_FITTED:
        return None
    sizes, errors = np.array(shots, np.float64), np.array([1 - np.mean(found) for found in scores])
    deviations = [float(np.std(of, ddof=1)) / math.sqrt(len(of)) if len(of) > 1 else 0.0 for of in scores]
    uncertain = np.maximum(deviations, _LEAST_ERROR)
    a, b, c = power_law(sizes[:-1], errors[:-1], uncertain[:-1])
    foretold = a + b * sizes[-1] ** -c
    off = float(errors[-1] - foretold)  # of the score: an error foretold too low is a score too high
    holds = abs(off) <= max(POINT, 2 * uncertain[-1])
    a, b, c = power_law(sizes, errors, uncertain)
    more = _more_per_point(b, c, float(sizes[-1])) if holds else None
    return Fit(a, b, c, float(1 - foretold), off, bool(holds), more)


def power_law(sizes: Values, errors: Values, uncertain: Values) -> tuple[float, float, float]:
    """The a, b and c, none below 0, whose a + b n^-c has the least squares to the errors, in units of `uncertain`.

    For each c of a grid the best a and b follow from two linear equations; where one would be negative it is 0.
    """
    weights = 1 / np.square(uncertain)
    best: tuple[float, float, float, float] = (math.inf, 0.0, 0.0, 0.0)
    for c in _EXPONENTS:
        x = sizes**-c
        mean_x, mean_y = np.average(x, weights=weights), np.average(errors, weights=weights)
        b = np.sum(weights * (x - mean_x) * (errors - mean_y)) / np.sum(weights * np.square(x - mean_x))
        a = mean_y - b * mean_x
        if b < 0:
            a, b = mean_y, 0.0
        elif a < 0:
            a, b = 0.0, np.sum(weights * x * errors) / np.sum(weights * np.square(x))
        left = float(np.sum(weights * np.square(a + b * x - errors)))
        best = min(best, (left, float(a), float(b), float(c)))
    return best[1:]


def tell(metric: str, largest: int, fit: Fit | None) -> str:
    """What the curve says of more labels, and how it was checked; or why it says nothing."""
    if fit is None:
        return f"how much more labels would bring is told from {N_FITTED + 1} sizes on"
    checked = (
        f"a power law of the other sizes foretold {show(metric, fit.predicted)}{unit(metric)} at {largest} labels a "
        f"class, {100 * abs(fit.off):.1f} points {'too high' if fit.off > 0 else 'too low'}"
    )
    if not fit.holds:
        return f"how much more labels would bring cannot be told: {checked}"
    if fit.more_per_point is None:
        return f"a point more of {metric_name(metric)} takes more than {_FURTHEST} times the labels, if any ({checked})"
    n = _rounded(fit.more_per_point)
    return f"about {n} more {plural(n, 'label')} a class for a point more of {metric_name(metric)} ({checked})"


def _more_per_point(b: float, c: float, n: float) -> float | None:
    wanted = b * n**-c - POINT  # of the error that labels can take away
    if wanted <= 0:
        return None
    more = (wanted / b) ** (-1 / c) - n
    return float(more) if more <= (_FURTHEST - 1) * n else None


def _rounded(n: float) -> int:
    """To two digits; one label at least."""
    return max(1, int(float(f"{n:.2g}")) if n >= 10 else round(n))

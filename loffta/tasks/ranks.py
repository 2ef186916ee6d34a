"""Which places runs may have: an interval of ranks for each, all of which hold together in 95 of 100 tables.

In:  what each run's seeds score in the same resamples of the same images (`paired.Scored`), or each run's scores on
many tasks.   Out: Ranks, for whoever lists runs.

A run's rank is not resampled: that interval misses ties, however many the resamples (Hall and Miller, Annals of
Statistics 37, 2009: the bootstrap of ranks is inconsistent where scores are close). Instead all pairs of runs are
compared, and a run's best place is one after those surely better, its worst place one before those surely worse
(Mogstad, Romano, Shaikh and Wilhelm, Review of Economic Studies 91, 2024):

* a pair differs surely where its difference, in standard errors, exceeds what the largest of all such differences
  exceeds in 5 % of the resamples, were there none (max-t). Pairs are compared on the same images, so they differ by
  less than either score is uncertain; and the largest of many pairs is what a reader of a table looks for.
* pairs found to differ are left out, and the rest are compared anew, with the smaller bound that is left (stepdown:
  Romano and Wolf, Econometrica 73, 2005), until no more are found.

Runs that are truly equal share all places that their group has; all intervals hold them in 95 % of tables where there
are equals, in more where there are not. Other seeds might have given other scores: their variance
(`paired.seed_variance`) is drawn with Student's t of one degree less than seeds, which errs to the safe side: three
seeds a run hold in 97-99 of 100. With the normal distribution it was 90 where all are equal. One seed says nothing
about others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from loffta.tasks.bootstrap import N_RESAMPLES, image_weights
from loffta.tasks.paired import Scored, seed_variance

LEVEL = 0.95
_CELLS = 4_000_000  # differences at once: 32 MB

Surely: TypeAlias = Bool[np.ndarray, "M M"]


@dataclass(frozen=True)
class Ranks:
    """Places of M runs, 1 the best."""

    better: Surely  # whether the run of the row is surely better than that of the column

    @property
    def low(self) -> Int[np.ndarray, " M"]:
        """The best place each may have."""
        return np.asarray(1 + self.better.sum(axis=0))

    @property
    def high(self) -> Int[np.ndarray, " M"]:
        """The worst place each may have."""
        return np.asarray(len(self.better) - self.better.sum(axis=1))

    @property
    def tied_with_best(self) -> Bool[np.ndarray, " M"]:
        """Those that no run is surely better than: the best is among them, as surely as the intervals hold."""
        return np.asarray(self.low == 1)


def rank_runs(runs: Sequence[Scored], *, seed: int = 0) -> Ranks:
    """Ranks by the headline metric over images and seeds.

    Args:
        runs: tested on the same images, with the same resamples; those in which a metric is undefined are left out.
        seed: of what is drawn for other seeds.
    """
    rng = np.random.default_rng(seed)
    sign = -1 if runs[0].smaller_is_better else 1
    values = sign * np.array([run.values.mean() for run in runs])
    drawn = sign * np.stack([run.resampled.mean(axis=1) for run in runs], axis=1)
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    apart = drawn - drawn.mean(axis=0)
    by_seeds = np.zeros(len(runs))
    errors = _variances(apart)
    for i, run in enumerate(runs):
        n_seeds = len(run.values)
        if n_seeds > 1:
            by_seeds[i] = seed_variance(run) / n_seeds
            apart[:, i] += np.sqrt(by_seeds[i]) * rng.standard_t(n_seeds - 1, size=len(apart))
    errors = np.sqrt(errors + by_seeds[:, None] + by_seeds)
    return Ranks(_stepdown(_ratio(values[:, None] - values, errors), apart, errors))


def rank_over_tasks(scores: Float[np.ndarray, "M T"], *, seed: int = 0) -> Ranks:
    """Ranks by the mean over tasks, for tasks like these: the tasks are drawn anew, each with its score as it is.

    A task's score differs from what other images would give; that is part of how scores differ between tasks, so the
    images are not drawn a second time (of two levels of a bootstrap the upper alone has the right variance: Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, 3.8). Each resample has a standard error of its own
    (bootstrap-t), for tasks are few.

    Args:
        scores: of M runs on T tasks, the higher the better; at least 5 tasks: fewer say nothing about others.
    """
    n_runs, n_tasks = scores.shape
    assert n_tasks >= 5
    values = scores.mean(axis=1)
    centred = (scores - values[:, None]).T
    (weights,) = image_weights(n_tasks, N_RESAMPLES, seed=seed)
    apart = weights @ centred / n_tasks
    errors = np.sqrt(_variances(centred) / (n_tasks - 1))
    squares = np.stack([weights @ (centred[:, [i]] - centred) ** 2 / n_tasks for i in range(n_runs)], axis=1)
    variances = squares - (apart[:, :, None] - apart[:, None, :]) ** 2
    drawn_errors = np.sqrt(variances.clip(0) / (n_tasks - 1))
    return Ranks(_stepdown(_ratio(values[:, None] - values, errors), apart, errors, drawn_errors))


def _variances(apart: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "M M"]:
    """Of all differences of two columns."""
    covariance = np.atleast_2d(np.cov(apart.T, ddof=0))
    own = covariance.diagonal()
    return np.asarray((own[:, None] + own - 2 * covariance).clip(0))


def _stepdown(
    seen: Float[np.ndarray, "M M"],
    apart: Float[np.ndarray, "R M"],
    errors: Float[np.ndarray, "M M"],
    drawn_errors: Float[np.ndarray, "R M M"] | None = None,
) -> Surely:
    """Which differences are sure.

    Args:
        seen: the differences of the runs as they are, in standard errors.
        apart: each resample's scores less those of the runs as they are.
        errors: standard errors of the differences; runs that never differ have 0 and are equal.
        drawn_errors: those of the resamples, where they are their own.
    """
    better = np.zeros(errors.shape, bool)
    while True:
        left = ~(better | better.T)
        bound = np.quantile(_largest(apart, errors, drawn_errors, left), LEVEL)
        found = left & (seen > bound)
        if not found.any():
            return better
        better |= found


def _largest(
    apart: Float[np.ndarray, "R M"],
    errors: Float[np.ndarray, "M M"],
    drawn_errors: Float[np.ndarray, "R M M"] | None,
    left: Bool[np.ndarray, "M M"],
) -> Float[np.ndarray, " R"]:
    """The largest of the differences that are left, in standard errors, of each resample."""
    n_block = max(1, _CELLS // errors.size)
    found = []
    for first in range(0, len(apart), n_block):
        part = apart[first : first + n_block]
        by = errors if drawn_errors is None else drawn_errors[first : first + n_block]
        differences = _ratio(part[:, :, None] - part[:, None, :], by)
        found.append(differences.max(axis=(1, 2), where=left, initial=0.0))
    return np.concatenate(found)


def _ratio(part: Float[np.ndarray, "*shape"], errors: Float[np.ndarray, "*errors"]) -> Float[np.ndarray, "*shape"]:
    """In standard errors; 0 where runs never differ."""
    return np.asarray(np.divide(part, errors, out=np.zeros(part.shape), where=errors > 1e-12))

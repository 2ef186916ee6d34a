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
are equals, in more where there are not.

Other seeds might have given other scores. Few seeds tell little of how much, so the resamples draw anew both what seeds
add to a score and what one would have estimated of it (a parametric bootstrap of Welch's t: Krishnamoorthy, Lu and
Mathew, Computational Statistics & Data Analysis 51, 2007):

* a run's variance by seeds is its own; other seeds are drawn with the mean of all runs where that is larger, for
  three seeds that agree by chance are no reason to be sure. The mean is drawn, too, as well as all seeds know it
  (inverse chi-squared). A run of one seed among others has the mean.
* what of it is chance of the images is taken out (`paired.chance_variance`), in the resamples as in the runs, for the
  images' resamples hold it already.

Drawn with Student's t of the few seeds' degrees of freedom instead, and divided by errors that stayed as they were,
the seeds' uncertainty was counted twice: all intervals held in up to 99.8 % of tables, and were up to twice as wide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from loffta.tasks.bootstrap import N_RESAMPLES, image_weights
from loffta.tasks.paired import Scored, chance_variance

LEVEL = 0.95
FEWEST_TASKS = 5  # fewer say nothing about others
_CELLS = 4_000_000  # differences at once: 32 MB

Surely: TypeAlias = Bool[np.ndarray, "M M"]
DrawnErrors: TypeAlias = Callable[[slice], Float[np.ndarray, "R M M"]]  # standard errors of some resamples


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
    sign = -1 if runs[0].smaller_is_better else 1
    values = sign * np.array([run.values.mean() for run in runs])
    drawn = sign * np.stack([run.resampled.mean(axis=1) for run in runs], axis=1)
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    apart = drawn - drawn.mean(axis=0)
    by_images, by_seeds = _variances(apart), np.zeros(len(runs))
    drawn_errors: DrawnErrors | None = None
    n_seeds = np.array([len(run.values) for run in runs])
    if n_seeds.max() > 1:
        rng, free = np.random.default_rng(seed), n_seeds - 1
        several = [
            (run.values.var(ddof=1), chance_variance(run)) if n > 1 else (0.0, 0.0)
            for run, n in zip(runs, n_seeds, strict=True)
        ]
        total, chance = np.array(several).T
        own = _by_seeds(total - chance, free)
        by_seeds = own / n_seeds
        pooled = (total * free).sum() / rng.chisquare(free.sum(), size=(len(apart), 1))
        drawn_from = np.maximum(own, pooled - (chance * free).sum() / free.sum())
        apart = apart + np.sqrt(drawn_from / n_seeds) * rng.standard_normal(apart.shape)
        chi_squared = 2 * rng.standard_gamma(free / 2, size=apart.shape)
        again = _by_seeds((drawn_from + chance) * chi_squared / free.clip(1) - chance, free) / n_seeds
        drawn_errors = _drawn_errors(by_images, again)
    errors = np.sqrt(by_images + by_seeds[:, None] + by_seeds)
    return Ranks(_stepdown(_ratio(values[:, None] - values, errors), apart, errors, drawn_errors))


def rank_over_tasks(scores: Float[np.ndarray, "M T"], *, seed: int = 0) -> Ranks:
    """Ranks by the mean over tasks, for tasks like these: the tasks are drawn anew, each with its score as it is.

    A task's score differs from what other images would give; that is part of how scores differ between tasks, so the
    images are not drawn a second time (of two levels of a bootstrap the upper alone has the right variance: Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, 3.8). Each resample has a standard error of its own
    (bootstrap-t), for tasks are few.

    Args:
        scores: of M runs on T tasks, the higher the better; at least FEWEST_TASKS.
    """
    n_runs, n_tasks = scores.shape
    assert n_tasks >= FEWEST_TASKS
    values = scores.mean(axis=1)
    centred = (scores - values[:, None]).T
    (weights,) = image_weights(n_tasks, N_RESAMPLES, seed=seed)
    apart = weights @ centred / n_tasks
    errors = np.sqrt(_variances(centred) / (n_tasks - 1))
    squares = np.stack([weights @ (centred[:, [i]] - centred) ** 2 / n_tasks for i in range(n_runs)], axis=1)
    variances = squares - (apart[:, :, None] - apart[:, None, :]) ** 2
    drawn_errors = np.sqrt(variances.clip(0) / (n_tasks - 1))
    return Ranks(_stepdown(_ratio(values[:, None] - values, errors), apart, errors, lambda rows: drawn_errors[rows]))


def mean_ranks(scores: Float[np.ndarray, "M T"]) -> Float[np.ndarray, "M 3"]:
    """Each run's rank on a task, mean over the tasks, with its 95 % interval for tasks like these (Student's t).

    Equal scores share the mean of their ranks. A mean over tasks is smooth where a rank is not, so its interval is
    that of any mean; it is about how often a run is ahead, however little, while `rank_over_tasks` is about how much.

    Returns:
        mean, low and high of each, from 1, the best, to M.
    """
    from scipy.special import stdtrit  # 0.2 s that several tasks alone need

    n_runs, n_tasks = scores.shape
    assert n_tasks >= FEWEST_TASKS
    ahead = scores[:, None] - scores
    ranks = 1 + (ahead < 0).sum(axis=1) + ((ahead == 0).sum(axis=1) - 1) / 2
    half = stdtrit(n_tasks - 1, 0.5 + LEVEL / 2) * ranks.std(axis=1, ddof=1) / np.sqrt(n_tasks)
    mean = ranks.mean(axis=1)
    return np.stack([mean, (mean - half).clip(1), (mean + half).clip(max=n_runs)], axis=1)


def _by_seeds(found: Float[np.ndarray, "*R M"], free: Int[np.ndarray, " M"]) -> Float[np.ndarray, "*R M"]:
    """Variances of M runs without those below 0; a run whose seeds leave no degree of freedom has the mean of all."""
    return np.asarray(np.where(free > 0, found, _mean(found, free)).clip(0))


def _mean(found: Float[np.ndarray, "*R M"], free: Int[np.ndarray, " M"]) -> Float[np.ndarray, "*R 1"]:
    """By their degrees of freedom; none below 0."""
    return np.asarray(((found * free).sum(axis=-1, keepdims=True) / free.sum()).clip(0))


def _drawn_errors(by_images: Float[np.ndarray, "M M"], by_seeds: Float[np.ndarray, "R M"]) -> DrawnErrors:
    """Not for all resamples at once: of 100 runs they are 80 MB."""
    return lambda rows: np.sqrt(by_images + by_seeds[rows, :, None] + by_seeds[rows, None, :])


def _variances(apart: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "M M"]:
    """Of all differences of two columns."""
    covariance = np.atleast_2d(np.cov(apart.T, ddof=0))
    own = covariance.diagonal()
    return np.asarray((own[:, None] + own - 2 * covariance).clip(0))


def _stepdown(
    seen: Float[np.ndarray, "M M"],
    apart: Float[np.ndarray, "R M"],
    errors: Float[np.ndarray, "M M"],
    drawn_errors: DrawnErrors | None = None,
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
    drawn_errors: DrawnErrors | None,
    left: Bool[np.ndarray, "M M"],
) -> Float[np.ndarray, " R"]:
    """The largest of the differences that are left, in standard errors, of each resample."""
    n_block = max(1, _CELLS // errors.size)
    found = []
    for first in range(0, len(apart), n_block):
        part = apart[first : first + n_block]
        by = errors if drawn_errors is None else drawn_errors(slice(first, first + n_block))
        differences = _ratio(part[:, :, None] - part[:, None, :], by)
        found.append(differences.max(axis=(1, 2), where=left, initial=0.0))
    return np.concatenate(found)


def _ratio(part: Float[np.ndarray, "*shape"], errors: Float[np.ndarray, "*errors"]) -> Float[np.ndarray, "*shape"]:
    """In standard errors; 0 where runs never differ."""
    return np.asarray(np.divide(part, errors, out=np.zeros(part.shape), where=errors > 1e-12))

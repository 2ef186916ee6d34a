"""Whether one run is better than another: by the same test images, and by all seeds of both.

In: what each run's seeds score in resamples of the images that both were tested on.   Out: the difference with its 95 %
interval. Two intervals that overlap say nothing about the difference: on the same images runs fail together.

* Images are drawn anew, the same for both runs (paired bootstrap, `bootstrap.image_weights`).
* Seeds are three or five, too few to be drawn anew: that, over images and seeds alike (Owen's pigeonhole bootstrap,
  Annals of Applied Statistics 1, 2007; none is exact, McCullagh, Bernoulli 6, 2000), held the truth in 86 % of the
  comparisons simulated with seeds that differ much, in 97 % of others. So the difference of their means is drawn from
  Student's t (Welch, Biometrika 34, 1947), by what their spread has beyond chance of the images, which the images'
  resamples hold already: 94-97 % throughout (docs/statistics.md).
* One seed says nothing about others: then the interval is over the images alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from loffta.tasks.bootstrap import interval

PerSeed = Float[np.ndarray, "R S"]


@dataclass(frozen=True)
class Scored:
    """One run's headline metric, seed by seed."""

    values: Float[np.ndarray, " S"]  # on the images as they are
    resampled: Float[np.ndarray, "R S"]  # in resamples that are the same for every run of a comparison


@dataclass(frozen=True)
class Difference:
    """One run less another, as a fraction; the interval is over images and seeds."""

    mean: float
    ci95: tuple[float, float]
    n_images: int
    n_seeds: tuple[int, int]

    @property
    def verdict(self) -> str:
        """'better' or 'worse' where the interval lies on one side of 0, else 'open'."""
        low, high = self.ci95
        return "better" if low > 0 else "worse" if high < 0 else "open"


def difference(one: Scored, other: Scored, n_images: int, *, seed: int = 0) -> Difference:
    """`one` less `other`.

    Args:
        n_images: that both were tested on.
        seed: of what is drawn for the seeds.
    """
    drawn = one.resampled.mean(axis=1) - other.resampled.mean(axis=1)
    drawn = drawn + _seed_errors([one, other], len(drawn), np.random.default_rng(seed))
    mean = float(one.values.mean() - other.values.mean())
    return Difference(mean, interval(drawn), n_images, (len(one.values), len(other.values)))


def _seed_errors(runs: Sequence[Scored], n: int, rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    """What other seeds might have added to the difference of two means; Welch's degrees of freedom."""
    several = [run for run in runs if len(run.values) > 1]
    errors = np.array([seed_variance(run) / len(run.values) for run in several])
    if not errors.any():
        return np.zeros(n)
    freedom = errors.sum() ** 2 / sum(e**2 / (len(run.values) - 1) for e, run in zip(errors, several, strict=True))
    return np.asarray(np.sqrt(errors.sum()) * rng.standard_t(freedom, size=n))


def seed_variance(run: Scored) -> float:
    """Variance of a seed's score that is not chance of the images: of all, less that of seeds within resamples.

    Seeds that are equally good differ on a finite test set, too, each failing on images of its own. How much follows
    from the resamples: there each seed's distance to the mean of all moves by just this chance.
    """
    n_seeds = len(run.values)
    apart = run.resampled - run.resampled.mean(axis=1, keepdims=True)
    by_chance = np.nanvar(apart, axis=0).mean() * n_seeds / (n_seeds - 1)
    return max(0.0, float(run.values.var(ddof=1) - by_chance))

"""Whether one run is better than another: by the same test images, and by all seeds of both.

In: what each run's seeds score in resamples of the images that both were tested on.   Out: the difference with its 95 %
interval. Two intervals that overlap say nothing about the difference: on the same images runs fail together.

* Images are drawn anew, the same for both runs (paired bootstrap, `bootstrap.image_weights`).
* Seeds are not drawn anew: there are three or five, too few. Drawing images and seeds alike (Owen's pigeonhole
  bootstrap, Annals of Applied Statistics 1, 2007; none is exact, McCullagh, Bernoulli 6, 2000) held the truth in 89 %
  of the comparisons simulated with seeds that differ much, and in 98 % of others.
* Instead their variance is estimated. What of it is chance of the test images is taken out, for the images' resamples
  hold that already. Both sides of the interval grow by the rest, in quadrature, and by Student's t with the degrees of
  freedom of a sum of variances (Satterthwaite, Biometrics Bulletin 2, 1946). This held the truth in 94-96 % of the
  simulated comparisons (docs/statistics.md).
* One seed says nothing about others: then the interval is over the images alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from loffta.tasks.bootstrap import interval

_NORMAL = 1.959964  # 97.5 % quantile


@dataclass(frozen=True)
class Scored:
    """One run's headline metric, seed by seed."""

    values: Float[np.ndarray, " S"]  # on the images as they are
    resampled: Float[np.ndarray, "R S"]  # in resamples that are the same for every run of a comparison
    smaller_is_better: bool = False  # as `figures` says of the metric; the same for every run of a comparison


@dataclass(frozen=True)
class Difference:
    """One run less another, as the metric is: a fraction, or in a unit; the interval is over images and seeds."""

    mean: float
    ci95: tuple[float, float]
    n_images: int
    n_seeds: tuple[int, int]
    smaller_is_better: bool = False

    @property
    def verdict(self) -> str:
        """'better' or 'worse' where the interval lies on one side of 0, else 'open'."""
        low, high = (-self.ci95[1], -self.ci95[0]) if self.smaller_is_better else self.ci95
        return "better" if low > 0 else "worse" if high < 0 else "open"


def difference(one: Scored, other: Scored, n_images: int) -> Difference:
    """`one` less `other`.

    Args:
        n_images: that both were tested on.
    """
    drawn = one.resampled.mean(axis=1) - other.resampled.mean(axis=1)
    mean = float(one.values.mean() - other.values.mean())
    n_seeds = len(one.values), len(other.values)
    return Difference(mean, _widened(drawn, [one, other]), n_images, n_seeds, one.smaller_is_better)


def interval_of(run: Scored) -> tuple[float, float]:
    """95 % of one run's score, over images and seeds, or over whatever its heads differ by."""
    return _widened(run.resampled.mean(axis=1), [run])


def _widened(drawn: Float[np.ndarray, " R"], runs: Sequence[Scored]) -> tuple[float, float]:
    """The interval of resampled differences, with what other seeds might have added to either side of its middle."""
    low, high = interval(drawn)
    several = [run for run in runs if len(run.values) > 1]
    by_seeds = sum(seed_variance(run) / len(run.values) for run in several)
    if by_seeds == 0:
        return low, high
    from scipy.special import stdtrit  # 0.2 s that several seeds alone need

    total = by_seeds + float(np.nanvar(drawn))
    uncertain = sum((run.values.var(ddof=1) / len(run.values)) ** 2 / (len(run.values) - 1) for run in several)
    t = float(stdtrit(total**2 / uncertain, 0.975))
    middle, added = float(np.nanmedian(drawn)), by_seeds * t**2
    below, above = (np.hypot((middle - end) * t / _NORMAL, np.sqrt(added)) for end in (low, high))
    return float(middle - below), float(middle + above)


def seed_variance(run: Scored) -> float:
    """Variance of a seed's score that is not chance of the images: of all, less that of seeds within resamples."""
    return max(0.0, float(run.values.var(ddof=1) - chance_variance(run)))


def chance_variance(run: Scored) -> float:
    """Variance among seeds that are equally good, which fail on images of their own: what a finite test set makes.

    It follows from the resamples: there each seed's distance to the mean of all moves by just this chance.
    """
    n_seeds = len(run.values)
    apart = run.resampled - run.resampled.mean(axis=1, keepdims=True)
    return float(np.nanvar(apart, axis=0).mean() * n_seeds / (n_seeds - 1))

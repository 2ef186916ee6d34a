"""What accuracy.py prints: top-1 with its spread and interval, and paired gains, all from predictions of each image.

A score keeps for each test image the share of the seeds that are right. Intervals are over images (bootstrap, 95 %), of
a gain over the same images for both sides: pairs differ less than the two scores do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loffta.runs.run import RunPaths, read_predictions

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """One head's predictions on the test images."""

    keys: tuple[str, ...]
    right: NDArray[np.bool_]  # [seeds, images]

    @property
    def top1(self) -> float:
        """Percent, mean over seeds."""
        return 100 * float(self.right.mean())

    @property
    def text(self) -> str:
        """Percent: mean ± standard deviation over seeds [95 % interval over images]."""
        per_seed = 100 * self.right.mean(axis=1)
        spread = per_seed.std(ddof=1) if len(per_seed) > 1 else 0.0
        low, high = _interval(100 * self.right.mean(axis=0))
        return f"{self.top1:.1f} ± {spread:.1f} [{low:.1f}, {high:.1f}]"


def score_of(run: Path) -> Score:
    """From a run's predictions.parquet."""
    columns = read_predictions(RunPaths(run).predictions("test"))
    seeds = np.unique(columns["seed"])
    right = (columns["predicted"] == columns["label"]).reshape(len(seeds), -1)  # written seed after seed
    return Score(tuple(columns["key"][: right.shape[1]]), right)


def gain(new: Score, old: Score) -> str:
    """Points that `new` is above `old`, with the interval, and what that says."""
    assert new.keys == old.keys, "both sides saw the same images"
    difference = 100 * (new.right.mean(axis=0) - old.right.mean(axis=0))
    low, high = _interval(difference)
    verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return f"{difference.mean():+.1f} [{low:+.1f}, {high:+.1f}] {verdict}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of the mean."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    low, high = np.quantile(counts @ values / len(values), [0.025, 0.975])
    return float(low), float(high)

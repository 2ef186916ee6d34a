"""Learning curves against scipy's fit of the same law, and by laws that are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares

from loffta.evaluation.learning import fit_curve, power_law, tell


def law(n, a, b, c):
    return a + b * np.asarray(n, float) ** -c


@pytest.mark.parametrize("truth", [(0.05, 0.5, 0.5), (0.0, 0.6, 0.3), (0.1, 0.3, 1.0)])
def test_a_law_is_found_again(truth):
    sizes = np.array([1.0, 2, 5, 10, 20, 50])
    assert power_law(sizes, law(sizes, *truth), np.full(6, 0.01)) == pytest.approx(truth, abs=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_worse_than_scipys_least_squares(seed):
    rng = np.random.default_rng(seed)
    sizes, uncertain = np.array([1.0, 2, 5, 10, 20]), np.array([0.04, 0.02, 0.01, 0.005, 0.005])
    errors = law(sizes, 0.08, 0.4, 0.6) + uncertain * rng.normal(size=5)

    def left(x):
        return (law(sizes, *x) - errors) / uncertain

    starts = ([0.05, 0.5, 0.5], [0.0, 0.4, 0.2], [0.1, 0.3, 1.5])
    theirs = min(
        least_squares(left, start, bounds=([0, 0, 0.02], [np.inf, np.inf, 3])).cost for start in starts
    )  # half the sum of squares
    found = power_law(sizes, errors, uncertain)
    assert min(found) >= 0
    assert 0.5 * np.sum(left(found) ** 2) <= theirs * 1.02 + 1e-3


def draws_of(scores, spread=0.01):
    return [[score - spread, score, score + spread] for score in scores]


def test_the_labels_for_a_point_more_lie_where_the_law_says():
    shots = [1, 2, 5, 10, 20]
    fit = fit_curve(shots, draws_of(1 - law(shots, 0.05, 0.5, 0.5)))
    assert fit.holds
    assert abs(fit.off) < 0.003
    at_20 = law(20, 0.05, 0.5, 0.5)
    needed = next(n for n in np.arange(20, 100, 0.01) if law(n, 0.05, 0.5, 0.5) <= at_20 - 0.01) - 20
    assert fit.more_per_point == pytest.approx(needed, rel=0.03)
    assert tell("top1", 20, fit).startswith("about 4 more labels a class for a point more of top-1 (a power law of")


def test_the_largest_size_is_not_shown_to_the_law_that_foretells_it():
    shots = [1, 2, 5, 10, 20]
    scores = 1 - law(shots, 0.05, 0.5, 0.5)
    broken = [*scores[:-1], scores[-1] - 0.15]  # it stops to learn
    fit = fit_curve(shots, draws_of(broken))
    assert fit.off == pytest.approx(0.15, abs=0.01)
    assert not fit.holds
    assert fit.more_per_point is None
    told = tell("top1", 20, fit)
    assert told.startswith("how much more labels would bring cannot be told: a power law")
    assert "15.0 points too high" in told


def test_draws_that_differ_excuse_what_they_leave_open():
    shots, scores = [1, 2, 5, 10], 1 - law([1, 2, 5, 10], 0.05, 0.5, 0.5)
    off = [*scores[:-1], scores[-1] - 0.03]
    assert not fit_curve(shots, draws_of(off)).holds
    assert fit_curve(shots, draws_of(off, spread=0.04)).holds


@pytest.mark.parametrize("scores", [[0.7] * 5, [0.9, 0.95, 0.985, 0.99, 0.992]])
def test_no_number_where_no_labels_or_too_many_are_enough(scores):
    fit = fit_curve([1, 2, 5, 10, 20], draws_of(scores, spread=0.001))
    assert fit.holds
    assert fit.more_per_point is None
    assert tell("top1", 20, fit).startswith("a point more of top-1 takes more than 10 times the labels, if any")


@pytest.mark.parametrize(
    ("n", "told"), [(0.2, "about 1 more label "), (4.4, "about 4 more"), (137.0, "about 140 more")]
)
def test_numbers_of_labels_have_two_digits(n, told):
    fit = replace(fit_curve([1, 2, 5, 10], draws_of([0.5, 0.6, 0.7, 0.75])), holds=True, more_per_point=n)
    assert tell("top1", 10, fit).startswith(told)


def test_scores_that_fall_are_no_law():
    fit = fit_curve([1, 2, 5, 10], draws_of([0.9, 0.85, 0.8, 0.75]))
    assert fit.b == 0
    assert fit.more_per_point is None


def test_few_sizes_tell_nothing():
    assert fit_curve([1, 2, 5], draws_of([0.5, 0.6, 0.7])) is None
    assert tell("top1", 5, None) == "how much more labels would bring is told from 4 sizes on"

"""Folds against scikit-learn's: the balance that it guarantees, and groups that stay whole; draws by a loop."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from loffta.dataset.folds import draw_folds, draw_shots


def counts_of(folds, labels, n_folds):
    """[fold, class] images."""
    return np.array([[np.sum((folds == k) & (labels == c)) for c in np.unique(labels)] for k in range(n_folds)])


def spread_of(counts):
    """How unlike the folds' shares of the classes are: what StratifiedGroupKFold's greedy rule keeps small."""
    return (counts / counts.sum(axis=0)).std(axis=0).mean()


@pytest.mark.parametrize("n_folds", [2, 5, 7])
@pytest.mark.parametrize("sizes", [(50, 50), (97, 13, 8, 7), (9,) * 40, (70, 700)])
def test_every_fold_has_its_share_of_every_class(sizes, n_folds):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 3 - 1, sizes))
    folds = draw_folds(labels, None, n_folds, 5)
    counts = counts_of(folds, labels, n_folds)
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    theirs = np.empty(len(labels), int)
    for k, (_, tested) in enumerate(StratifiedKFold(n_folds, shuffle=True, random_state=0).split(labels, labels)):
        theirs[tested] = k
    assert np.array_equal(np.sort(counts, axis=0), np.sort(counts_of(theirs, labels, n_folds), axis=0))


def test_the_seed_decides_and_neighbours_are_parted():
    labels = np.arange(300) % 3
    one = draw_folds(labels, None, 5, 1)
    assert np.array_equal(one, draw_folds(labels, None, 5, 1))
    assert 0.1 < np.mean(one == draw_folds(labels, None, 5, 2)) < 0.35  # a fifth by chance
    assert 0.1 < np.mean(one[3:] == one[:-3]) < 0.35  # neighbours of a class are no better than others


def test_values_are_dealt_out_in_their_order():
    values = np.random.default_rng(0).normal(size=103) ** 3
    folds = draw_folds(values, None, 5, 0)
    ranked = folds[np.argsort(values)]
    for first in range(0, 100, 5):
        assert sorted(ranked[first : first + 5]) == [0, 1, 2, 3, 4]
    assert len({tuple(ranked[first : first + 5]) for first in range(0, 100, 5)}) > 10  # no fold has the small ones


def patients(seed, n_groups=60, n_images=900):
    """Labels of four classes, and groups that differ in what they have."""
    rng = np.random.default_rng(seed)
    group_of_image = np.sort(rng.integers(n_groups, size=n_images))
    own = rng.dirichlet([0.5] * 4, size=n_groups)
    return np.array([rng.choice(4, p=own[group]) for group in group_of_image]), group_of_image


@pytest.mark.parametrize("n_folds", [2, 5])
def test_groups_stay_whole_and_folds_are_as_alike_as_scikit_learns(n_folds):
    ours, theirs, blind = [], [], []
    for seed in range(10):
        labels, of_image = patients(seed)
        groups = [f"patient {group}" for group in of_image]
        folds = draw_folds(labels, groups, n_folds, seed)
        assert all(len(set(folds[of_image == group])) == 1 for group in range(60))
        ours.append(spread_of(counts_of(folds, labels, n_folds)))
        other = np.empty(900, int)
        parts = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(labels, labels, groups)
        for k, (_, tested) in enumerate(parts):
            other[tested] = k
        theirs.append(spread_of(counts_of(other, labels, n_folds)))
        dealt = np.random.default_rng(seed).permutation(60)[of_image] % n_folds
        blind.append(spread_of(counts_of(dealt, labels, n_folds)))
    assert np.mean(ours) < 1.2 * np.mean(theirs)
    assert np.mean(ours) < 0.4 * np.mean(blind)


def test_groups_of_values_to_regress():
    rng = np.random.default_rng(0)
    of_image = np.repeat(np.arange(50), 10)
    values = np.repeat(np.arange(50.0), 10) + rng.normal(size=500)
    folds = draw_folds(values, [f"{group}" for group in of_image], 5, 0)
    for group in range(50):
        assert len(set(folds[of_image == group])) == 1
    means = [values[folds == k].mean() for k in range(5)]
    assert np.ptp(means) < 5  # of 50; dealt out in turn of their order they would be 40 apart


def test_draws_take_so_many_of_every_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 2, 5], [4, 30, 9]))
    found = draw_shots(labels, 4, 7, 0)
    assert np.array_equal(found, np.sort(found))
    assert np.array_equal(np.bincount(labels[found]), [4, 0, 4, 0, 0, 4])
    assert len(set(found.tolist())) == 12
    assert np.array_equal(found, draw_shots(labels, 4, 7, 0))
    assert not np.array_equal(found, draw_shots(labels, 4, 7, 1))
    assert not np.array_equal(found, draw_shots(labels, 4, 8, 0))


def test_a_draw_of_few_is_among_its_draw_of_more():
    labels = np.arange(100) % 4
    sizes = [set(draw_shots(labels, n, 0, 3).tolist()) for n in (1, 2, 5, 25)]
    assert all(few < more for few, more in pairwise(sizes))


def test_every_image_is_drawn_as_often():
    labels = np.arange(40) % 2
    times = np.zeros(40)
    for draw in range(400):
        times[draw_shots(labels, 5, 0, draw)] += 1
    assert times.sum() == 4000
    assert abs(times - 100).max() < 4.5 * np.sqrt(400 * 0.25 * 0.75)

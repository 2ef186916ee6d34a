"""Parts of a training split for cross-validation, and draws of a few images per class.

In: labels and groups of the rows to train on.   Out: from a seed, the fold in which each row is tested, or which rows
are drawn. `parts` looks at a table before, and refuses what cannot be parted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_FOLDS, _SHOTS = 3, 4  # streams of the seed: `splits` has 1 and 2
_VALUE_BINS = 10  # of values to regress, where groups keep images together


def draw_folds(
    labels: NDArray[np.int64] | NDArray[np.float64], groups: Sequence[str] | None, n_folds: int, seed: int
) -> NDArray[np.int64]:
    """The fold in which each row is tested; every fold has its share of every class, and a group is in one fold.

    Without groups a class's images differ by one at most between folds, and so do all images (what scikit-learn's
    StratifiedKFold guarantees). Values to regress are dealt out in their order: of every `n_folds` neighbours each
    fold has one. With groups whole groups are dealt out, the unlike ones first, each to the fold that has least of its
    classes (the greedy rule of scikit-learn's StratifiedGroupKFold).

    Args:
        labels: [n] classes, -1 where all are alike; or values to regress.
        groups: [n] names. None: every image is for itself.
    Returns:
        [n] from 0 to n_folds - 1.
    """
    rng = np.random.Generator(np.random.PCG64([seed, _FOLDS]))
    if groups is not None:
        return _deal_groups(_strata(labels), np.unique(groups, return_inverse=True)[1], n_folds, rng)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    if np.issubdtype(labels.dtype, np.floating):  # in turn, the first folds would have the smaller values
        turns = np.concatenate([rng.permutation(n_folds) for _ in range(-(-len(labels) // n_folds))])
        folds[order] = turns[: len(labels)]
    else:
        folds[order] = np.arange(len(labels)) % n_folds
    return folds


def draw_shots(labels: NDArray[np.int64], n_per_class: int, seed: int, draw: int) -> NDArray[np.int64]:
    """Rising positions of `n_per_class` images of every class; of the same draw, fewer images are among more.

    Args:
        labels: [n] classes, each with so many images at least.
        draw: its number; each draws anew.
    """
    rng = np.random.Generator(np.random.PCG64([seed, _SHOTS, draw]))
    order = rng.permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == label][:n_per_class] for label in np.unique(labels)]))


def _strata(labels: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.int64]:
    """[n] from 0: classes; of values, tenths of their order."""
    if np.issubdtype(labels.dtype, np.floating):
        ranks = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
        return ranks * min(_VALUE_BINS, len(labels)) // len(labels)
    return np.unique(labels, return_inverse=True)[1]


def _deal_groups(
    strata: NDArray[np.int64], groups: NDArray[np.int64], n_folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """[n] folds. The sum of squares of all shares of a class in a fold grows least where a group's classes are rare."""
    n_groups, n_strata = int(groups.max()) + 1, int(strata.max()) + 1
    counts = np.bincount(groups * n_strata + strata, minlength=n_groups * n_strata).reshape(n_groups, n_strata)
    shares = counts / counts.sum(axis=0)
    lots = rng.permutation(n_groups)
    order = lots[np.argsort(-counts[lots].std(axis=1), kind="stable")]
    there, n_images = np.zeros((n_folds, n_strata)), np.zeros(n_folds)
    fold_of = np.empty(n_groups, np.int64)
    for group in order:
        fold = np.lexsort((n_images, (there @ shares[group]).round(12)))[0]  # of equals the one with fewest images
        fold_of[group] = fold
        there[fold] += shares[group]
        n_images[fold] += counts[group].sum()
    return fold_of[groups]

"""Labels one for one: against loops over images, and scikit-learn's brute force."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from loffta.errors import UsageError
from loffta.probes import knn
from loffta.probes.knn import KS, Neighbours, votes

N_CLASSES = 10


def digits():
    """Train and test pixels, labels: DINO's k of up to 200 among 1,000 images."""
    found = load_digits()
    pixels = (found.data + np.random.default_rng(0).normal(size=found.data.shape)).astype(np.float32)  # no two alike
    return pixels[:1000], found.target[:1000], pixels[1000:], found.target[1000:]


def corners(n_images, seed, n_columns=64):
    """Corners of a cube, of length 8: their cosines are multiples of 1/64, exact in float32, and full of ties."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], (n_images, n_columns)).astype(np.float32)


def neighbours_of(train, test, k, *, n_batch=64, groups=(None, None)):
    found = Neighbours(torch.tensor(test), k, None if groups[1] is None else torch.tensor(groups[1]))
    for first in range(0, len(train), n_batch):
        part = slice(first, first + n_batch)
        found.add(torch.tensor(train[part]), None if groups[0] is None else torch.tensor(groups[0][part]))
    return found


def slow_votes(train, labels, query, k, temperature, allowed=None):
    """One test image: all cosines in float64, sorted, of equals the first; then added up."""
    cosines = train @ query / (np.linalg.norm(train, axis=1) * np.linalg.norm(query))
    rows = np.arange(len(train)) if allowed is None else np.flatnonzero(allowed)
    nearest = rows[np.argsort(-cosines[rows], kind="stable")][:k]
    sums = np.zeros(N_CLASSES)
    for row in nearest:
        sums[labels[row]] += 1.0 if temperature is None else np.exp(cosines[row] / temperature)
    return sums / sums.sum()


@pytest.mark.parametrize("temperature", [0.07, None])
def test_votes_and_labels_equal_a_loop_over_images(temperature):
    train, labels, test, _ = digits()
    found = neighbours_of(train, test[:60], 200)
    for k in KS:
        ours = votes(found.nearest(k), torch.tensor(labels), N_CLASSES, temperature).numpy()
        slow = np.stack([slow_votes(train.astype(np.float64), labels, query, k, temperature) for query in test[:60]])
        np.testing.assert_allclose(ours, slow, atol=1e-5)
        np.testing.assert_array_equal(ours.argmax(axis=1), slow.round(9).argmax(axis=1))


def test_labels_are_scikit_learns():
    train, labels, test, _ = digits()
    found = neighbours_of(train, test, 200)
    for k in KS:
        for temperature in (None, 0.07):
            weights = "uniform" if temperature is None else lambda distance: np.exp((1 - distance) / 0.07)
            theirs = KNeighborsClassifier(k, weights=weights, algorithm="brute", metric="cosine").fit(train, labels)
            ours = votes(found.nearest(k), torch.tensor(labels), N_CLASSES, temperature).argmax(dim=1)
            np.testing.assert_array_equal(ours.numpy(), theirs.predict(test))


@pytest.mark.parametrize(("n_batch", "cells"), [(1, 8 << 20), (64, 8 << 20), (64, 500), (300, 1)])
def test_ties_go_to_the_first_image_and_the_first_class_however_images_come(n_batch, cells, monkeypatch):
    monkeypatch.setattr(knn, "_HELD_ROWS", 100)
    monkeypatch.setattr(knn, "_CELLS", cells)
    train, test = corners(300, 0), corners(40, 1)
    labels = np.random.default_rng(2).integers(N_CLASSES, size=300)
    found = neighbours_of(train, test, 15, n_batch=n_batch)
    cosines = test @ train.T / 64
    order = np.argsort(-cosines, axis=1, kind="stable")
    assert (np.diff(np.sort(cosines, axis=1)[:, -16:]) == 0).any(axis=1).mean() > 0.9, "ties where it matters"
    for k in (1, 7, 15):
        nearest = found.nearest(k)
        np.testing.assert_array_equal(nearest.row.numpy(), order[:, :k])
        np.testing.assert_array_equal(nearest.similarity.numpy(), np.take_along_axis(cosines, order[:, :k], axis=1))
        counts = np.stack([np.bincount(labels[rows], minlength=N_CLASSES) for rows in order[:, :k]])
        ours = votes(nearest, torch.tensor(labels), N_CLASSES, None)
        np.testing.assert_array_equal(ours.argmax(dim=1).numpy(), counts.argmax(axis=1))


def test_folds_are_groups_of_one_pass():
    """Each fold's images among those of the others; a fold with fewer others than k uses what there are."""
    train, labels, _, _ = digits()
    train, labels = train[:120], labels[:120]
    folds = np.where(np.arange(120) < 100, 0, 1)
    found = votes(
        neighbours_of(train, train, 40, groups=(folds, folds)).nearest(40), torch.tensor(labels), N_CLASSES
    ).numpy()
    for i in (0, 50, 99, 100, 119):
        allowed = folds != folds[i]
        slow = slow_votes(train.astype(np.float64), labels, train[i].astype(np.float64), 40, 0.07, allowed)
        np.testing.assert_allclose(found[i], slow, atol=1e-5)
    everyone = np.zeros(120, int)
    alone = neighbours_of(train, train, 40, groups=(everyone, everyone)).nearest(40)
    assert (alone.row == -1).all()
    assert (votes(alone, torch.tensor(labels), N_CLASSES) == 0).all()


def test_memory_is_that_of_the_test_images_alone(monkeypatch):
    monkeypatch.setattr(knn, "_HELD_ROWS", 100)
    found = Neighbours(torch.tensor(corners(3, 0)), 5)
    batch = torch.tensor(corners(30, 1))
    for _ in range(50):
        found.add(batch)
        assert sum(len(waiting) for waiting, _ in found._waiting) < 100
        assert found._keys.shape[1] <= 5
    everything = neighbours_of(np.tile(batch.numpy(), (50, 1)), corners(3, 0), 5, n_batch=1500)
    assert torch.equal(found.nearest(5).row, everything.nearest(5).row)


@pytest.mark.parametrize("k", [11, 21])
def test_more_neighbours_than_there_are_is_told(k):
    found = neighbours_of(corners(10, 0), corners(2, 1), 20)
    with pytest.raises(UsageError, match="choose k of at most 10"):
        found.nearest(k)

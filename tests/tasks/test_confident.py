"""Confident learning: against loops written from the paper's equations, and by hand."""

import numpy as np
import pytest

from loffta.tasks.confident import class_thresholds, find_suspects


def paper(chances, labels):
    """Equations 1 and 2 of Northcutt et al. 2021, image by image: (image, true class) off the diagonal."""
    n_classes = len(chances[0])
    threshold = {}
    for j in range(n_classes):
        of_class = [chance[j] for chance, label in zip(chances, labels, strict=True) if label == j]
        if of_class:
            threshold[j] = sum(of_class) / len(of_class)
    found = []
    for i, (chance, label) in enumerate(zip(chances, labels, strict=True)):
        reached = [j for j in threshold if chance[j] >= threshold[j]]
        if reached:
            counted = max(reached, key=lambda j: chance[j])
            if counted != label:
                found.append((i, counted))
    return found


def drawn(seed, n=200, n_classes=5, n_wrong=20):
    """Chances that mostly agree with true classes, and labels of which some are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(n_classes, size=n)
    scores = rng.normal(size=(n, n_classes))
    scores[np.arange(n), truth] += 2.0
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    labels = truth.copy()
    labels[:n_wrong] = (truth[:n_wrong] + 1) % n_classes
    return chances, labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_classes", [2, 5])
def test_suspects_are_the_papers(seed, n_classes):
    chances, labels = drawn(seed, n_classes=n_classes)
    found = find_suspects(chances, labels)
    expected = paper(chances.tolist(), labels.tolist())
    assert expected
    assert sorted(zip(found.place.tolist(), found.suggested.tolist(), strict=True)) == expected
    rows = np.arange(len(found.place))
    margins = (chances[found.place, found.suggested] - chances[found.place, labels[found.place]])[rows]
    assert (np.diff(margins) <= 0).all()


def test_by_hand():
    """Thresholds 0.65 and 0.5: the third image is surely a 1; the fourth has more of 1, yet not enough."""
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5], [0.5, 0.5]])
    labels = np.array([0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(class_thresholds(chances, labels), [0.65, 0.5])
    found = find_suspects(chances, labels)
    assert found.place.tolist() == [2]
    assert found.suggested.tolist() == [1]


def test_a_class_without_images_is_never_suggested():
    chances = np.array([[0.1, 0.2, 0.7], [0.2, 0.1, 0.7]])
    labels = np.array([0, 1])
    assert class_thresholds(chances, labels)[2] == np.inf
    assert 2 not in find_suspects(chances, labels).suggested


def test_a_class_whose_images_are_all_alike_reaches_its_own_mean():
    """The mean of three times this is above it in floating point; the images would count as the other class."""
    alike = next(x for x in np.linspace(0.5, 0.9, 41) if np.full(3, x).sum() / 3 > x)
    chances = np.array([[alike, 1 - alike]] * 3 + [[0.99, 0.01]] * 3)
    assert find_suspects(chances, np.array([0, 0, 0, 1, 1, 1])).place.tolist() == [3, 4, 5]

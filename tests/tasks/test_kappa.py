"""Quadratic kappa against scikit-learn, and against drawing label and prediction apart."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from loffta.tasks.classification import metrics, resampled
from loffta.tasks.kappa import Kappa, grades_of

from .scores import draw_labels, draw_logits, quadratic_kappa

ONES = np.ones((1, 120), np.float32)


@pytest.mark.parametrize(
    ("classes", "values"),
    [
        (["0", "1", "2"], [0, 1, 2]),
        (["1", "10", "2"], [1, 10, 2]),  # as folders are sorted by name
        (["-1.5", "+2", "0.25"], [-1.5, 2, 0.25]),
        (["07", "1"], [7, 1]),
    ],
)
def test_names_that_are_numbers_are_grades(classes, values):
    assert grades_of(classes).tolist() == values


@pytest.mark.parametrize(
    "classes",
    [
        ["cat", "dog"],
        ["0", "1", "other"],
        ["n01440764", "n01443537"],  # ImageNet's
        ["grade 1", "grade 2"],
        ["1", "01"],
        ["1", "1.0"],
        ["nan", "inf"],
        ["1e3", "2"],
        ["1_0", "2"],
        ["\u0663", "\u0664"],
        ["9" * 400, "1"],
        ["", "1"],
    ],
)
def test_other_names_are_none(classes):
    assert grades_of(classes) is None


def draw(n_classes):
    labels = draw_labels(120, shares=(1 / n_classes,) * n_classes)
    return labels, draw_logits(labels, n_classes, n_seeds=1, digits=9)


@pytest.mark.parametrize("seed", range(3))
def test_the_stored_order_of_the_classes_has_no_part(seed):
    """Grades 1 to 12 as folders sort them (1, 10, 11, 12, 2), and shuffled: scikit-learn's on the grades."""
    labels, logits = draw(12)
    grades = np.arange(1, 13)
    expected = cohen_kappa_score(grades[labels], grades[logits[0].argmax(1)], weights="quadratic")
    order = np.random.default_rng(seed).permutation(12) if seed else np.argsort([str(grade) for grade in grades])
    place = np.argsort(order)
    names = [str(grades[i]) for i in order]
    assert metrics(logits[0][:, order], place[labels], names)["kappa"] == pytest.approx(expected)
    by_place = cohen_kappa_score(place[labels], place[logits[0].argmax(1)], weights="quadratic")
    assert abs(by_place - expected) > 0.01, "which their places would not give"
    values = resampled(logits[:, :, order], place[labels], names, [ONES])
    assert values["kappa"] == pytest.approx([expected])


def test_a_gap_between_grades_is_a_distance():
    """Grades 0, 1, 4: scikit-learn's with the grades that nobody has among its labels; not that of ranks 0, 1, 2."""
    labels, logits = draw(3)
    grades = np.array([0, 1, 4])
    y, p = grades[labels], grades[logits[0].argmax(1)]
    found = Kappa(logits.argmax(2), labels, grades_of(["0", "1", "4"]))(ONES)
    assert found == pytest.approx([cohen_kappa_score(y, p, labels=range(5), weights="quadratic")])
    assert found == pytest.approx([quadratic_kappa(p, y)])
    assert abs(found[0] - cohen_kappa_score(y, p, weights="quadratic")) > 0.01
    halves = Kappa(logits.argmax(2), labels, grades_of(["0.0", "0.5", "2.0"]))(ONES)
    assert halves == pytest.approx(found), "the unit is no matter"


def test_where_a_resample_has_one_class_only():
    kappa = Kappa(np.array([[0, 1, 1]]), np.array([0, 1, 0]), np.arange(3.0))
    weights = np.array([[3, 0, 0], [1, 1, 1]], np.float32)
    expected = cohen_kappa_score([0, 1, 0], [0, 1, 1], weights="quadratic")
    np.testing.assert_allclose(kappa(weights), [np.nan, expected])

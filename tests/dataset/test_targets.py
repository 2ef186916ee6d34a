"""Targets of every kind of labels, and what is refused."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from loffta.dataset.targets import (
    choose_task,
    fit_to_task,
    labelled_rows,
    read_targets,
    refuse_one_class,
)
from loffta.errors import LofftaError, UsageError
from loffta.heads import HEADS
from tests.caches import make_table


def many(sets, classes=("a", "b", "c")):
    table = make_table([-1] * len(sets), ["train"] * len(sets), classes=classes)
    return dataclasses.replace(table, label_sets=sets)


ONE = make_table([0, 1, -1, -1, 0], ["train"] * 2 + ["test"] * 3)
MANY = many([(0, 2), (), None, (1,)])
NUMBERS = dataclasses.replace(make_table([-1] * 2, ["train"] * 2, classes=()), values=np.array([0.5, 2.0]))


def test_labels_choose_the_task():
    assert (choose_task(ONE), choose_task(MANY)) == ("classification", "multi-label")
    assert choose_task(MANY, "multi-label") == "multi-label"


def test_tasks_that_do_not_fit():
    with pytest.raises(LofftaError) as caught:
        choose_task(MANY, "classification")
    assert str(caught.value) == (
        "the labels of this image set are multi-label, and classification needs one class per image\n"
        "  where:  folder:pictures\n  remedy: leave --task out, which chooses multi-label"
    )
    with pytest.raises(LofftaError, match=r"are single-label, and multi-label needs any number of classes per image"):
        choose_task(ONE, "multi-label")
    with pytest.raises(LofftaError, match=r"are regression, and no task learns these(.|\n)*a table with classes"):
        choose_task(NUMBERS)
    with pytest.raises(
        LofftaError, match=r"are regression, and cl(.|\n)*extract from a table with one class per image"
    ):
        choose_task(NUMBERS, "classification")
    with pytest.raises(UsageError, match="unknown task 'clasify'"):
        choose_task(ONE, "clasify")


def test_targets():
    targets = read_targets(ONE, "classification")
    assert (targets.dtype, targets.tolist()) == (torch.int64, [0, 1, -1, -1, 0])
    targets = read_targets(MANY, "multi-label")
    assert targets.dtype == torch.int8
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (make_table([0, 1, 2], ["train"] * 3, classes=("a", "b")), "class number 2 is not among the 2 classes"),
        (make_table([0, -2, -1], ["train"] * 3, classes=("a",)), "class number -2 is not among the 1 classes"),
        (many([(0,), (1, 3), (4, 9)]), r"class number 3 is not among the 3 classes of this image set, nor are 2 more"),
        (many([(0,), (-1,)]), "class number -1 is not among"),
    ],
)
def test_class_numbers_without_a_class(table, message):
    with pytest.raises(LofftaError, match=message) as caught:
        read_targets(table, choose_task(table))
    assert caught.value.remedy.startswith("the table of images is damaged")
    first = 2 if "number 2" in message else 1
    assert caught.value.where == f"folder:pictures, first {table.keys[first]}"


def test_rows_without_a_label_are_left_out():
    """An image of none of several classes has a label; one of unknown classes, or of no number, has none."""
    for table, task, expected in ((ONE, "classification", [0, 1, 4]), (MANY, "multi-label", [0, 1, 3])):
        rows = np.arange(len(table))
        assert labelled_rows(table, rows, "train", task).tolist() == expected
        assert labelled_rows(table, rows[::-1], "train", task).tolist() == expected[::-1]
        assert np.flatnonzero(table.is_labelled()).tolist() == expected
    unknown = dataclasses.replace(NUMBERS, values=np.array([np.nan, 2.0]))
    assert unknown.is_labelled().tolist() == [False, True]
    with pytest.raises(LofftaError, match=r"no image of split 'test' has a label \(2 have none\)(.|\n)*--holdout 0.2"):
        labelled_rows(ONE, np.array([2, 3]), "test", "classification")
    with pytest.raises(LofftaError, match="none of the 1 images of split 'train' has any class"):
        labelled_rows(MANY, np.array([1, 2]), "train", "multi-label")
    with pytest.raises(LofftaError, match="and classification needs one class per image"):
        labelled_rows(MANY, np.array([1]), "train", "classification")


HIGH = ["flowers/train/rose/0.png", "flowers/train/tulip/1.png", "flowers/test/rose/2.png"]


@pytest.mark.parametrize(
    ("source", "keys", "cause"),
    [
        ("folder:/set", HIGH, "the folders test, train lie below 'flowers' and .*: give folder:/set/flowers"),
        (
            "folder:/set",
            [f"flowers/deep/{key}" for key in HIGH],
            r"the folders test, train .* give folder:/set/flowers",
        ),
        ("folder:/set", ["train/flowers/a/0.png", "train/flowers/b/1.png", "train/flowers/b/2.png"], "move them up"),
        ("folder:/set", ["flowers/0.png", "flowers/1.png", "flowers/2.png"], None),
        ("table:/set/t.csv", HIGH, None),
    ],
)
def test_one_class_is_no_training_set(source, keys, cause):
    table = make_table([0, 0, 0], ["train"] * 3, classes=("flowers",))
    table = dataclasses.replace(table, keys=keys, source=source)
    with pytest.raises(LofftaError, match="all 3 images of split 'train' are of one class, 'flowers'") as caught:
        refuse_one_class(table, np.arange(3), "train")
    assert "--one-class trains" in caught.value.remedy
    if cause is None:
        assert caught.value.what.endswith("'flowers'")
    else:
        assert re.search(cause, caught.value.what)
    two = dataclasses.replace(table, classes=("flowers", "trees"), labels=np.array([0, 0, 1]))
    refuse_one_class(two, np.arange(3), "train")
    with pytest.raises(LofftaError, match="of one class, 'trees'"):
        refuse_one_class(two, np.array([2]), "train")
    refuse_one_class(many([(0,), (0,)], classes=("a",)), np.arange(2), "train")  # yes or no


@pytest.mark.parametrize("head", HEADS)
def test_single_classes_alone_are_weighed_unasked(head):
    recipe = HEADS[head].recipe()
    assert fit_to_task(recipe, "classification", ()) == recipe
    assert fit_to_task(recipe, "multi-label", ()) == recipe.model_copy(update={"class_weights": False})
    weighed = recipe.model_copy(update={"class_weights": True})
    assert fit_to_task(weighed, "multi-label", {"class_weights": True}) == weighed

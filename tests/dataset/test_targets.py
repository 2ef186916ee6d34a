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
    spread_of,
)
from loffta.errors import LofftaError, UsageError
from loffta.heads import HEADS, IMAGE_HEADS
from tests.caches import make_table


def many(sets, classes=("a", "b", "c")):
    table = make_table([-1] * len(sets), ["train"] * len(sets), classes=classes)
    return dataclasses.replace(table, label_sets=sets)


ONE = make_table([0, 1, -1, -1, 0], ["train"] * 2 + ["test"] * 3)
MANY = many([(0, 2), (), None, (1,)])


def numbers(*values):
    table = make_table([-1] * len(values), ["train"] * len(values), classes=())
    return dataclasses.replace(table, values=np.array(values))


NUMBERS = numbers(0.5, 2.0)


def test_labels_choose_the_task():
    assert [choose_task(table) for table in (ONE, MANY, NUMBERS)] == ["classification", "multi-label", "regression"]
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
    with pytest.raises(LofftaError, match=r"are regression, and cl(.|\n)*which chooses regression$"):
        choose_task(NUMBERS, "classification")
    with pytest.raises(LofftaError, match=r"are single-label, and reg(.|\n)*numbers to learn stand in a column value"):
        choose_task(ONE, "regression")
    with pytest.raises(UsageError, match="unknown task 'clasify'"):
        choose_task(ONE, "clasify")


def test_targets():
    targets = read_targets(ONE, "classification")
    assert (targets.dtype, targets.tolist()) == (torch.int64, [0, 1, -1, -1, 0])
    targets = read_targets(MANY, "multi-label")
    assert targets.dtype == torch.int8
    assert targets.tolist() == [[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0]]
    targets = read_targets(numbers(1 + 2**-40, np.nan), "regression")
    assert (targets.dtype, targets[0].item(), targets[1].isnan().item()) == (torch.float64, 1 + 2**-40, True)


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
        refuse_one_class(table, np.arange(3), "train", "; or so")
    assert caught.value.remedy.endswith("; or so")
    if cause is None:
        assert caught.value.what.endswith("'flowers'")
    else:
        assert re.search(cause, caught.value.what)
    two = dataclasses.replace(table, classes=("flowers", "trees"), labels=np.array([0, 0, 1]))
    refuse_one_class(two, np.arange(3), "train")
    with pytest.raises(LofftaError, match="of one class, 'trees'"):
        refuse_one_class(two, np.array([2]), "train")
    refuse_one_class(many([(0,), (0,)], classes=("a",)), np.arange(2), "train")  # yes or no


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_single_classes_alone_are_weighed_unasked(head):
    recipe = HEADS[head].recipe()
    assert fit_to_task(recipe, "classification", ()) == recipe
    assert fit_to_task(recipe, "multi-label", ()) == recipe.model_copy(update={"class_weights": False})
    weighed = recipe.model_copy(update={"class_weights": True})
    assert fit_to_task(weighed, "multi-label", {"class_weights": True}) == weighed


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_numbers_have_a_loss_and_classes_have_none_to_choose(head):
    recipe = HEADS[head].recipe()
    assert recipe.loss is None
    found = fit_to_task(recipe, "regression", ())
    assert (found.loss, found.class_weights) == ("mse", False)
    robust = recipe.model_copy(update={"loss": "huber"})
    assert fit_to_task(robust, "regression", ()).loss == "huber"
    with pytest.raises(UsageError, match="the loss 'huber' is for numbers, and multi-label has classes"):
        fit_to_task(robust, "multi-label", ())


def test_the_spread_that_numbers_are_learnt_in():
    table = numbers(1.0, 3.0, np.nan, 8.0)
    assert spread_of(table, np.array([0, 1]), "train") == (2, 1)
    assert spread_of(table, np.array([0, 1, 3]), "train") == pytest.approx((4, np.std([1, 3, 8])))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.1] * 7, "all 7 images of split 'train' have the value 0.1: numbers are learnt"),
        ([3.0], "split 'train' has one image: numbers are learnt"),
        ([-1e308, 1e308], r"the values of split 'train' go from -1e\+308 to 1e\+308: their spread is no float64"),
        ([0.0, 5e-324], r"go from 0 to 4.94066e-324(.|\n)*remedy: give them in another unit"),
    ],
)
def test_values_without_a_spread(values, message):
    with pytest.raises(LofftaError, match=message):
        spread_of(numbers(*values), np.arange(len(values)), "train")


def test_infinite_values_in_a_table():
    with pytest.raises(LofftaError, match=r"the value inf is no number to learn, nor are 1 more") as caught:
        read_targets(numbers(1.0, np.inf, -np.inf), "regression")
    assert caught.value.where == "folder:pictures, first train/001.png"

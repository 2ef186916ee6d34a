"""Targets of every kind of labels, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from loffta.errors import LofftaError, UsageError
from loffta.heads import HEADS
from loffta.targets import check_targets, choose_task, fit_to_task, read_targets

from .caches import make_table


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


def test_images_without_label():
    check_targets(ONE, np.array([0, 1]), "train", "classification")
    with pytest.raises(LofftaError, match=r"2 of the 3 images of split 'test' have no label(.|\n)*test/002.png"):
        check_targets(ONE, np.array([2, 3, 4]), "test", "classification")
    check_targets(MANY, np.array([0, 1, 3]), "train", "multi-label")
    with pytest.raises(LofftaError, match=r"1 of the 2 images of split 'train' have no label(.|\n)*train/002.png"):
        check_targets(MANY, np.array([2, 3]), "train", "multi-label")
    with pytest.raises(LofftaError, match="none of the 1 images of split 'train' has any class"):
        check_targets(MANY, np.array([1]), "train", "multi-label")
    with pytest.raises(LofftaError, match="and classification needs one class per image"):
        check_targets(MANY, np.array([1]), "train", "classification")


@pytest.mark.parametrize("head", HEADS)
def test_single_classes_alone_are_weighed_unasked(head):
    recipe = HEADS[head].recipe()
    assert fit_to_task(recipe, "classification", ()) == recipe
    assert fit_to_task(recipe, "multi-label", ()) == recipe.model_copy(update={"class_weights": False})
    weighed = recipe.model_copy(update={"class_weights": True})
    assert fit_to_task(weighed, "multi-label", {"class_weights": True}) == weighed

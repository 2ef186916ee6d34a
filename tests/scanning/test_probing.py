"""From maps of the classes that occur to maps of all."""

import pytest
import torch

from loffta.probes.maps import LinearMap
from loffta.scanning.probing import Goal


def test_a_class_without_training_images_is_never_chosen():
    """However low the logits of the others are."""
    goal = Goal(torch.tensor([0, 2, 2, 0]), 3)
    whole = goal.whole(LinearMap(torch.eye(2).double(), torch.tensor([-50.0, -60.0]).double()), torch.tensor([0, 2]))
    logits = whole(torch.tensor([[1.0, 2.0], [0.0, 30.0]]))
    assert logits.argmax(dim=1).tolist() == [0, 2]
    assert logits[:, [0, 2]].tolist() == [[-49, -58], [-50, -30]]


@pytest.mark.parametrize("classes", [(0, 1), (0, 2)])
def test_one_column_is_for_the_second_of_two_classes(classes):
    goal = Goal(torch.tensor([*classes]), 3)
    whole = goal.whole(LinearMap(torch.ones(1, 1).double(), torch.tensor([-1.0]).double()), torch.tensor(classes))
    assert whole(torch.tensor([[0.5], [1.5]])).argmax(dim=1).tolist() == [*classes]

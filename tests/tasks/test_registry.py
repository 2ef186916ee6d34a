"""What holds for every task."""

import numpy as np
import pytest
import torch

from loffta.errors import UsageError
from loffta.tasks import TASKS, find_task
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.figures import FIGURES

TARGETS = {
    "classification": torch.arange(12) % 3,
    "multi-label": torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]] * 4, dtype=torch.int8),
    "regression": torch.arange(12.0).square(),
}


def draw_scores(name, n_seeds):
    n_outputs = 1 if name == "regression" else 3
    return torch.randn(n_seeds, 12, n_outputs, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TASKS)
def test_task(name):
    """Losses per image, probabilities, and intervals for exactly the metrics that there are."""
    task, targets = find_task(name), TARGETS[name]
    logits = draw_scores(name, 2)
    assert task.loss(logits[0], targets).shape == (12,)
    probabilities = task.activation(logits)
    assert probabilities.dtype == torch.float32
    if name != "regression":
        assert ((probabilities > 0) & (probabilities < 1)).all()
    scores = logits.numpy()
    assert task.decide(scores[0]).shape == targets.shape
    found = task.metrics(scores[0], targets.numpy(), "012")
    assert {task.main_metric, task.headline} <= set(found) <= set(FIGURES)
    resampled = task.resampled(scores, targets.numpy(), "012", image_weights(12, 5))
    assert resampled.keys() == found.keys()
    assert {values.shape for values in resampled.values()} == {(5,)}
    assert task.details(scores, targets.numpy(), ["a", "b", "c"])


@pytest.mark.parametrize("name", TASKS)
def test_the_order_of_images_has_no_part(name):
    task, targets = TASKS[name], TARGETS[name].numpy()
    scores = draw_scores(name, 1).numpy()
    order = np.random.default_rng(0).permutation(12)
    expected = task.metrics(scores[0], targets, "012")
    assert task.metrics(scores[0, order], targets[order], "012") == pytest.approx(expected)


def test_unknown_task():
    with pytest.raises(UsageError, match=r"unknown task 'multilabel'(.|\n)*did you mean multi-label"):
        find_task("multilabel")
    with pytest.raises(
        UsageError, match=r"unknown task 'depth'(.|\n)*known: auto, classification, multi-label, regression"
    ):
        find_task("depth")

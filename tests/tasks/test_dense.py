"""What holds for every dense task."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from loffta.shapes import Boxes, TargetBatch
from loffta.targets import IGNORE_16, BoxList, DenseSettings, NativeTarget
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.figures import FIGURES, smaller_is_better
from loffta.tasks.paired import Scored, difference

OWN_SIZE = DenseSettings(embedding_dim=4)
SETTINGS = dict.fromkeys(DENSE_TASKS, OWN_SIZE) | {"instances": DenseSettings(embedding_dim=4, eval_px=20)}
CLASSES = ["a", "b", "c"]
EMPTY = {
    "mask": TargetBatch(torch.full((3, 16, 16), 255, dtype=torch.uint8)),
    "depth": TargetBatch(torch.tensor([0.0, -1.0, float("nan"), float("inf")]).repeat(3, 16, 4)),
    "instances": TargetBatch(
        torch.full((3, 16, 16), IGNORE_16, dtype=torch.uint16), first_instance=torch.zeros(3, dtype=torch.int64)
    ),
    "boxes": TargetBatch(boxes=Boxes(torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0).long())),
}


def draw_native(kind, rng, size=(20, 24)):
    if kind == "mask":
        return NativeTarget(kind, *size, rng.integers(0, 3, size).astype(np.uint8))
    if kind == "depth":
        return NativeTarget(kind, *size, rng.uniform(0.5, 5, size).astype(np.float32))
    blocks = np.kron(rng.integers(0, 4, (5, 6)), np.ones((4, 4)))
    return NativeTarget("instances", *size, blocks.astype(np.uint16))


@cache
def draw(name, n_images=6):
    task, rng = DENSE_TASKS[name], np.random.default_rng(0)
    natives = [draw_native(task.target, rng) for _ in range(n_images)]
    for native in natives:
        if native.map is not None:
            native.map.flags.writeable = False  # as decoders may give them
    n_outputs = task.readout(3, SETTINGS[name]).n_outputs
    outputs = torch.tensor(rng.normal(size=(2, n_images, n_outputs, 16, 16)), dtype=torch.float32)
    if name == "detection":  # some of the boxes that the first seed finds are there
        outputs[:, :, 1:] = outputs[:, :, 1:].abs() / 5 + 0.2
        natives = [
            NativeTarget("boxes", 20, 24, boxes=BoxList(found.corners[i : i + 3], np.arange(3), np.zeros(3, bool)))
            for i, found in enumerate(task.decode(outputs[0], OWN_SIZE, (20, 24)))
        ]
    return task, natives, outputs, [task.records(of_seed, natives, SETTINGS[name], 3) for of_seed in outputs]


@pytest.mark.parametrize("name", DENSE_TASKS)
def test_task(name):
    """Metrics that figures knows, intervals and figures of images for exactly those, and details."""
    task, _, outputs, records = draw(name)
    found = task.metrics(records[0], CLASSES, SETTINGS[name])
    assert {task.main_metric, task.headline} <= set(found) <= set(FIGURES)
    resampled = task.resampled(records, CLASSES, SETTINGS[name], image_weights(6, 5))
    assert resampled.keys() == found.keys()
    assert {values.shape for values in resampled.values()} == {(5,)}
    of_images = task.per_image(records[0], CLASSES, SETTINGS[name])
    assert {values.shape for values in of_images.values()} == {(6,)}
    assert set(found) <= set(of_images)
    assert set(task.notes(records[0], CLASSES, SETTINGS[name])) <= set(FIGURES)
    assert task.details(records, CLASSES, SETTINGS[name])
    assert len(task.decode(outputs[0], SETTINGS[name], (10, 12))) == 6


@pytest.mark.parametrize("name", DENSE_TASKS)
def test_unit_weights_give_the_metrics_themselves(name):
    task, _, _, records = draw(name)
    expected = task.metrics(records[1], CLASSES, SETTINGS[name])
    found = task.resampled(records[1:], CLASSES, SETTINGS[name], [np.ones((1, 6), np.float32)])
    assert {key: float(value[0]) for key, value in found.items()} == expected


@pytest.mark.parametrize("name", DENSE_TASKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_batch_without_anything_to_learn_loses_nothing(name, dtype):
    """Under autocast, with outputs of half precision that are large."""
    task = DENSE_TASKS[name]
    n_outputs = task.readout(3, SETTINGS[name]).n_outputs
    outputs = (100 * torch.randn(3, n_outputs, 16, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    outputs.requires_grad_()
    proxies, rng = torch.zeros(9, n_outputs), torch.Generator().manual_seed(0)
    with torch.autocast("cpu", dtype=dtype):
        mean = task.loss(outputs, EMPTY[task.target], SETTINGS[name], proxies, rng).mean()
    mean.backward()
    assert outputs.grad.isfinite().all()
    assert mean.isfinite()
    if name != "detection":  # which learns that there is no object
        assert mean == 0


@pytest.mark.parametrize("name", DENSE_TASKS)
def test_runs_are_compared_by_their_records(name):
    """The same resamples of two runs: their difference, and none of a run to itself."""
    task, _, _, records = draw(name)
    (weights,) = image_weights(6, 40)
    runs = []
    for of_seed in records:
        value = task.metrics(of_seed, CLASSES, SETTINGS[name])[task.headline]
        drawn = task.recount(of_seed, CLASSES, SETTINGS[name])(weights)[task.headline]
        runs.append(Scored(np.array([value]), drawn[:, None], smaller_is_better(task.headline)))
    found = difference(*runs, 6)
    assert found.mean == runs[0].values[0] - runs[1].values[0]
    assert found.ci95[0] < found.ci95[1]
    assert difference(runs[0], runs[0], 6).ci95 == (0, 0)


def as_batch(kind, natives):
    """Natives as the feed gives them: squares of 16 pixels."""
    if kind == "boxes":
        corners = [torch.tensor(native.boxes.corners[0] / [24, 20, 24, 20]).float() for native in natives]
        numbers = torch.arange(len(natives))
        return TargetBatch(boxes=Boxes(numbers, torch.stack(corners).clamp(max=1), numbers))
    maps = torch.stack([torch.tensor(native.map[:16, :16]) for native in natives])
    return TargetBatch(maps, first_instance=4 * torch.arange(len(natives)))


@pytest.mark.parametrize("name", DENSE_TASKS)
def test_autocast_changes_no_loss(name):
    """Outputs of half precision are all that it makes: the loss itself is computed in float32."""
    task, natives, outputs, _ = draw(name)
    outputs, batch = outputs[0].bfloat16(), as_batch(task.target, natives)
    proxies = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    expected = task.loss(outputs.float(), batch, SETTINGS[name], proxies, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = task.loss(outputs, batch, SETTINGS[name], proxies, None)
    assert found.sums.tolist() == expected.sums.tolist()
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.mean() > 0


@pytest.mark.parametrize("name", DENSE_TASKS)
def test_docs_tell_every_metric(name):
    task, _, _, records = draw(name)
    page = (Path(__file__).parents[2] / "docs" / "dense-metrics.md").read_text()
    assert [metric for metric in task.per_image(records[0], CLASSES, SETTINGS[name]) if f"`{metric}`" not in page] == []

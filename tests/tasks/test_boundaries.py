"""Boundaries against scikit-image, scipy, scikit-learn and a slow search of what is near."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import maximum_filter
from scipy.spatial.distance import cdist
from skimage.segmentation import find_boundaries
from sklearn.metrics import jaccard_score

from loffta.shapes import TargetBatch
from loffta.targets import IGNORE_16, DenseSettings, NativeTarget
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.boundaries import find_borders
from loffta.tasks.dense import DENSE_TASKS

TASK, SETTINGS = DENSE_TASKS["boundaries"], DenseSettings(tolerance=0.05)
SIZES = [(24, 30), (40, 20), (21, 21), (2, 3)]


def draw(seed=0):
    """Outputs of 12 x 12 cells, blocks of objects; one image has none."""
    rng = np.random.default_rng(seed)
    maps = [np.kron(rng.integers(0, 3, (4, 5)), np.ones((10, 6)))[:h, :w].astype(np.uint16) for h, w in SIZES]
    maps[2][:] = 0
    outputs = torch.tensor(rng.normal(-0.5, size=(len(SIZES), 1, 12, 12)), dtype=torch.float32)
    return outputs, [NativeTarget("instances", *m.shape, m) for m in maps]


def said(output, native):
    return F.interpolate(output[None], native.map.shape, mode="bilinear", align_corners=False)[0, 0].numpy()


def near(those, others, distance):
    """How many pixels of the one set have a pixel of the other within the distance: all pairs."""
    those, others = np.argwhere(those), np.argwhere(others)
    return int((cdist(those, others).min(axis=1) <= distance).sum()) if len(those) and len(others) else 0


def theirs(outputs, natives, rows):
    truths = [find_boundaries(natives[i].map, mode="thick") for i in rows]  # so small that dilation changes nothing
    logits = [said(outputs[i], natives[i]) for i in rows]
    truth, logit = (np.concatenate([part.ravel() for part in parts]) for parts in (truths, logits))
    chance = 1 / (1 + np.exp(-logit.astype(float)))
    found = {"boundary_bce": -np.log(np.where(truth, chance, 1 - chance)).mean()}
    if not truth.any():
        return found | {"boundary_iou": np.nan, "boundary_f": np.nan}
    hits, misses = 0, 0
    for of_truth, of_logit in zip(truths, logits, strict=True):
        distance = 0.05 * np.hypot(*of_truth.shape)
        hits += near(of_logit >= 0, of_truth, distance)
        misses += near(of_truth, of_logit >= 0, distance)
    precision, recall = hits / (logit >= 0).sum(), misses / truth.sum()
    return found | {
        "boundary_iou": jaccard_score(truth, logit >= 0),
        "boundary_f": 2 * precision * recall / (precision + recall),
    }


def test_metrics_are_those_of_slow_versions():
    outputs, natives = draw()
    records = TASK.records(outputs, natives, SETTINGS, 0)
    assert TASK.metrics(records, (), SETTINGS) == pytest.approx(theirs(outputs, natives, range(4)))
    for i in range(4):
        found = {name: values[i] for name, values in TASK.per_image(records, (), SETTINGS).items()}
        assert found == pytest.approx(theirs(outputs, natives, [i]), nan_ok=True)
    assert TASK.notes(records, (), SETTINGS) == {}
    assert set(TASK.notes(records[2:3], (), SETTINGS)) == {"boundary_iou", "boundary_f"}
    assert set(TASK.metrics(records[2:3], (), SETTINGS)) == {"boundary_bce"}


def test_resamples_are_those_of_images_drawn():
    outputs, natives = draw()
    seeds = [outputs, outputs.flip(2)]
    records = [TASK.records(of_seed, natives, SETTINGS, 0) for of_seed in seeds]
    (weights,) = image_weights(4, 8)
    found = TASK.resampled(records, (), SETTINGS, iter([weights[:5], weights[5:]]))
    for r, of_image in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(4), of_image)
        expected = [theirs(of_seed, natives, rows) for of_seed in seeds]
        for name, values in found.items():
            assert values[r] == pytest.approx(np.mean([e[name] for e in expected]), nan_ok=True), name


@pytest.mark.parametrize("size", [(230, 410), (224, 224), (199, 512)])
def test_borders_are_dilated_by_a_hundredth_of_the_sides(size):
    rng = np.random.default_rng(0)
    numbers = np.kron(rng.integers(0, 3, (5, 6)), np.ones((50, 90)))[: size[0], : size[1]].astype(np.uint16)
    box = tuple(max(1, n // 100) for n in size)
    expected = maximum_filter(find_boundaries(numbers, mode="thick"), size=box, mode="constant")
    borders, counted = find_borders(torch.tensor(numbers)[None])
    assert np.array_equal(borders[0].numpy(), expected)
    assert counted.all()


def test_training_maps_have_the_borders_of_native_ones():
    """The same numbers as the feed's tensor and as a label give the same borders, to the pixel."""
    numbers = np.kron(np.random.default_rng(1).integers(0, 3, (4, 4)), np.ones((56, 56))).astype(np.uint16)
    outputs = torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    (record,) = TASK.records(outputs, [NativeTarget("instances", 224, 224, numbers)], SETTINGS, 0)
    batch = TargetBatch(torch.tensor(numbers)[None])
    assert record.true == find_borders(batch.maps)[0].sum()
    assert record.losses / record.n_pixels == pytest.approx(TASK.loss(outputs, batch, SETTINGS).mean().item(), rel=1e-5)


def test_pixels_of_no_object_count_nowhere_and_make_no_border():
    numbers = torch.zeros(1, 8, 8, dtype=torch.int32)
    numbers[0, :, :4] = 1
    numbers[0, :3] = IGNORE_16
    borders, counted = find_borders(numbers)
    assert borders[0].int().tolist() == [[0] * 8] * 3 + [[0, 0, 0, 1, 1, 0, 0, 0]] * 5
    assert counted[0].int().tolist() == [[0] * 8] * 3 + [[1] * 8] * 5
    large = torch.zeros(1, 200, 200, dtype=torch.int32)
    large[:, :, 100], large[:, :, 101:] = 1, IGNORE_16
    assert find_borders(large)[0][0, 0].nonzero()[:, 0].tolist() == [99, 100]  # dilated it would reach 101
    outputs = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = TASK.loss(outputs, TargetBatch(numbers), SETTINGS)
    expected = F.binary_cross_entropy_with_logits(outputs[0, 0, 3:], borders[0, 3:].float())
    assert found.counts.tolist() == [40]
    assert found.mean().item() == pytest.approx(expected.item())


def test_a_perfect_prediction_has_all_of_it():
    _, natives = draw()
    numbers = natives[0].map
    perfect = torch.tensor(find_boundaries(numbers, mode="thick") * 20.0 - 10)[None, None].float()
    records = TASK.records(perfect, natives[:1], SETTINGS, 0)
    found = TASK.metrics(records, (), SETTINGS)
    assert found["boundary_iou"] == found["boundary_f"] == 1
    details = TASK.details([records], (), SETTINGS)["borders"]
    assert details["precision"] == details["recall"] == 1
    nothing = TASK.records(-perfect.abs(), natives[:1], SETTINGS, 0)
    assert TASK.metrics(nothing, (), SETTINGS)["boundary_f"] == 0
    assert TASK.details([nothing], (), SETTINGS)["borders"]["precision"] is None

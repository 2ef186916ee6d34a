"""Segmentation against scikit-learn, a slow loop and torch's own cross-entropy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, jaccard_score

from loffta.shapes import TargetBatch
from loffta.targets import DenseSettings, NativeTarget
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.dense import DENSE_TASKS

TASK, SETTINGS, CLASSES = DENSE_TASKS["segmentation"], DenseSettings(), ["sky", "cat", "dog", "road", "absent"]
SIZES = [(9, 7), (5, 12), (8, 8), (1, 3)]


def draw(seed=0):
    """Outputs of 4 x 4 cells with some signal, masks of other sizes with ignored pixels; no pixel of the last class."""
    rng = np.random.default_rng(seed)
    masks = [rng.choice([0, 1, 2, 3, 255], size, p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.uint8) for size in SIZES]
    masks[2][:] = 255
    logits = torch.tensor(rng.normal(size=(len(masks), 5, 4, 4)), dtype=torch.float32)
    logits[:, 4] = -9
    return logits, [NativeTarget("mask", *mask.shape, mask) for mask in masks]


def said(logits, native):
    """The class of every pixel by two lines of torch."""
    big = F.interpolate(logits[None], size=native.map.shape, mode="bilinear", align_corners=False)[0]
    return big.argmax(0).numpy()


def theirs(logits, natives, rows):
    """By scikit-learn, of all pixels of the images at once."""
    label = np.concatenate([natives[i].map.ravel() for i in rows]).astype(int)
    given = np.concatenate([said(logits[i], natives[i]).ravel() for i in rows])
    label, given = label[label != 255], given[label != 255]
    if not len(label):
        return dict.fromkeys(("miou", "mean_accuracy", "pixel_accuracy"), np.nan)
    matrix = confusion_matrix(label, given, labels=range(5))
    has = matrix.sum(axis=1)
    return {
        "miou": jaccard_score(label, given, average="macro"),
        "mean_accuracy": (matrix.diagonal() / np.maximum(has, 1))[has > 0].mean(),
        "pixel_accuracy": (label == given).mean(),
    }


def test_metrics_are_those_of_scikit_learn():
    logits, natives = draw()
    records = TASK.records(logits, natives, SETTINGS, 5)
    assert TASK.metrics(records, CLASSES, SETTINGS) == pytest.approx(theirs(logits, natives, range(4)))
    of_images = TASK.per_image(records, CLASSES, SETTINGS)
    for i in range(4):
        assert {n: v[i] for n, v in of_images.items()} == pytest.approx(theirs(logits, natives, [i]), nan_ok=True)
    assert TASK.notes(records, CLASSES, SETTINGS)["miou"] == "1 of 5 classes have no pixel (absent) and are left out"
    assert TASK.metrics(records[2:3], CLASSES, SETTINGS) == {}


def test_details_hold_every_class_and_say_which_are_absent():
    logits, natives = draw()
    seeds = [TASK.records(of_seed, natives, SETTINGS, 5) for of_seed in (logits, logits.flip(3))]
    found = TASK.details(seeds, CLASSES, SETTINGS)
    for c, entry in enumerate(found["per_class"]):
        cells = [(0, 0), (0, 0)]
        for seed, of_seed in enumerate((logits, logits.flip(3))):
            both = either = 0
            for i, native in enumerate(natives):
                for label, given in zip(native.map.ravel(), said(of_seed[i], native).ravel(), strict=True):
                    both += label != 255 and label == c == given
                    either += label != 255 and c in (label, given)
            cells[seed] = both, either
        expected = None if c == 4 else np.mean([both / either for both, either in cells])
        assert entry["iou"] == (None if c == 4 else pytest.approx(expected)), entry
        assert entry["pixels"] == sum((native.map == c).sum() for native in natives)
    assert found["absent_classes"] == 1


def test_resamples_are_those_of_images_drawn():
    logits, natives = draw()
    seeds = [logits, logits.flip(2)]
    records = [TASK.records(of_seed, natives, SETTINGS, 5) for of_seed in seeds]
    (weights,) = image_weights(4, 12)
    found = TASK.resampled(records, CLASSES, SETTINGS, iter([weights[:5], weights[5:]]))
    for r, of_image in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(4), of_image)
        expected = [theirs(of_seed, natives, rows) for of_seed in seeds]
        for name, values in found.items():
            assert values[r] == pytest.approx(np.mean([e[name] for e in expected]), nan_ok=True), name


def test_the_loss_is_the_mean_over_pixels_that_have_a_class():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, 4, generator=generator, requires_grad=True)
    maps = torch.randint(0, 5, (3, 8, 8), generator=generator, dtype=torch.uint8)
    maps[0, :3], maps[2] = 255, 255
    found = TASK.loss(logits, TargetBatch(maps), SETTINGS)
    big = F.interpolate(logits, size=(8, 8), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(big, maps.long(), ignore_index=255)
    assert found.mean().item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.counts.tolist() == [40, 64, 0]
    assert found.sums[2] == 0
    wide = TargetBatch(maps.to(torch.int32).where(maps != 255, 65_535).to(torch.uint16))
    assert TASK.loss(logits, wide, SETTINGS).mean() == found.mean()


def test_255_is_no_class_while_there_are_255():
    maps = torch.tensor([[[254, 255], [255, 255]]], dtype=torch.uint8)
    logits = torch.zeros(1, 255, 2, 2)
    assert TASK.loss(logits, TargetBatch(maps), SETTINGS).counts.tolist() == [1]
    (record,) = TASK.records(logits, [NativeTarget("mask", 2, 2, maps[0].numpy())], SETTINGS, 255)
    assert record.labelled.sum() == 1


def test_masks_of_an_evaluation_size_are_the_nearest_pixels():
    mask = np.arange(30, dtype=np.uint8).reshape(5, 6) % 5
    logits = torch.randn(1, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    small = F.interpolate(torch.tensor(mask)[None, None], size=(4, 4), mode="nearest-exact")[0, 0].numpy()
    settings = DenseSettings(eval_px=4)
    found = TASK.records(logits, [NativeTarget("mask", 5, 6, mask)], settings, 5)
    expected = TASK.records(logits, [NativeTarget("mask", 4, 4, small)], SETTINGS, 5)
    assert TASK.metrics(found, CLASSES, settings) == TASK.metrics(expected, CLASSES, SETTINGS)


def test_records_stay_small_and_many_classes_fit():
    mask = np.full((50, 40), 65_535, np.uint16)
    mask[:9, :9] = 299
    (record,) = TASK.records(torch.zeros(1, 300, 2, 2), [NativeTarget("mask", 50, 40, mask)], SETTINGS, 300)
    assert {name: part.tolist() for name, part in record._asdict().items()} == {
        "classes": [0, 299],
        "labelled": [0, 81],
        "predicted": [81, 0],
        "right": [0, 0],
    }
    assert TASK.decode(torch.zeros(1, 300, 2, 2), SETTINGS, (3, 5)).dtype == np.uint16

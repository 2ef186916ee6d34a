"""Detection against pycocotools, faster-coco-eval, torchvision and slow loops."""

import contextlib
import io

import faster_coco_eval
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import nms, sigmoid_focal_loss

from loffta.shapes import Boxes, TargetBatch
from loffta.targets import BoxList, DenseSettings, NativeTarget
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.centernet import Found, draw_heat, find_boxes, suppress
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.matching import match

TASK, ANY, BY_CLASS = DENSE_TASKS["detection"], DenseSettings(), DenseSettings(boxes_by_class=True)
CLASSES = ["cat", "dog", "never"]
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def draw_scene(rng, n_true, n_false):
    """Boxes of 5 to 200 pixels, some of them crowds; most are found, if not exactly, and some that are not there."""
    first, sides = rng.uniform(0, 300, (n_true, 2)), np.exp(rng.uniform(np.log(5), np.log(200), (n_true, 2)))
    corners = np.concatenate([first, first + sides], axis=1)
    true = BoxList(corners, rng.integers(0, 2, n_true), rng.random(n_true) < 0.2)
    sources = rng.permutation(np.repeat(np.arange(n_true), 2))[: int(1.4 * n_true)]
    noise = rng.normal(0, 0.06, (len(sources), 4)) * np.tile(sides[sources], 2)
    beside = rng.uniform(0, 200, (n_false, 2))
    beside = np.concatenate([beside, beside + rng.uniform(3, 150, (n_false, 2))], axis=1)
    found = np.concatenate([corners[sources] + noise, beside])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    scores = np.sort(rng.random(len(found)))[::-1]
    classes = np.concatenate([true.classes[sources], rng.integers(0, 2, n_false)])
    order = rng.permutation(len(found))
    return Found(found[order], scores.copy(), classes[order]), true


def draw_scenes(n_images=6, seed=0):
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, n_true, 8) for n_true in rng.integers(3, 12, n_images)]
    return [*scenes, draw_scene(rng, 0, 3), (Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)), scenes[0][1])]


def described(scenes):
    """The scenes as COCO writes them."""
    true, found = [], []
    for image, (boxes, truth) in enumerate(scenes, start=1):
        for corners, c, crowd in zip(truth.corners, truth.classes, truth.crowd, strict=True):
            box = [*corners[:2], *(corners[2:] - corners[:2])]
            entry = {"image_id": image, "category_id": int(c) + 1, "bbox": [float(x) for x in box]}
            true.append(entry | {"id": len(true) + 1, "area": float(box[2] * box[3]), "iscrowd": int(crowd)})
        for corners, score, c in zip(*boxes, strict=True):
            box = [*corners[:2], *(corners[2:] - corners[:2])]
            entry = {"image_id": image, "category_id": int(c) + 1, "bbox": [float(x) for x in box]}
            found.append(entry | {"score": float(score)})
    images = [{"id": i + 1, "width": 500, "height": 500} for i in range(len(scenes))]
    return {
        "images": images,
        "annotations": true,
        "categories": [{"id": i + 1, "name": str(i)} for i in range(3)],
    }, found


def theirs(scenes, by_class, library="pycocotools"):
    truth, found = described(scenes)
    with contextlib.redirect_stdout(io.StringIO()):
        if library == "pycocotools":
            coco = COCO()
            coco.dataset = truth
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        else:
            coco = faster_coco_eval.COCO(truth)
            evaluation = faster_coco_eval.COCOeval_faster(coco, coco.loadRes(found), "bbox")
        evaluation.params.useCats = int(by_class)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: value for name, value in zip(NAMES, evaluation.stats, strict=False) if value >= 0}


def ours(scenes, settings):
    return [
        match(
            found if settings.boxes_by_class else found._replace(classes=0 * found.classes),
            true,
            by_class=settings.boxes_by_class,
        )
        for found, true in scenes
    ]


@pytest.mark.parametrize("settings", [ANY, BY_CLASS])
@pytest.mark.parametrize("library", ["pycocotools", "faster-coco-eval"])
def test_metrics_are_cocos(settings, library):
    scenes = draw_scenes()
    found = TASK.metrics(ours(scenes, settings), CLASSES, settings)
    assert set(found) == set(NAMES)
    assert 0.1 < found["ap"] < 0.9
    assert found == pytest.approx(theirs(scenes, settings.boxes_by_class, library), abs=1e-12)


@pytest.mark.parametrize("settings", [ANY, BY_CLASS])
def test_resamples_are_those_of_images_drawn(settings):
    scenes = draw_scenes(4)
    records = ours(scenes, settings)
    (weights,) = image_weights(len(scenes), 4)
    found = TASK.resampled([records, records], CLASSES, settings, iter([weights[:3], weights[3:]]))
    for r, of_image in enumerate(weights.astype(int)):
        drawn = [scenes[i] for i in np.repeat(np.arange(len(scenes)), of_image)]
        expected = theirs(drawn, settings.boxes_by_class)
        values = {name: of_metric[r] for name, of_metric in found.items() if not np.isnan(of_metric[r])}
        assert values == pytest.approx(expected, abs=1e-12), r


def test_a_box_is_an_objects_before_it_is_a_crowds():
    """Though it overlaps the crowd more."""
    true = BoxList(np.array([[0.0, 0, 100, 100], [0, 0, 300, 300]]), np.zeros(2, int), np.array([False, True]))
    scenes = [(Found(np.array([[0.0, 0, 100, 80], [9, 9, 50, 50]]), np.array([0.9, 0.8]), np.zeros(2, int)), true)]
    assert theirs(scenes, False)["ap50"] == pytest.approx(1)
    assert TASK.metrics(ours(scenes, ANY), CLASSES, ANY) == pytest.approx(theirs(scenes, False), abs=1e-12)


def test_what_no_image_has_is_left_out():
    scenes = [(found, BoxList(true.corners * 0 + [0, 0, 9, 9], true.classes, true.crowd & False))
              for found, true in draw_scenes(2)[:2]]  # fmt: skip
    records = ours(scenes, ANY)
    assert set(TASK.metrics(records, CLASSES, ANY)) == {"ap", "ap50", "ap75", "ap_small"}
    expected = {f"ap_{size}": f"left out: there is no {size} object" for size in ("medium", "large")}
    assert TASK.notes(records, CLASSES, ANY) == expected
    nothing = ours([draw_scene(np.random.default_rng(0), 0, 3)], ANY)
    assert TASK.metrics(nothing, CLASSES, ANY) == {}
    assert TASK.notes(nothing, CLASSES, ANY)["ap50"] == "left out: there is no object"
    assert TASK.details([nothing], CLASSES, ANY)["objects"] == dict.fromkeys(("all", "small", "medium", "large"), 0)


def test_details_hold_the_curve_and_every_class():
    scenes = draw_scenes()
    records = ours(scenes, BY_CLASS)
    found = TASK.details([records], CLASSES, BY_CLASS)
    assert found["objects"]["all"] == sum((~true.crowd).sum() for _, true in scenes)
    aps = [entry["ap"] for entry in found["per_class"]]
    assert aps[2] is None
    metrics = TASK.metrics(records, CLASSES, BY_CLASS)
    assert np.mean(aps[:2]) == pytest.approx(metrics["ap"])
    assert np.mean(found["precision"]["by_overlap"]["0.50"]) == pytest.approx(metrics["ap50"])
    assert np.mean(found["precision"]["by_overlap"]["0.75"]) == pytest.approx(metrics["ap75"])
    assert len(found["precision"]["recall"]) == 101


def test_suppression_is_torchvisions():
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 1, (200, 2))
    corners = np.concatenate([first, first + rng.uniform(0.05, 0.5, (200, 2))], axis=1)
    expected = nms(torch.tensor(corners), torch.arange(200, 0, -1).double(), 0.5)
    assert suppress(corners, np.zeros(200, int)).tolist() == expected.tolist()
    classes = rng.integers(0, 2, 200)
    apart = nms(torch.tensor(corners + 9.0 * classes[:, None]), torch.arange(200, 0, -1).double(), 0.5)
    assert suppress(corners, classes).tolist() == apart.tolist()


def draw_boxes():
    """Of three images: two that share a pixel, one without area, one of a pixel; the last image has none."""
    corners = [
        [0.1, 0.2, 0.5, 0.8],
        [0.12, 0.22, 0.5, 0.82],
        [0.4, 0.4, 0.4, 0.9],
        [0.5, 0.5, 0.53, 0.53],
        [0, 0, 1, 1],
    ]
    image, classes = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 0, 1, 0, 1, 0])
    return Boxes(image, torch.tensor(corners), torch.tensor([1, 2, 3, 4, 5])), classes


def slow_heat(boxes, classes, n_maps, side):
    heat = np.zeros((3, n_maps, side, side))
    for image, (left, top, right, bottom), c in zip(boxes.image, boxes.corners.tolist(), classes, strict=True):
        share = (right - left) * (bottom - top)
        if share <= 0:
            continue
        row, column = int(side * (top + bottom) / 2), int(side * (left + right) / 2)
        deviation = 0.12 * share**0.5 * (224 / side) * side
        for y in range(side):
            for x in range(side):
                value = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * deviation**2))
                heat[image, c, y, x] = max(heat[image, c, y, x], value)
    return heat


@pytest.mark.parametrize("settings", [ANY, BY_CLASS])
def test_the_loss_is_torchvisions_focal_and_the_sizes_error(settings):
    boxes, classes = draw_boxes()
    n_maps = 2 if settings.boxes_by_class else 1
    outputs = torch.randn(3, n_maps + 2, 32, 32, generator=torch.Generator().manual_seed(0))
    of_box = classes[boxes.number] if n_maps == 2 else torch.zeros(5, dtype=torch.int64)
    heat = torch.tensor(slow_heat(boxes, of_box, n_maps, 32)).float()
    expected = sigmoid_focal_loss(outputs[:, :n_maps], heat, reduction="mean").item()
    errors = []
    for image, (left, top, right, bottom) in zip(boxes.image, boxes.corners.tolist(), strict=True):
        if right > left and bottom > top:
            wide, high = outputs[image, n_maps:, int(32 * (top + bottom) / 2), int(32 * (left + right) / 2)]
            errors += [abs(wide.item() - (right - left)), abs(high.item() - (bottom - top))]
    found = TASK.loss(outputs, TargetBatch(boxes=boxes, box_classes=classes), settings)
    assert found.mean().item() == pytest.approx(expected + np.mean(errors), rel=1e-5)
    assert found.counts.tolist() == [n_maps * 32 * 32] * 3


def test_the_heat_that_boxes_draw_is_read_as_the_boxes():
    corners = torch.tensor([[0.1, 0.2, 0.3, 0.5], [0.6, 0.5, 0.9, 0.95], [0.0, 0.7, 0.2, 1.0]])
    boxes = Boxes(torch.tensor([0, 0, 1]), corners, torch.arange(3))
    classes = torch.tensor([0, 1, 1])
    heat = draw_heat(torch.zeros(3, 2, 128, 128), boxes, classes)
    outputs = torch.cat([torch.logit(0.98 * heat + 0.005), torch.zeros(3, 2, 128, 128)], dim=1)
    for image, (left, top, right, bottom) in zip(boxes.image, corners, strict=True):
        row, column = int(128 * (top + bottom) / 2), int(128 * (left + right) / 2)
        outputs[image, 2:, row, column] = torch.stack([right - left, bottom - top])
    found = find_boxes(outputs)
    assert [len(of_image.scores) for of_image in found] == [2, 1, 0]
    order = found[0].corners[:, 0].argsort()
    assert found[0].corners[order] == pytest.approx(corners[:2].numpy(), abs=0.5 / 128)
    assert found[0].classes[order].tolist() == [0, 1]
    assert found[1].corners[0] == pytest.approx([0, 0.7, 0.2, 1], abs=0.5 / 128)
    assert found[1].scores == pytest.approx([0.985], abs=1e-6)
    (in_pixels, *_) = TASK.decode(outputs, ANY, (100, 50))
    assert in_pixels.corners == pytest.approx(found[0].corners * [50, 100, 50, 100])
    truth = BoxList(in_pixels.corners.copy(), np.zeros(2, int), np.zeros(2, bool))
    single = torch.cat([outputs[:1, :2].amax(1, keepdim=True), outputs[:1, 2:]], dim=1)
    records = TASK.records(single, [NativeTarget("boxes", 100, 50, boxes=truth)], ANY, 2)
    assert TASK.metrics(records, CLASSES, ANY)["ap"] == pytest.approx(1)


@pytest.mark.parametrize(("score", "n_found"), [(0.009, 0), (0.011, 1)])
def test_peaks_score_above_a_hundredth(score, n_found):
    outputs = torch.full((1, 3, 8, 8), -9.0)
    outputs[0, 0, 4, 4], outputs[0, 1:] = torch.tensor(score).logit(), 0.5
    assert (len(find_boxes(outputs)[0].scores) > 0) == n_found


def test_outputs_without_any_peak_find_nothing():
    for value in (-20.0, torch.nan):
        found = find_boxes(torch.full((1, 3, 8, 8), value))
        assert [part.shape for part in found[0]] == [(0, 4), (0,), (0,)]

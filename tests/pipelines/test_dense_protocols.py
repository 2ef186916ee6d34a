"""Each dense pipeline's resize, ignored pixels and metric against slow plain versions, on its own recipe and image set.

What is right is read from the files of the stand-in, or known from how it was drawn; outputs are
random, with some signal in them.
"""

import contextlib
import csv
import io

import numpy as np
import pytest
import torch
from loffta_pipelines import standin, standin_dense
from loffta_pipelines.standin_dense import IMAGES, NYU_SIZE, SIZE, scene
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import maximum_filter
from skimage.segmentation import find_boundaries
from sklearn.metrics import adjusted_rand_score, jaccard_score

from loffta.heads import HEADS
from loffta.images.sources import open_source
from loffta.images.targets import decode_target
from loffta.pipeline.file import read_pipeline
from loffta.tasks.dense import DENSE_TASKS
from tests.cli.test_run import DENSE_FILES, HERE

N_TRAIN, N_TEST = IMAGES["train"], IMAGES["val"]
TEST = range(N_TRAIN + 1, N_TRAIN + N_TEST + 1)  # numbers of the scenes that are tested on


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The stand-ins of all files."""
    root = tmp_path_factory.mktemp("data")
    for source in {task.source for file in DENSE_FILES for task in read_pipeline(HERE / file).tasks}:
        standin.write(source, root)
    return root


def larger(maps, size):
    """[K, h, w] to a size, bilinearly between the centres of pixels: one weight after the other."""
    return weights(maps.shape[1], size[0]) @ maps @ weights(maps.shape[2], size[1]).T


def weights(n, n_new):
    found = np.zeros((n_new, n))
    for i in range(n_new):
        place = max(0.0, (i + 0.5) * n / n_new - 0.5)
        first = min(int(place), n - 1)
        found[i, first] += 1 - (place - first)
        found[i, min(first + 1, n - 1)] += place - first
    return found


def nearest(label, px):
    """A square of that side, each pixel the one that its centre lies in."""
    height, width = label.shape
    rows = [int((i + 0.5) * height / px) for i in range(px)]
    columns = [int((i + 0.5) * width / px) for i in range(px)]
    return np.array([[label[y, x] for x in columns] for y in rows])


def masks(kind, data):
    """What the annotators said: 255 counts nowhere."""
    if kind == "table":
        with (data / "ade20k" / "images.csv").open() as file:
            return [
                np.asarray(Image.open(data / "ade20k" / row["mask"]))
                for row in csv.DictReader(file)
                if row["split"] == "val"
            ]
    if kind == "voc":
        folder = data / "VOCdevkit" / "VOC2012" / "SegmentationClass"
        found = [np.asarray(Image.open(folder / f"2007_{i:06d}.png")) for i in TEST]
        assert all((mask == 255).any() for mask in found)
        return found
    return [np.where((c := scene(i).classes) == 0, standin_dense.STUFF, c.astype(int) - 1) for i in TEST]


def check_segmentation(settings, kind, data, n_classes, rng):
    labels = masks(kind, data)
    outputs = [rng.normal(size=(n_classes, 9, 9)) for _ in labels]
    for label, output in zip(labels, outputs, strict=True):  # some pixels are right
        for y, x in np.ndindex(9, 9):
            true = label[int((y + 0.5) * label.shape[0] / 9), int((x + 0.5) * label.shape[1] / 9)]
            output[true % n_classes, y, x] += 4
    shown = [label if settings.eval_px is None else nearest(label, settings.eval_px) for label in labels]
    told = np.concatenate([larger(o, s.shape).argmax(0).ravel() for o, s in zip(outputs, shown, strict=True)])
    true = np.concatenate([label.ravel() for label in shown])
    valid = true != 255
    return outputs, {"miou": jaccard_score(true[valid], told[valid], average="macro")}


def check_depth(settings, kind, data, n_classes, rng):
    n_outputs = settings.depth_bins if settings.depth_as == "bins" else 1
    outputs = [rng.normal(3, 2, (n_outputs, 6, 8)) for _ in TEST]
    for output in outputs if n_outputs > 1 else ():  # each cell means a depth of its own
        np.put_along_axis(output, rng.integers(0, n_outputs, (1, 6, 8)), 2000, axis=0)
    errors = []
    for output, number in zip(outputs, TEST, strict=True):
        metres = output.clip(0) + 0.001
        if settings.depth_as == "bins":
            share = output.clip(0) + 0.1
            metres = np.tensordot(np.linspace(0.001, 10, n_outputs), share / share.sum(0), 1)[None]
        truth = scene(number, NYU_SIZE).depth
        inside = np.zeros(NYU_SIZE, bool)
        inside[45:471, 41:601] = True
        valid = inside & (truth > 0.001) & (truth < 10)
        errors.append((larger(metres, NYU_SIZE)[0].clip(0.001, 10) - truth)[valid])
    return outputs, {
        "rmse_pooled": np.sqrt(np.mean(np.concatenate(errors) ** 2)),
        "rmse_image": np.mean([np.sqrt(np.mean(error**2)) for error in errors]),
    }


def crowd(shape):
    """The four pixels of every image of COCO's stand-in that are a crowd."""
    found = np.zeros(shape, bool)
    found[:4, 0] = True
    return found


def check_boundaries(settings, kind, data, n_classes, rng):
    outputs = [rng.normal(-1, size=(1, 20, 20)) for _ in TEST]
    true, told = [], []
    for output, number in zip(outputs, TEST, strict=True):
        objects = scene(number).objects
        counted = ~crowd(SIZE) | (objects > 0)
        border = maximum_filter(find_boundaries(objects, mode="thick"), (SIZE[0] // 100, SIZE[1] // 100))
        true.append(border[counted])
        told.append((1 / (1 + np.exp(-larger(output, SIZE)[0])) >= 0.5)[counted])
    return outputs, {"boundary_iou": jaccard_score(np.concatenate(true), np.concatenate(told))}


def check_detection(settings, kind, data, n_classes, rng):
    """Peaks that stand alone, of boxes that are somewhat off: pycocotools says what they are worth."""
    outputs, boxes = [], []
    for number in TEST:
        output = np.zeros((3, 33, 33))
        output[0] = -9
        for left, top, right, bottom, _ in scene(number).boxes:
            x, y = int((left + right) / 2 / SIZE[1] * 33), int((top + bottom) / 2 / SIZE[0] * 33)
            score = rng.normal()
            sides = (np.array([right - left, bottom - top]) + rng.normal(0, 15, 2)) / SIZE[::-1]
            output[:, y, x] = [score, *sides]
            centre = (np.array([x, y]) + 0.5) / 33
            corners = np.array([*(centre - sides / 2), *(centre + sides / 2)]).clip(0, 1) * [*SIZE[::-1], *SIZE[::-1]]
            boxes.append((number, score, corners))
        outputs.append(output)
    coco = COCO(str(data / "coco" / "annotations" / "instances_val2017.json"))
    for annotation in coco.anns.values():
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    found = [
        {"image_id": n, "category_id": 1, "score": 1 / (1 + np.exp(-s)), "bbox": [*c[:2], *(c[2:] - c[:2])]}
        for n, s, c in boxes
    ]
    evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
    evaluation.params.useCats = 0
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return outputs, {"ap": evaluation.stats[0], "ap_large": evaluation.stats[5]}


def check_instances(settings, kind, data, n_classes, rng):
    """Pixels that lie in three heaps, so that any k-means finds these: heaps are compared with objects."""
    outputs, scores = [], []
    heaps = rng.normal(size=(3, settings.embedding_dim)) * 20
    for number in TEST:
        label = nearest(scene(number).objects, 112)
        heap = np.where(rng.random(label.shape) < 0.8, label.clip(1) - 1, rng.integers(0, 3, label.shape))
        outputs.append(heaps[heap].transpose(2, 0, 1) + rng.normal(0, 0.1, (settings.embedding_dim, 112, 112)))
        inside = label > 0
        scores.append(adjusted_rand_score(label[inside], heap[inside]))
    return outputs, {"ari": np.mean(scores)}


CHECKS = {
    "segmentation": check_segmentation,
    "depth": check_depth,
    "boundaries": check_boundaries,
    "detection": check_detection,
    "instances": check_instances,
}


def protocols():
    """(file, run, image set) of every number that a dense pipeline gives, ablations and rivals aside."""
    for file in DENSE_FILES:
        config = read_pipeline(HERE / file)
        for run in config.train:
            if run not in config.optional:
                yield from (pytest.param(file, run, task, id=f"{file}-{run}-{task.name}") for task in config.tasks)


@pytest.mark.parametrize(("file", "run", "task"), list(protocols()))
def test_a_protocol_measures_what_a_slow_reference_does(file, run, task, data):
    config = read_pipeline(HERE / file)
    values, (cache,) = config.train[run], config.extract.values()
    (kind,) = cache["targets"]
    name = values.get("task") or next(n for n, t in DENSE_TASKS.items() if t.target == kind)
    settings = HEADS[values["head"]].recipe(**values.get("recipe", {})).settings()
    source = open_source(task.source.replace("{data}", str(data)))
    table = source.listing()
    classes = table.target_classes.get(kind, ())
    natives = [
        decode_target(
            kind, source.read(table.target(kind, row)), classes=classes, size=picture_size(source, table.keys[row])
        )
        for row in table.rows_of(task.test_on or "test").tolist()
    ]
    n_classes = len(classes) if kind != "mask" or classes else max(int(native.map.max()) for native in natives) + 1
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        kind_of_source, rng = task.source.partition(":")[0], np.random.default_rng(0)
        outputs, expected = CHECKS[name](settings, kind_of_source, data, n_classes, rng)
    assert task.metric in expected
    asked = DENSE_TASKS[name]
    records = [
        asked.records(torch.tensor(output, dtype=torch.float32)[None], [native], settings, n_classes)[0]
        for output, native in zip(outputs, natives, strict=True)
    ]
    found = asked.metrics(records, [str(i) for i in range(n_classes)], settings)
    close = 1e-5 if kind == "depth" else 1e-3  # a pixel may be another's where two classes are as good
    assert {metric: found[metric] for metric in expected} == pytest.approx(expected, rel=close)
    assert 0.02 < expected[task.metric] < (9 if "rmse" in task.metric else 0.98)


def picture_size(source, key):
    width, height = Image.open(io.BytesIO(source.read(key))).size
    return height, width

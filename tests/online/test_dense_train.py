"""`train --online` of dense heads: what the cached training gives, and targets that are cut as their images are."""

import json
from dataclasses import replace

import numpy as np
import pytest

from loffta.crop import Windows
from loffta.door.run import load_run
from loffta.errors import LofftaError, TooManyBadImages, UsageError
from loffta.heads.dense_linear import DenseLinearRecipe
from loffta.images.geometry import View, view_box
from loffta.online.dense_evaluate import evaluate_dense_online
from loffta.online.dense_learning import fresh_targets
from loffta.online.feed import OnlineImages
from loffta.online.network import network_for
from loffta.runs.run import RunPaths
from tests.fakes import CLASSES, DenseSource, FakeBackbone, picture
from tests.online.denseruns import PX, SHORT, N, Pictures, dense_cache, dense_run
from tests.online.runs import CPU, TRAIN, assert_same_weights, config_of, loader, log_of, run

TASKS = ("segmentation", "depth", "boundaries", "detection")


def online_config(task, *, head="dense-linear", taps="last", more=None, recipe=None, **online):
    return config_of(head, taps=taps, recipe=SHORT | (recipe or {}), more={"task": task} | (more or {}), **online)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    kinds = tuple(CLASSES)
    return dense_cache(tmp_path_factory.mktemp("cache") / "cache", kinds, {"mask/0003.png": None}, dtype="float32")


@pytest.mark.parametrize("task", TASKS)
def test_on_whole_images_it_is_the_cached_training(cache, tmp_path, task):
    """float32 features, no crops: the same heads in every bit, and figures that differ by nothing but batches."""
    dense_run(cache, tmp_path / "cached", task)
    found = run(online_config(task, augment="none"), tmp_path / "online", Pictures(N, {"mask/0003.png": None}))
    assert_same_weights(tmp_path / "cached", tmp_path / "online", 0)
    assert log_of(tmp_path / "cached") == log_of(tmp_path / "online")
    expected = json.loads(RunPaths(tmp_path / "cached").results("test").read_text())
    assert found["dense"] == expected["dense"]
    for name, metric in expected["metrics"].items():
        np.testing.assert_allclose(found["metrics"][name]["per_seed"], metric["per_seed"], atol=1e-5, err_msg=name)
    assert found["features"] == expected["features"]
    assert found["online"]["augment"] == "none"
    assert found["train_seconds"] > 0


def images_of(task, source):
    listing, config = source.listing(), online_config(task)
    network = network_for(FakeBackbone(), config.online, ("grid",), "last")
    targets = fresh_targets(task, source, listing, DenseLinearRecipe.model_validate(config.recipe))
    return OnlineImages(source, listing, network, config.online, CPU, targets)


def seen(box, place, side):
    """Where the centre of a pixel of the square lies in the image, along one axis."""
    start, end, mirrored = box
    at = start + (place + 0.5) * (end - start) / side
    return end - (at - start) if mirrored else at


def test_masks_and_boxes_are_cut_and_mirrored_as_their_images(tmp_path):
    """Pixel by pixel, and corner by corner, by the crop that the format defines."""
    view, mirrored = View(5, 2), 0
    (masks,) = images_of("segmentation", Pictures(N)).batches(TRAIN.tolist(), N, view)
    (boxes,) = images_of("detection", Pictures(N)).batches(TRAIN.tolist(), N, view)
    assert masks.rows.tolist() == boxes.rows.tolist() == TRAIN.tolist()
    for place, row in enumerate(TRAIN.tolist()):
        height, width = picture(row).shape[:2]
        box = view_box(view, f"{row:04d}.png", width, height)
        mirrored += box.mirrored
        native = Pictures(N).target("mask", row).map
        for y in range(PX):
            for x in range(PX):
                column = seen((box.left, box.right, box.mirrored), x, PX)
                line = seen((box.top, box.bottom, False), y, PX)
                columns = {min(int(column + e), width - 1) for e in (-1e-9, 1e-9)}  # on an edge either will do
                assert int(masks.targets.maps[place, y, x]) in {native[int(line + 1e-9), c] for c in columns}
        expected = []
        objects = Pictures(N).target("boxes", row).boxes
        for corners, number, crowd in zip(objects.corners, objects.classes, objects.crowd, strict=True):
            across = np.clip((corners[[0, 2]] - box.left) / (box.right - box.left), 0, 1)
            down = np.clip((corners[[1, 3]] - box.top) / (box.bottom - box.top), 0, 1)
            across = 1 - across[::-1] if box.mirrored else across
            if across[1] - across[0] > 1e-4 and down[1] - down[0] > 1e-4 and not crowd:
                expected.append([across[0], down[0], across[1], down[1], number])
        of = boxes.targets.boxes.image == place
        found = np.column_stack([boxes.targets.boxes.corners[of], boxes.targets.box_classes[of]])
        np.testing.assert_allclose(found, np.array(expected).reshape(-1, 5), atol=1e-6)
    assert 0 < mirrored < len(TRAIN)


def test_images_without_a_target_are_left_out_and_bad_ones_counted(tmp_path):
    broken = {"mask/0001.png": None, "mask/0002.png": b"no PNG", 3: b"no image", "mask/0004.png": b"?"}
    source = Pictures(N, broken)
    with pytest.raises(TooManyBadImages, match=r"2 of 14 images(.|\n)*0002.png: its target: not a PNG"):
        run(online_config("segmentation"), tmp_path / "strict", source)
    found = run(online_config("segmentation", max_bad_frac=0.5), tmp_path / "run", source)
    assert found["images"] == {"used": 4, "bad": 0, "unlabelled": 1}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "without a target 'mask': 1, left out" in log
    nothing = dict.fromkeys((f"mask/{i:04d}.png" for i in TRAIN), None)
    with pytest.raises(LofftaError, match="no image of split 'train' has a target 'mask'"):
        run(online_config("segmentation"), tmp_path / "none", Pictures(N, nothing))
    useless = dict.fromkeys((f"mask/{i:04d}.png" for i in TRAIN), b"?")
    with pytest.raises(LofftaError, match="none of 15 images can be used"):
        run(online_config("segmentation", max_bad_frac=1.0), tmp_path / "bad", Pictures(N, useless))


def test_the_run_predicts_and_is_measured_as_one_of_a_cache(tmp_path):
    """On images alone; crops, and features moved behind them, make another head than whole images do."""
    config = online_config("segmentation", seeds=2, more={"augment": {"hflip_p": 0.5}, "holdout": 0.2})
    found = run(config, tmp_path / "run", Pictures(N))
    assert RunPaths(tmp_path / "run").results("holdout").exists()
    opened = load_run(tmp_path / "run", device="cpu")
    opened._load = loader()
    masks = opened.predict([picture(i) for i in range(0, N, 4)]).found
    labels = [Pictures(N).target("mask", i).map for i in range(0, N, 4)]
    assert [mask.shape for mask in masks] == [label.shape for label in labels]
    (same,) = evaluate_dense_online([tmp_path / "run"], Pictures(N), "test", loader(), device=CPU)
    assert same["metrics"] == found["metrics"]
    assert same["online"] == found["online"]
    how = {"device": CPU, "windows": Windows(16, 8)}
    (slid,) = evaluate_dense_online([tmp_path / "run"], Pictures(N), "test", loader(), **how)
    assert slid["metrics"] != found["metrics"]


class Nameless(Pictures):
    def listing(self):
        return replace(super().listing(), target_classes={})


@pytest.mark.parametrize(
    ("config", "source", "message"),
    [
        (online_config("instances"), Pictures(N), "has to know all objects before the first step"),
        (online_config("segmentation", head="featup"), Pictures(N), "guided by the thumbnails"),
        (online_config("segmentation", head="dense-knn", recipe={}), Pictures(N), "remembers images"),
        (online_config("segmentation", more={"search": True}), Pictures(N), "scores dense heads on stored features"),
        (online_config("segmentation", unfrozen=True), Pictures(N), "trained on a frozen backbone"),
        (online_config("segmentation"), Nameless(N), "does not say which classes there are"),
        (online_config("auto"), Pictures(N), "the image set has targets for segmentation"),
        (online_config("depth"), DenseSource(N, kinds=("mask",)), "image set does not have the targets of depth"),
        (online_config("segmentation", more={"test_on": "val"}), Pictures(N), "unknown split 'val'|no split"),
    ],
)
def test_what_needs_a_cache_is_refused(config, source, message, tmp_path):
    config = config.model_copy(update={"recipe": {}}) if config.head in ("featup", "dense-knn") else config
    with pytest.raises(UsageError, match=message):
        run(config, tmp_path / "run", source)
    assert not (tmp_path / "run").exists()

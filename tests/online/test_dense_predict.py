"""The files of predict for dense runs: pixel for pixel what the head says of the cached features, and nothing else."""

import io
import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from loffta.crop import Windows
from loffta.door.run import load_run
from loffta.drawing import class_colours
from loffta.errors import LofftaError, TooManyBadImages, UsageError
from loffta.images.targets import decode_target
from loffta.online.dense_predict import predict_dense
from loffta.online.maps_files import depth_step, map_bytes
from loffta.online.opened_dense import open_dense
from loffta.online.stream import FreshStream
from loffta.runs.run import RunPaths
from loffta.store.reader import ArrayReader
from loffta.targets import DenseSettings
from tests.fakes import DenseSource, picture
from tests.online.denseruns import PX, N, dense_cache, dense_run
from tests.online.runs import CPU, loader


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return dense_cache(tmp_path_factory.mktemp("cache") / "cache", ("mask", "depth", "instances", "boxes"))


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    made = {task: dense_run(cache, root / task, task) for task in ("depth", "boundaries", "instances")}
    made["detection"] = dense_run(cache, root / "detection", "detection", boxes_by_class=True)
    made["segmentation"] = dense_run(cache, root / "segmentation", seeds=2)
    return made


def told(run, out, source=None, **options):
    options = {"device": CPU, "batch_size": 8} | options
    return predict_dense(run, source or DenseSource(N), out, options.pop("load", loader()), **options)


def cached_outputs(cache, run):
    """The mean over the seeds' heads of what they give on the cached features, one image at a time."""
    run = open_dense(run, CPU)
    (feature,) = run.origins.features
    (array,) = [a for a in cache.stores()[0].arrays if set(feature.spec.taps) <= set(a.taps)]
    places = [array.taps.index(tap) for tap in feature.spec.taps]
    cells = torch.from_numpy(ArrayReader(array.paths).read(np.arange(N))[:, places])
    with torch.no_grad():
        return [
            torch.stack([head(head.prepare([cells[i : i + 1]]))[0].float() for head in run.heads]).mean(dim=0)
            for i in range(N)
        ]


def test_a_guided_head_sees_the_thumbnails_of_its_cache(tmp_path, monkeypatch):
    """Thumbnails of another side than the network's images, with a look of the cache's own."""
    monkeypatch.setattr("loffta.extraction.begin.MAX_THUMB_PX", 12)
    cache = dense_cache(tmp_path / "cache", background="#102030", range="0..200")
    assert cache.thumb_px != PX
    run = dense_run(cache, tmp_path / "run", head="featup", epochs=1)
    opened, images = load_run(run, device="cpu"), [picture(i) for i in range(N)]
    opened._load, head = loader(), opened.head()
    (taps,) = (spec.taps for spec in opened.specs if spec.kind == "grid")
    (grid,) = (array for array in cache.stores()[0].arrays if array.taps == taps)
    grids, thumbs = (torch.from_numpy(ArrayReader(a.paths).read(np.arange(N))) for a in (grid, cache.thumbs()))
    head.classify.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    opened._run.heads[0].load_state_dict(head.state_dict())
    with torch.no_grad():
        expected = head(head.prepare([grids, thumbs[:, None]]))
        other = head(head.prepare([grids, thumbs.flip(0)[:, None]]))
    assert (expected - other).abs().max() > 1e-2, "the thumbnail counts"
    assert [spec.kind for spec in opened.specs] == ["grid", "thumb"]
    stream = FreshStream(
        opened._run.origins.inputs, source := DenseSource(N), source.listing(), range(N), load=loader(), device=CPU
    )
    (batch,) = stream
    assert torch.equal(batch.features[1][:, 0], thumbs)
    ((_, outputs),) = opened._run.mean_outputs(batch.features, source.listing().keys)
    np.testing.assert_allclose(outputs.numpy(), expected.numpy(), atol=1e-5)
    for i, found in enumerate(opened.predict(images).found):
        logits = enlarged(expected[i], picture(i).shape[:2])
        clear = np.sort(logits, axis=0)[-1] - np.sort(logits, axis=0)[-2] > 1e-4
        np.testing.assert_array_equal(found[clear], logits.argmax(axis=0)[clear])
    assert told(run, tmp_path / "out").bad == 0
    with pytest.raises(UsageError, match=r"there are none of windows(.|\n)*--windows 16/16"):
        told(run, tmp_path / "slid", windows=Windows(16, 16))
    origins = RunPaths(run).stores
    document = json.loads(origins.read_text())
    assert document["thumbs"] == {"px": cache.thumb_px, "background": "#102030", "range": "0..200"}
    origins.write_text(json.dumps({name: of for name, of in document.items() if name != "thumbs"}))
    with pytest.raises(LofftaError, match=r"does not say of what size(.|\n)*evaluate RUN --cache(.|\n)*train again"):
        told(run, tmp_path / "old")


def enlarged(outputs, size):
    return F.interpolate(outputs[None], size, mode="bilinear", align_corners=False)[0].numpy()


def opened(path):
    """A picture whose file is closed."""
    return Image.open(io.BytesIO(path.read_bytes()))


def test_masks_are_the_classes_of_the_cached_features(cache, runs, tmp_path):
    done = told(runs["segmentation"], tmp_path / "out", overlay=True)
    assert (done.images, done.bad, done.task, done.classes) == (N, 0, "segmentation", ["sky", "dog", "cat"])
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()
    assert table["key"] == DenseSource(N).listing().keys
    for i, outputs in enumerate(cached_outputs(cache, runs["segmentation"])):
        size = picture(i).shape[:2]
        assert (table["height"][i], table["width"][i]) == size
        data = (tmp_path / "out" / table["map"][i]).read_bytes()
        image = Image.open(io.BytesIO(data))
        logits = np.sort(enlarged(outputs, size), axis=0)
        clear = logits[-1] - logits[-2] > 1e-4  # a batch of another size moves last bits
        expected = enlarged(outputs, size).argmax(axis=0)
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(np.asarray(image)[clear], expected[clear])
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), class_colours(3)[np.asarray(image)])
        again = decode_target("mask", data, classes=("sky", "dog", "cat"), size=size).map
        np.testing.assert_array_equal(again, np.asarray(image))  # loffta's own masks
        shown = np.asarray(opened(tmp_path / "out" / table["overlay"][i])).astype(int)
        blended = (picture(i).astype(int) + class_colours(3)[np.asarray(image)]) / 2
        assert abs(shown.mean(axis=(0, 1)) - blended.mean(axis=(0, 1))).max() < 6  # a JPEG of noise
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert [one["class"] for one in about["classes"]] == ["sky", "dog", "cat"]


def test_depth_is_in_millimetres_that_targets_take_or_in_metres_as_npy(cache, runs, tmp_path):
    done = told(runs["depth"], tmp_path / "png")
    assert done.means == {"unit": "metres", "step": 0.001, "unknown": 0}
    told(runs["depth"], tmp_path / "npy", maps="npy")
    for i, outputs in enumerate(cached_outputs(cache, runs["depth"])):
        size = picture(i).shape[:2]
        expected = enlarged(outputs.relu() + 1e-3, size)[0].clip(1e-3, 10)
        metres = np.load(tmp_path / "npy" / "maps" / f"{i:04d}.png.npy")
        np.testing.assert_allclose(metres, expected, atol=1e-5)
        data = (tmp_path / "png" / "maps" / f"{i:04d}.png.png").read_bytes()
        image = Image.open(io.BytesIO(data))
        assert image.mode == "I;16"
        assert image.text == {"unit": "metres", "step": "0.001", "unknown": "0"}
        np.testing.assert_allclose(decode_target("depth", data, size=size).map, metres, atol=0.000501)


@pytest.mark.parametrize(("most", "step"), [(10.0, 0.001), (65.535, 0.001), (65.6, 0.01), (80.0, 0.01), (1000.0, 0.1)])
def test_steps_of_depth_reach_the_farthest(most, step):
    settings = DenseSettings(max_depth=most)
    assert depth_step(settings) == pytest.approx(step)
    far = np.array([[most, 0.0, step, np.nan]], np.float32)
    image = np.asarray(Image.open(io.BytesIO(map_bytes("depth", far, "png", settings)))).astype(np.float64)
    np.testing.assert_allclose(image * step, [[most, 0, step, 0]], atol=step / 2 + 1e-6)


def test_borders_are_shares_of_255(cache, runs, tmp_path):
    told(runs["boundaries"], tmp_path / "out")
    for i, outputs in enumerate(cached_outputs(cache, runs["boundaries"])):
        expected = 255 / (1 + np.exp(-enlarged(outputs, picture(i).shape[:2])[0]))
        found = np.asarray(opened(tmp_path / "out" / "maps" / f"{i:04d}.png.png")).astype(float)
        assert abs(found - expected).max() <= 0.51


def test_boxes_are_rows_in_pixels(cache, runs, tmp_path):
    done = told(runs["detection"], tmp_path / "out", overlay=True)
    table = pq.read_table(tmp_path / "out" / "boxes.parquet").to_pydict()
    assert done.boxes == len(table["key"]) > 0
    assert set(table["class"]) <= {"dog", "cat"}
    assert not (tmp_path / "out" / "maps").exists()
    from loffta.tasks.centernet import find_boxes

    for i, outputs in enumerate(cached_outputs(cache, runs["detection"])):
        (expected,) = find_boxes(outputs[None])
        height, width = picture(i).shape[:2]
        here = [at for at, key in enumerate(table["key"]) if key == f"{i:04d}.png"]
        scores = np.array([table["score"][at] for at in here])
        np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
        for name, column in (("left", 0), ("right", 2)):
            found = sorted(table[name][at] for at in here)
            np.testing.assert_allclose(found, np.sort(expected.corners[:, column]) * width, atol=0.05)
        bottom = sorted(table["bottom"][at] for at in here)
        np.testing.assert_allclose(bottom, np.sort(expected.corners[:, 3]) * height, atol=0.05)


def test_embeddings_are_the_first_heads(cache, runs, tmp_path):
    told(runs["instances"], tmp_path / "out", maps="npy")
    told(runs["instances"], tmp_path / "png", overlay=True)
    for i, outputs in enumerate(cached_outputs(cache, runs["instances"])):
        found = np.load(tmp_path / "out" / "maps" / f"{i:04d}.png.npy")
        np.testing.assert_allclose(found, outputs.numpy(), atol=1e-5)
        assert opened(tmp_path / "png" / "overlays" / f"{i:04d}.png.jpg").size == picture(i).shape[1::-1]


def test_from_python(cache, runs, tmp_path):
    """The same maps and boxes as in the files, without one."""
    told(runs["depth"], tmp_path / "out", maps="npy")
    depth, boxes = load_run(runs["depth"], device="cpu"), load_run(runs["detection"], device="cpu")
    depth._load = boxes._load = loader()
    found = depth.predict([picture(0), picture(1)])
    assert (found.keys, depth.task, depth.seeds, found.bad) == (["image 0", "image 1"], "depth", 1, {})
    for i, metres in enumerate(found.found):
        np.testing.assert_allclose(metres, np.load(tmp_path / "out" / "maps" / f"{i:04d}.png.npy"), atol=1e-5)
    corners, scores, classes = boxes.predict(picture(3)).found[0]
    assert len(corners) == len(scores) == len(classes) > 0
    assert boxes.results().metrics["ap"].mean >= 0
    assert depth.head(0)(depth.head(0).prepare([torch.zeros(2, 1, *depth.specs[0].shape)])).shape == (2, 1, 16, 16)
    with pytest.raises(UsageError, match="--calibrated is not for heads that give maps"):
        load_run(runs["depth"], device="cpu", calibrated=True)


def test_bad_images_and_foreign_folders(runs, tmp_path):
    run, out = runs["segmentation"], tmp_path / "out"
    source = DenseSource(N, {1: b"", 9: b"?"})
    with pytest.raises(TooManyBadImages, match="2 of 20 images cannot be used"):
        told(run, out, source)
    table = pq.read_table(out / "predictions.parquet").to_pydict()
    assert [i for i, status in enumerate(table["status"]) if status != "ok"] == [1, 9]
    assert (table["reason"][1], table["map"][1], table["width"][9]) == ("empty file", None, None)
    assert len(list((out / "maps").iterdir())) == N - 2
    told(run, out, DenseSource(3), maps="npy")  # its own folder, anew
    assert sorted(path.name for path in (out / "maps").iterdir()) == [f"000{i}.png.npy" for i in range(3)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "about.json").write_text("{}")
    with pytest.raises(LofftaError, match=r"other things(.|\n)*choose another --out"):
        told(run, tmp_path / "mine")
    with pytest.raises(UsageError, match=r"name a folder: --out .*/p\n?$"):
        told(run, tmp_path / "p.parquet")


def test_a_crop_is_put_where_it_was_cut_out(tmp_path):
    """Pixels that the features do not show are ignored; the rest is the head's map of the crop."""
    cache = dense_cache(tmp_path / "cache", resize="crop")
    run = dense_run(cache, tmp_path / "run")
    assert told(run, tmp_path / "out").images == N
    shutil.rmtree(tmp_path / "cache")
    run = open_dense(run, CPU)
    n_partly = 0
    for i in range(N):
        height, width = picture(i).shape[:2]
        found = np.asarray(opened(tmp_path / "out" / "maps" / f"{i:04d}.png.png"))
        left, top, right, bottom = (math.ceil(place - 0.5) for place in run.window(f"{i:04d}.png", height, width)[:4])
        inside = np.zeros((height, width), bool)
        inside[max(0, top) : bottom, max(0, left) : right] = True
        assert (found[~inside] == 255).all()
        assert (found[inside] < 3).all()
        n_partly += not inside.all()
    assert n_partly > N / 2

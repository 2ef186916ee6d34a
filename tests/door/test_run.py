"""A loaded run predicts what the command writes, of files, pictures in memory and cached rows; its head is a module."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

import loffta
from loffta.door.given import GivenImages
from loffta.runs.run import load_head, read_predictions

N = 12  # of each split


def picture(row, size=(40, 32)):
    """RGB noise, dark or bright by its class."""
    rng = np.random.default_rng(row)
    return rng.integers(0, 120, (*size, 3), np.uint8) + np.uint8(row % 3 * 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    for split in ("train", "test"):
        for row in range(N):
            path = root / "photos" / split / f"class {row % 3}" / f"{row:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(row + N * (split == "test"))).save(path)
    (root / "photos" / "test" / "class 0" / "broken.png").write_bytes(b"no image")
    net = {"backbone": "test_vit", "weights": "random:0", "image_px": 32, "device": "cpu", "taps": "blocks.2,blocks.5"}
    loffta.extract(root / "photos", cache=root / "cache", kinds="grid", max_bad_frac=1, progress=False, **net)
    recipe = {"epochs": 5, "batch_size": 8}
    options = {"device": "cpu", "seeds": 2, "features": "test_vit:all", "progress": False}
    loffta.train(root / "cache", head="linear", out=root / "run", set=recipe, **options)
    options = {"device": "cpu", "max_bad_frac": 1, "progress": False}
    loffta.predict(root / "run", root / "photos", out=root / "p.parquet", **options)
    return root


@pytest.fixture(scope="module")
def run(folder):
    return loffta.load_run(folder / "run", device="cpu")


@pytest.fixture(scope="module")
def written(folder):
    """Rows of the file that `predict` wrote, by key."""
    return {row["key"]: row for row in pq.read_table(folder / "p.parquet").to_pylist()}


def test_facts(run):
    assert (run.classes, run.task, run.seeds) == (("class 0", "class 1", "class 2"), "classification", 2)
    (spec,) = run.specs
    assert (spec.backbone, spec.taps, spec.kind, spec.shape) == (
        "test_vit [random:0 weights]",
        ("blocks.2", "blocks.5"),
        "mean",
        (64,),
    )
    assert "linear" in repr(run)
    assert run.results().n == N
    assert len(run.results("test").metrics["top1"].per_seed) == 2


def test_files_pictures_and_arrays_are_one(run, folder, written):
    keys = [f"test/class {row % 3}/{row:02d}.png" for row in (0, 1, 5)]
    paths = [folder / "photos" / key for key in keys]
    expected = np.array([written[key]["probabilities"] for key in keys], np.float32)
    arrays = [picture(N + row) for row in (0, 1, 5)]
    for images in (
        paths,
        [str(path) for path in paths],
        [Image.open(path) for path in paths],
        arrays,
        np.stack(arrays),
    ):
        found = run.predict(images)
        np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)  # other batches round otherwise
        assert found.predicted == [written[key]["predicted"] for key in keys]
        assert found.places.tolist() == [0, 1, 2]
        assert found.bad == {}
    one = run.predict(paths[1])
    np.testing.assert_allclose(one.probabilities, expected[1:2], rtol=1e-5)
    assert one.keys == [str(paths[1])]


def test_images_that_cannot_be_used_are_told_and_never_predicted(run, folder):
    images = [picture(1), folder / "photos" / "test" / "class 0" / "broken.png", folder / "gone.png", picture(2)]
    found = run.predict(images, max_bad_frac=0.5)
    assert found.places.tolist() == [0, 3]
    assert found.keys == ["image 0", "image 3"]
    assert np.isfinite(found.probabilities).all()
    assert list(found.bad) == [str(images[1]), str(images[2])]
    with pytest.raises(loffta.TooManyBadImages, match="2 of 4 images"):
        run.predict(images)
    assert run.predict([images[1]], max_bad_frac=1).probabilities.shape == (0, 3)


def test_cached_rows(run, folder, written):
    found = run.predict_cached("test")
    kept = read_predictions(folder / "run" / "predictions.parquet")
    assert found.keys == kept["key"][: len(found.keys)].tolist()
    assert found.predicted == [written[key]["predicted"] for key in found.keys]
    expected = np.array([written[key]["probabilities"] for key in found.keys])
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    assert list(found.bad) == ["test/class 0/broken.png"]
    cache = loffta.open_cache(folder / "cache")
    assert [cache.table().column("key")[row].as_py() for row in found.places] == found.keys
    np.testing.assert_array_equal(run.predict_cached().probabilities, found.probabilities)


def test_a_head_is_a_module_of_the_callers_own(run, folder):
    head = run.head(seed=1)
    assert isinstance(head, nn.Module)
    assert not head.training
    logits = torch.cat([head(head.prepare(batch.features)) for batch in run.batches("test", batch_size=5)])
    other = torch.cat([run.head(0)(head.prepare(batch.features)) for batch in run.batches("test")])
    mean = (logits.softmax(1) + other.softmax(1)) / 2
    np.testing.assert_allclose(mean.detach(), run.predict_cached("test").probabilities, rtol=1e-5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    assert any(parameter.any() for parameter in run.head(seed=1).parameters())
    with pytest.raises(loffta.UsageError, match="seeds: 0 to 1"):
        run.head(2)


def test_backbones_are_loaded_once(folder, monkeypatch):
    import loffta.extraction.begin as begin

    loaded, load = [], begin.load_backbone
    monkeypatch.setattr(begin, "load_backbone", lambda *args, **options: loaded.append(args) or load(*args, **options))
    run = loffta.load_run(folder / "run", device="cpu")
    assert loaded == []
    run.predict(picture(0))
    run.predict(picture(1))
    assert len(loaded) == 1


def test_what_is_given_comes_back_pixel_for_pixel(tmp_path):
    grey, colour = picture(3)[..., 0], Image.fromarray(picture(4))
    deep = Image.fromarray(picture(5)[..., 0].astype(np.uint16) * 200)
    turned = colour.copy()
    turned.getexif()[274] = 6  # a quarter turn to the right
    clear = Image.fromarray(np.dstack([picture(6), picture(7)[..., :1]]))
    images = [grey, colour, deep, turned, clear, colour.convert("P")]
    source = GivenImages(images)
    for key, image in zip(source.listing().keys, images, strict=True):
        with Image.open(io.BytesIO(source.read(key))) as back:
            np.testing.assert_array_equal(np.asarray(back), np.asarray(image))
            assert back.getexif().get(274) == (6 if image is turned else None)
    with pytest.raises(FileNotFoundError):
        GivenImages([tmp_path / "gone.png"]).read(str(tmp_path / "gone.png"))
    assert GivenImages(["a.png", "a.png"]).listing().keys == ["a.png", "a.png (1)"]


def test_a_turned_picture_is_predicted_as_its_file_is(run, tmp_path):
    image = Image.fromarray(picture(8, (40, 20)))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    found = run.predict([tmp_path / "turned.png", Image.open(tmp_path / "turned.png")])
    np.testing.assert_array_equal(found.probabilities[0], found.probabilities[1])
    upright = run.predict(Image.fromarray(picture(8, (40, 20))))
    assert not np.array_equal(upright.probabilities[0], found.probabilities[0])


@pytest.mark.parametrize(
    ("image", "remedy"),
    [
        (np.zeros((4, 4, 3), np.float32), "give uint8 arrays"),
        (np.zeros((3, 4, 4, 3), np.uint8), "give uint8 arrays"),
        (np.zeros((3, 4, 5), np.uint8), "3 or 4 channels behind"),
        (Image.new("CMYK", (4, 4)), r"convert\('RGB'\)"),
        (torch.zeros(3, 4, 4), "give a path, a PIL image or a uint8 array"),
    ],
)
def test_what_is_no_image(image, remedy):
    with pytest.raises(loffta.UsageError, match=remedy):
        GivenImages([image])


def test_no_images(run):
    with pytest.raises(loffta.UsageError, match="there are no images"):
        run.predict([])


def test_no_run(tmp_path):
    with pytest.raises(loffta.LofftaError, match="there is no run here"):
        loffta.load_run(tmp_path)


def test_results_are_those_of_the_file_with_types(run, folder):
    import json

    results = loffta.evaluate(folder / "run", device="cpu", progress=False)
    said = json.loads((folder / "run" / "results.json").read_text())
    assert results.as_json() == said
    assert results.metrics["top1"].mean == said["metrics"]["top1"]["mean"]
    assert results.model_extra["seconds"] == said["seconds"]
    with pytest.raises(ValueError, match="frozen"):
        results.n = 3
    both = loffta.evaluate([folder / "run", folder / "run"], split="train", device="cpu", progress=False)
    assert [one.n for one in both] == [N, N]


@pytest.fixture(scope="module")
def folded(folder):
    options = {"device": "cpu", "seeds": 2, "features": "test_vit:all", "progress": False}
    recipe = {"epochs": 5, "batch_size": 8}
    results = loffta.train(folder / "cache", head="linear", out=folder / "folded", set=recipe, folds=3, **options)
    assert len(results.folds.metrics["top1"].per_fold) == 3
    loffta.train(folder / "cache", head="linear", out=folder / "few", set=recipe, shots=[1, 2], draws=3, **options)
    return loffta.load_run(folder / "folded", device="cpu")


def test_new_images_are_predicted_by_the_mean_of_all_folds(folded, folder):
    assert folded.seeds == 6
    found = folded.predict([folder / "photos/test/class 1/01.png", picture(40)])
    assert found.probabilities.shape == (2, 3)
    alone = []
    for fold, seed in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)):
        kept = load_head(folder / "folded" / f"fold-{fold}" / f"seed-{seed}" / "head.safetensors")
        head = folded.head(2 * fold + seed).state_dict()
        assert all(torch.equal(kept[name], head[name]) for name in kept)
    batch = next(folded.batches("test", batch_size=4))
    for number in range(6):
        head = folded.head(number)
        alone.append(head(head.prepare(batch.features)).detach().softmax(-1).numpy())
    cached = folded.predict_cached("test")
    assert np.allclose(cached.probabilities[:4], np.mean(alone, axis=0), atol=1e-5)


def test_cached_training_images_are_predicted_by_heads_that_have_not_seen_them(folded, folder):
    found = folded.predict_cached()
    kept = read_predictions(folder / "folded" / "predictions-out-of-fold.parquet")
    first, second = (kept["seed"] == seed for seed in range(2))
    assert found.places.tolist() == kept["row"][first].tolist()
    expected = (np.stack(kept["probabilities"][first]) + np.stack(kept["probabilities"][second])) / 2
    assert np.allclose(found.probabilities, expected, atol=1e-5)


def test_of_draws_those_with_the_most_images_stand_for_the_run(folded, folder):
    few = loffta.load_run(folder / "few", device="cpu")
    assert few.seeds == 6
    kept = read_predictions(folder / "few" / "predictions.parquet")
    expected = np.mean([np.stack(kept["probabilities"][kept["seed"] == seed]) for seed in range(6)], axis=0)
    assert np.allclose(few.predict_cached("test").probabilities, expected, atol=1e-5)
    done = loffta.predict(
        folder / "few", folder / "photos", out=folder / "few.parquet", device="cpu", max_bad_frac=1, progress=False
    )
    assert done.images - done.bad == 2 * N

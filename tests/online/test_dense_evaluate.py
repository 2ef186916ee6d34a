"""evaluate --online of dense heads gives what the cached path gives of the same images, figure by figure."""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from loffta.door.given import GivenImages
from loffta.door.run import load_run
from loffta.errors import LofftaError, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.online.dense_evaluate import evaluate_dense_online
from loffta.online.stream import FreshStream
from loffta.runs.run import RunPaths
from loffta.targets import IGNORE
from loffta.tasks.depth import metres_of
from loffta.tasks.pixels import at_size
from tests.fakes import CLASSES, DenseSource, picture
from tests.online.denseruns import N, Pictures, dense_cache, dense_run
from tests.online.runs import CPU, loader

BROKEN = {"mask/0004.png": None, "mask/0008.png": b"no PNG"}  # of the test images, rows 0, 4, 8, 12, 16
TASKS = ("segmentation", "depth", "boundaries", "detection")
HEADS = [*((task, "dense-linear") for task in TASKS), ("segmentation", "featup"), ("depth", "featup")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return dense_cache(tmp_path_factory.mktemp("cache") / "cache", tuple(CLASSES), BROKEN)


def online(runs, source=None, **options):
    return evaluate_dense_online(
        runs, source or Pictures(N, BROKEN), "test", loader(), device=CPU, **{"batch_size": 8} | options
    )


@pytest.mark.parametrize(("task", "head"), HEADS)
def test_it_measures_what_the_cached_path_measures(cache, tmp_path, task, head, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("loffta.evaluation.clock._now", lambda device: next(ticks))
    run = dense_run(cache, tmp_path / "run", task, head, seeds=2 if task == "segmentation" else 1, epochs=1)
    cached = evaluate(run, "test", device="cpu")
    before = pq.read_table(RunPaths(run).predictions_dense("test")).to_pydict()
    (found,) = online([run])
    assert found["metrics"].keys() == cached["metrics"].keys()
    for name, metric in cached["metrics"].items():
        np.testing.assert_allclose(found["metrics"][name]["per_seed"], metric["per_seed"], atol=2e-3, err_msg=name)
    assert found["dense"].keys() == cached["dense"].keys()
    for name in ("targets", "target", "classes", "output_px", "settings", "adapter_parameters"):
        assert found["dense"][name] == cached["dense"][name]  # the digest: of the very bytes
    assert (found["n"], found["images"]) == (cached["n"], cached["images"])
    assert found["timing"] == cached["timing"]  # a tick to prepare a batch, and one for each head
    assert found["timing"]["head_ms"] == pytest.approx(2000 / found["n"])
    assert found["online"]["source"] == Pictures(N).listing().source
    after = pq.read_table(RunPaths(run).predictions_dense("test")).to_pydict()
    assert after.keys() == before.keys()
    for name, column in before.items():
        if name == "key":
            assert after[name] == column
        elif name != "record":  # what the figures are counted of
            np.testing.assert_allclose(np.array(after[name], float), np.array(column, float), atol=0.02)


@pytest.mark.parametrize(
    ("task", "head"), [("segmentation", "dense-linear"), ("depth", "dense-linear"), ("segmentation", "featup")]
)
def test_the_mean_over_mirror_images(cache, tmp_path, task, head, capsys):
    """Against a batch of images, and another of the mirrored ones, whose maps are turned back."""
    run = dense_run(cache, tmp_path / "run", task, head, epochs=1, flip_average=True, depth_as="bins", depth_bins=8)
    images, opened = [picture(i) for i in range(6)], load_run(run, device="cpu")
    opened._load = loader()
    plain = replace(opened._run, recipe=opened._run.recipe.model_copy(update={"flip_average": False}))

    def outputs(given):
        stream = FreshStream(
            plain.origins.inputs, source := GivenImages(given), source.listing(), range(6), load=loader(), device=CPU
        )
        (batch,) = stream
        ((_, logits),) = plain.mean_outputs(batch.features, ["x"] * 6)
        return logits

    classify = opened._run.heads[0].classify
    classify.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    classify.bias.data -= outputs(images).mean(dim=(0, 2, 3))  # no output wins everywhere
    found = opened.predict(images).found
    one, other = outputs(images), outputs([image[:, ::-1].copy() for image in images]).flip(3)
    turned = 0
    for i, image in enumerate(images):
        if task == "depth":
            metres = (metres_of(one[i][None], plain.settings) + metres_of(other[i][None], plain.settings)) / 2
            expected = at_size(metres, image.shape[:2])[0, 0].numpy()
            np.testing.assert_allclose(found[i], expected, atol=1e-5)
        else:
            shares = ((one[i].softmax(0) + other[i].softmax(0)) / 2).log()
            np.testing.assert_array_equal(found[i], at_size(shares[None], image.shape[:2])[0].argmax(0).numpy())
            turned += int((found[i] != at_size(one[i][None], image.shape[:2])[0].argmax(0).numpy()).sum())
    assert turned or task == "depth", "it changes pixels"
    (measured,) = online([run])
    assert measured["dense"]["settings"]["flip_average"]
    capsys.readouterr()
    cached = evaluate(run, "test", device="cpu")
    assert "on a cache no image is mirrored" in capsys.readouterr().err
    assert not cached["dense"]["settings"]["flip_average"]
    headline = next(iter(cached["metrics"]))
    if head == "dense-linear":  # the other says one class of all after so few steps
        assert measured["metrics"][headline]["per_seed"] != cached["metrics"][headline]["per_seed"]


class Renamed(Pictures):
    """The same masks with classes in another order."""

    def listing(self):
        return replace(super().listing(), target_classes={"mask": ("cat", "sky", "dog")})

    def target(self, kind, i):
        found = super().target(kind, i)
        return replace(found, map=np.where(found.map == IGNORE, IGNORE, (found.map + 1) % 3).astype(np.uint8))


class Strange(Pictures):
    def listing(self):
        return replace(super().listing(), target_classes={"mask": ("sky", "dog", "newt")})


def test_classes_are_matched_by_name_and_what_does_not_fit_is_refused(cache, tmp_path):
    run = dense_run(cache, tmp_path / "run", epochs=1)
    one, other = online([run, run])  # of one pass
    (renamed,) = online([run], Renamed(N, BROKEN))
    assert one["metrics"] == other["metrics"] == renamed["metrics"]
    (larger,) = online([run], output_px=24)
    assert larger["dense"]["output_px"] == 24
    with pytest.raises(LofftaError, match=r"not trained on: newt(.|\n)*as in training"):
        online([run], Strange(N))
    with pytest.raises(UsageError, match="has no target 'mask', by which segmentation is measured; it has depth"):
        online([run], DenseSource(N, kinds=("depth",)))
    none = dict.fromkeys((f"mask/{i:04d}.png" for i in range(N)), b"?")
    with pytest.raises(LofftaError, match="no image of split 'test' has a target 'mask' that can be used"):
        online([run], Pictures(N, none))
    cropped = dense_run(dense_cache(tmp_path / "crops", resize="crop"), tmp_path / "cropped", epochs=1)
    (measured,) = online([cropped])
    expected = evaluate(cropped, "test", device="cpu")
    np.testing.assert_allclose(
        measured["metrics"]["miou"]["per_seed"], expected["metrics"]["miou"]["per_seed"], atol=2e-3
    )
    assert measured["dense"]["geometry"] == expected["dense"]["geometry"]

"""evaluate --online of dense heads gives what the cached path gives of the same images, figure by figure."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from loffta.errors import LofftaError, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.online.dense_evaluate import evaluate_dense_online
from loffta.runs.run import RunPaths
from loffta.targets import IGNORE
from tests.fakes import CLASSES, DenseSource
from tests.online.denseruns import N, Pictures, dense_cache, dense_run
from tests.online.runs import CPU, loader

BROKEN = {"mask/0004.png": None, "mask/0008.png": b"no PNG"}  # of the test images, rows 0, 4, 8, 12, 16
TASKS = ("segmentation", "depth", "boundaries", "detection")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return dense_cache(tmp_path_factory.mktemp("cache") / "cache", tuple(CLASSES), BROKEN)


def online(runs, source=None, **options):
    return evaluate_dense_online(
        runs, source or Pictures(N, BROKEN), "test", loader(), device=CPU, **{"batch_size": 8} | options
    )


@pytest.mark.parametrize("task", TASKS)
def test_it_measures_what_the_cached_path_measures(cache, tmp_path, task):
    run = dense_run(cache, tmp_path / "run", task, seeds=2 if task == "segmentation" else 1, epochs=1)
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
    assert found["online"]["source"] == Pictures(N).listing().source
    after = pq.read_table(RunPaths(run).predictions_dense("test")).to_pydict()
    assert after.keys() == before.keys()
    for name, column in before.items():
        if name == "key":
            assert after[name] == column
        else:
            np.testing.assert_allclose(np.array(after[name], float), np.array(column, float), atol=0.02)


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
    with pytest.raises(UsageError, match="show a part of each image"):
        online([cropped])

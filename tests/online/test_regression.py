"""Numbers on every way without a cache, against the cached training, evaluation and predictions."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from loffta.door.run import load_run
from loffta.errors import LofftaError
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.online.evaluate import evaluate_online
from loffta.online.predict import predict
from loffta.online.train import train_online
from loffta.runs.run import RunPaths, load_head, read_predictions
from loffta.training.train import train
from tests.fakes import PngSource, fake_config
from tests.online.runs import CPU, TRAINED, config_of, loader, run
from tests.online.test_multi_label import config_of as cached_or_online

N = 20
VALUES = 1950 + 3 * np.random.default_rng(0).normal(size=N)
RECIPE = {"epochs": 2, "batch_size": 4, "lr": 0.1}


class Measured(PngSource):
    """Pictures with a number each."""

    def listing(self):
        listing = super().listing()
        return replace(listing, labels=listing.labels * 0 - 1, classes=(), values=VALUES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("values") / "cache"
    config = fake_config(root, names=("fake",), dtype="float32", max_bad_frac=1.0)
    extract(config, Measured(N), loader(), StopFlag())
    return root


def test_images_are_told_and_measured_as_the_cached_ones(cache, tmp_path):
    expected = train(cached_or_online(cache), tmp_path / "run", StopFlag())
    kept = read_predictions(RunPaths(tmp_path / "run").predictions("test"))
    (found,) = evaluate_online([tmp_path / "run"], Measured(N), "test", loader(), device=CPU, batch_size=8)
    assert (found["task"], found["values"]) == ("regression", expected["values"])
    for name, metric in expected["metrics"].items():
        assert found["metrics"][name]["per_seed"] == pytest.approx(metric["per_seed"], rel=1e-5), name

    out = tmp_path / "p.parquet"
    done = predict(tmp_path / "run", Measured(N), out, loader(), device=CPU, per_seed=True, batch_size=8)
    told = pq.read_table(out).to_pydict()
    assert list(told) == ["key", "status", "reason", "predicted", "seed_0_predicted", "seed_1_predicted"]
    for place, row in enumerate(kept["row"]):
        assert told[f"seed_{kept['seed'][place]}_predicted"][row] == pytest.approx(kept["predicted"][place], rel=1e-6)
    mean = np.mean([told["seed_0_predicted"], told["seed_1_predicted"]], axis=0)
    assert told["predicted"] == pytest.approx(mean, rel=1e-12)
    assert done.counts == {}
    assert done.values == pytest.approx({"min": mean.min(), "mean": mean.mean(), "max": mean.max()})
    with pytest.raises(LofftaError, match="are single-label, and regression needs a number per image"):
        evaluate_online([tmp_path / "run"], PngSource(N), "test", loader(), device=CPU)
    assert load_run(tmp_path / "run", device="cpu").task == "regression"


def test_training_online_is_the_cached_training(cache, tmp_path):
    expected = train(cached_or_online(cache), tmp_path / "cached", StopFlag())
    found = train_online(cached_or_online("online"), tmp_path / "online", Measured(N), loader(), StopFlag())
    assert found["metrics"]["r2"]["per_seed"] == pytest.approx(expected["metrics"]["r2"]["per_seed"], rel=1e-3)
    for seed in range(2):
        a, b = (load_head(RunPaths(tmp_path / name).head(seed)) for name in ("cached", "online"))
        np.testing.assert_allclose(a["classify.weight"], b["classify.weight"], rtol=1e-3, atol=1e-5)
        assert (a["values.mean"], a["values.deviation"]) == (b["values.mean"], b["values.deviation"])


def test_a_backbone_is_trained_along(tmp_path):
    results = run(config_of(**TRAINED), tmp_path / "run", Measured(N))
    assert (results["task"], results["online"]["unfrozen"]) == ("regression", True)
    kept = read_predictions(RunPaths(tmp_path / "run").predictions("test"))
    assert abs(kept["predicted"].mean() - 1950) < 30, "in the unit"

"""Several classes per image on every way without a cache, against the cached training and evaluation; int8 features."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from loffta.config import BackboneConfig, OnlineConfig, TrainConfig
from loffta.errors import LofftaError, UsageError
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.online.evaluate import evaluate_online
from loffta.online.predict import predict
from loffta.online.train import train_online
from loffta.runs.run import RunPaths, load_head
from loffta.training.train import train
from tests.fakes import PngSource, fake_config
from tests.online.runs import CPU, loader, make_fake_cache, make_run

N = 20
SETS = [((), (0,), (1, 2), (0, 1, 2), (2,))[i * i % 7 % 5] for i in range(N)]
RECIPE = {"epochs": 2, "batch_size": 4, "lr": 0.1}


class Tagged(PngSource):
    """Pictures with any number of the classes a, b, c."""

    def listing(self):
        listing = super().listing()
        return replace(listing, labels=listing.labels * 0 - 1, label_sets=SETS)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    root = tmp_path_factory.mktemp("tagged")
    for dtype in ("int8", "float32"):
        config = fake_config(root / dtype, names=("fake",), dtype=dtype, max_bad_frac=1.0)
        extract(config, Tagged(N), loader(), StopFlag())
    return root


def config_of(source, head="linear", taps="blocks.0", **changes):
    values = {"head": head, "seeds": 2, "device": "cpu", "recipe": RECIPE} | changes
    if source != "online":
        return TrainConfig(cache=source, features=(f"fake:{taps}",), **values)
    backbone = BackboneConfig(name="fake", weights="random:0", image_px=16, taps=taps)
    online = OnlineConfig(source="fake:png", backbone=backbone, augment="none")
    return TrainConfig(cache=Path("fake:png"), online=online, **values)


def test_images_are_told_and_measured_as_the_cached_ones(caches, tmp_path):
    expected = train(config_of(caches / "int8"), tmp_path / "run", StopFlag())
    cached = pq.read_table(RunPaths(tmp_path / "run").predictions("test")).to_pydict()
    (found,) = evaluate_online([tmp_path / "run"], Tagged(N), "test", loader(), device=CPU, batch_size=8)
    for name in ("task", "metrics", "per_class", "notes", "n"):
        assert found[name] == expected[name], name
    assert expected["task"] == "multi-label"

    out = tmp_path / "p.parquet"
    done = predict(tmp_path / "run", Tagged(N), out, loader(), device=CPU, per_seed=True, batch_size=8)
    told = pq.read_table(out).to_pydict()
    for seed in range(2):
        rows = [i for i, of in enumerate(cached["seed"]) if of == seed]
        for i in rows:
            row = cached["row"][i]
            probabilities = told[f"seed_{seed}_probabilities"][row]
            np.testing.assert_allclose(probabilities, cached["probabilities"][i], atol=1e-6)
            assert told[f"seed_{seed}_predicted"][row] == ["abc"[c] for c in cached["predicted"][i]]
    mean = np.mean([told[f"seed_{seed}_probabilities"] for seed in range(2)], axis=0)
    assert told["predicted"] == [[name for name, p in zip("abc", of, strict=True) if p >= 0.5] for of in mean]
    assert any(len(names) != 1 for names in told["predicted"])
    named = [name for names in told["predicted"] for name in names]
    assert done.counts == {name: named.count(name) for name in "abc" if name in named}


def test_training_online_is_the_cached_training(caches, tmp_path):
    expected = train(config_of(caches / "float32"), tmp_path / "cached", StopFlag())
    found = train_online(config_of("online"), tmp_path / "online", Tagged(N), loader(), StopFlag())
    losses = [results["metrics"].pop("log_loss")["per_seed"] for results in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "it has every digit of the logits, the others their order"
    assert (found["task"], found["metrics"]) == (expected["task"], expected["metrics"])
    for seed in range(2):
        a, b = (load_head(RunPaths(tmp_path / name).head(seed)) for name in ("cached", "online"))
        np.testing.assert_allclose(a["classify.weight"], b["classify.weight"], rtol=1e-4, atol=1e-5)


def test_class_weights_are_refused_before_a_run_is_begun(caches, tmp_path):
    recipe, words = RECIPE | {"class_weights": True}, r"need one class per image(.|\n)*--set class_weights=false"
    with pytest.raises(UsageError, match=words):
        train_online(config_of("online", recipe=recipe), tmp_path / "run", Tagged(N), loader(), StopFlag())
    with pytest.raises(UsageError, match=words):
        train(config_of(caches / "float32", recipe=recipe), tmp_path / "run", StopFlag())
    assert not (tmp_path / "run").exists()


def test_runs_of_two_tasks_are_refused_before_any_is_measured(caches, tmp_path, monkeypatch):
    train(config_of(caches / "float32"), tmp_path / "tags", StopFlag())
    make_run(make_fake_cache(tmp_path / "cache"), tmp_path / "classes")
    before = json.loads(RunPaths(tmp_path / "tags").results("test").read_text())
    source = Tagged(N)
    with pytest.raises(LofftaError, match="are multi-label, and classification needs one class per image"):
        evaluate_online([tmp_path / "tags", tmp_path / "classes"], source, "test", loader(), device=CPU)
    assert not source.reads
    assert json.loads(RunPaths(tmp_path / "tags").results("test").read_text()) == before

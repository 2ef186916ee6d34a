"""What heads tell of themselves in results.json, against their files read anew and a loop over images."""

import json

import numpy as np
import pytest
import torch

from loffta.config import TrainConfig
from loffta.dataset.features import choose_features
from loffta.evaluation.evaluate import evaluate, load_heads
from loffta.evaluation.findings import Findings
from loffta.feed.batches import Feed
from loffta.heads import find_head
from loffta.heads.base import HeadBase
from loffta.machine.process import StopFlag
from loffta.runs.run import open_run
from loffta.store.reader import ArrayReader
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table, separable

TAPS = ("s.0", "s.1")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Two taps with a class token and a register, and a net without prefix tokens; the last test image is bad."""
    n = 50
    rng = np.random.default_rng(0)
    labels, grids = separable(n)
    prefixes = {tap: rng.normal(size=(n, 2, 6)).astype(np.float32) for tap in TAPS}
    vit = FakeStore("vit", dict.fromkeys(TAPS, grids), kinds=("grid", "prefix"), prefixes=prefixes)
    net = FakeStore("net", {"t.0": grids[..., :4] * 2})
    table = make_table(labels, ["train"] * 30 + ["test"] * 20)
    return make_cache(tmp_path_factory.mktemp("cache") / "cache", table, [vit, net], bad=(49,))


def make_run(cache, out, head, **recipe):
    features = (f"vit:{','.join(TAPS)}", "net:t.0")
    small = {"epochs": 1, "batch_size": 7, "min_steps": 6} | recipe
    config = TrainConfig(cache=cache.paths.root, head=head, features=features, seeds=2, device="cpu", recipe=small)
    return train(config, out, StopFlag())


def heads_of(cache, run):
    paths, config = open_run(run)
    recipe = find_head(config.head).recipe(**config.recipe)
    features = choose_features(cache, config.features, recipe.kinds(), default_taps="all")
    return features, load_heads(paths, config, features, recipe, 3)


def test_attention_is_the_mean_over_images_then_heads(cache, tmp_path):
    found = make_run(cache, tmp_path / "run", "fusion", n_heads=3)["attention"]
    features, heads = heads_of(cache, tmp_path / "run")
    weights = np.zeros((2, 5))
    for row in range(30, 49):  # one image at a time
        tensors = [
            f.finish(torch.from_numpy(ArrayReader(f.array.paths).read(np.array([row]), f.raw_taps))) for f in features
        ]
        for seed, head in enumerate(heads):
            for probe_head in head.attention(head.prepare(tensors))[0].detach():
                weights[seed] += probe_head.numpy() / 3 / 19
    names = [("vit", tap, kind) for kind in ("cls", "mean") for tap in TAPS] + [("net", "t.0", "mean")]
    assert [(e["backbone"], e["tap"], e["kind"]) for e in found] == names
    for i, entry in enumerate(found):
        assert entry["per_seed"] == pytest.approx(weights[:, i], abs=1e-5)
        assert entry["mean"] == pytest.approx(weights[:, i].mean(), abs=1e-5)
        assert entry["std"] == pytest.approx(weights[:, i].std(ddof=1), abs=1e-5)
    assert sum(entry["mean"] for entry in found) == pytest.approx(1)
    assert weights[0].std() > 1e-4, "not all tokens weigh the same, else nothing is tested"


def test_kept_is_the_share_of_every_tap(cache, tmp_path):
    found = make_run(cache, tmp_path / "run", "head2toe", pooled_size=12, keep_fraction=0.3)["kept"]
    _, heads = heads_of(cache, tmp_path / "run")
    assert [(e["backbone"], e["tap"]) for e in found] == [("vit", "s.0"), ("vit", "s.1"), ("net", "t.0")]
    sizes, start = heads[0].taps.sizes, 0
    for entry, size in zip(found, sizes, strict=True):
        shares = [float(head.kept[start : start + size].float().mean()) for head in heads]
        assert entry["per_seed"] == pytest.approx(shares)
        assert entry["mean"] == pytest.approx(np.mean(shares))
        start += size
    kept = sum(entry["mean"] * size for entry, size in zip(found, sizes, strict=True))
    assert kept == pytest.approx(int(0.3 * sum(sizes)))


def test_they_are_written_with_one_read_of_the_images(cache, tmp_path, monkeypatch):
    make_run(cache, tmp_path / "run", "fusion")
    asked = []
    monkeypatch.setattr(
        "loffta.evaluation.evaluate.Feed", lambda *args, **kwargs: asked.append(1) or Feed(*args, **kwargs)
    )
    again = evaluate(tmp_path / "run", "test", device="cpu")
    assert len(asked) == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["attention"] == again["attention"]


def test_most_heads_tell_nothing(cache, tmp_path):
    results = make_run(cache, tmp_path / "run", "linear")
    assert not {"attention", "kept"} & results.keys()


def test_batches_of_unequal_size_weigh_by_their_images():
    class Telling(HeadBase):
        default_taps = "all"

        def prepare(self, features):
            return features[0]

        def observe(self, prepared):
            return prepared.double().mean(0)

        def findings(self, observed):
            return {"seen": [{"of": i, "value": value} for i, value in enumerate(observed.tolist())]}

    told = Findings([Telling()])
    told.add(torch.tensor([[1.0, 0.0]]), 1)
    told.add(torch.tensor([[0.0, 3.0], [2.0, 3.0], [1.0, 2.0]]), 3)
    assert told.entries() == {
        "seen": [
            {"of": 0, "mean": 1.0, "std": None, "per_seed": [1.0]},
            {"of": 1, "mean": 2.0, "std": None, "per_seed": [2.0]},
        ]
    }

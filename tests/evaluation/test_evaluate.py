"""results.json and predictions.parquet against scikit-learn, and runs whose cache or head is not what it was."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, roc_auc_score

from loffta.config import TrainConfig
from loffta.errors import LofftaError, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.evaluation.findings import relevance
from loffta.heads import build_head
from loffta.heads.combo import ComboRecipe
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths
from loffta.store.cache import Cache
from loffta.store.reader import ArrayReader
from loffta.tokens import FeatureSpec
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table

BAD = (3, 61)  # one of train, one of test


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three seeds on features that tell the classes apart only in part; classes are not balanced."""
    root = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 0, 1, 2] * 20)
    grids = rng.normal(size=(100, 2, 2, 6)).astype(np.float32)
    grids[np.arange(100), :, :, labels] += 0.8
    table = make_table(labels, ["train"] * 50 + ["val"] * 10 + ["test"] * 40, classes=("a", "b", "c"))
    make_cache(root / "cache", table, [FakeStore("net", {"s.0": grids}, weights="random:0")], bad=BAD)
    config = TrainConfig(cache=root / "cache", head="linear", seeds=3, device="cpu", recipe={"epochs": 3})
    train(config, root / "run", StopFlag())
    return root


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished / "run", tmp_path / "run")


def results_of(root, split="test"):
    return json.loads(RunPaths(root).results(split).read_text())


def test_fields(finished):
    results = results_of(finished / "run")
    assert list(results)[:5] == ["task", "head", "split", "n", "metrics"]
    assert [results[name] for name in ("task", "head", "split", "n")] == ["classification", "linear", "test", 39]
    store = Cache.open(finished / "cache").stores()[0]
    label = "net [random:0 weights]"
    assert results["features"] == [{"store": store.name, "label": label, "recipe_hash": store.hash, "taps": ["s.0"]}]
    assert results["images"] == {"used": 39, "bad": 1}
    assert results["recipe"]["epochs"] == 3
    assert results["seconds"] > 0
    assert results["train_seconds"] > 0
    assert results["peak_rss_mib"] > 10
    told = json.loads(RunPaths(finished / "run").training.read_text())["cost"]
    cost = results["cost"]
    assert 0 < told["cpu_hours"] < cost["cpu_hours"]  # the training's, and that of measuring
    assert cost["peak_rss_mib"] == pytest.approx(results["peak_rss_mib"], rel=0.01)
    assert (cost["gpu_hours"], cost["peak_gpu_mib"]) == (0.0, None)
    assert {"python", "loffta", "torch"} <= set(results["versions"])
    assert list(results["metrics"]) == ["top1", "balanced_accuracy", "f1", "log_loss", "roc_auc"]
    assert results["notes"] == {}
    assert results["confusion"]["classes"] == ["a", "b", "c"]
    assert np.sum(results["confusion"]["counts"]) == 3 * 39, "of all seeds"
    assert all(set(m) == {"mean", "std", "per_seed", "ci95"} for m in results["metrics"].values())


def test_metrics_equal_scikit_learns_on_the_predictions(finished):
    columns = pq.read_table(RunPaths(finished / "run").predictions("test")).to_pydict()
    rows = {name: np.array(column) for name, column in columns.items()}
    metrics = results_of(finished / "run")["metrics"]
    table = Cache.open(finished / "cache").table
    assert list(rows) == ["row", "key", "label", "seed", "predicted", "confidence", "logits", "probabilities"]
    of_seed = [rows["seed"] == seed for seed in range(3)]
    by_class = (("top1", accuracy_score), ("balanced_accuracy", balanced_accuracy_score))
    found_of = {name: [f(rows["label"][here], rows["predicted"][here]) for here in of_seed] for name, f in by_class}
    found_of["roc_auc"] = [
        roc_auc_score(rows["label"][here][:, None] == range(3), rows["probabilities"][here]) for here in of_seed
    ]
    for name, found in found_of.items():
        assert metrics[name]["per_seed"] == pytest.approx(found)
        assert metrics[name]["mean"] == pytest.approx(np.mean(found))
        assert metrics[name]["std"] == pytest.approx(np.std(found, ddof=1))
        low, high = metrics[name]["ci95"]
        assert low < metrics[name]["mean"] < high
        assert 0.3 < metrics[name]["mean"] < 1  # neither chance nor all: the comparison means something
    expected = [row for row in range(60, 100) if row not in BAD]
    assert columns["row"] == expected * 3
    assert columns["key"] == [table.keys[row] for row in expected] * 3
    assert columns["label"] == table.labels[expected].tolist() * 3
    assert columns["seed"] == [seed for seed in range(3) for _ in expected]
    assert all(1 / 3 < confidence <= 1 for confidence in columns["confidence"])
    assert len({rows["confidence"][here].sum() for here in of_seed}) == 3
    np.testing.assert_array_equal(rows["probabilities"].max(axis=1), rows["confidence"])


def test_predictions_are_the_trained_heads(finished):
    """In numpy: standardised by the running statistics of the training, then the affine map and the softmax."""
    columns = pq.read_table(RunPaths(finished / "run").predictions("test")).to_pydict()
    (array,) = Cache.open(finished / "cache").stores()[0].arrays
    rows = np.array(columns["row"][:39])
    pooled = ArrayReader(array.paths).read(rows).astype(np.float64).mean(axis=(2, 3))[:, 0]
    for seed in range(3):
        state = {name: t.numpy() for name, t in load_file(RunPaths(finished / "run").head(seed)).items()}
        scale = np.sqrt(state["standardise.running_var"] + 1e-5)
        inputs = (pooled - state["standardise.running_mean"]) / scale
        exponentials = np.exp(inputs @ state["classify.weight"].T + state["classify.bias"])
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        here = slice(39 * seed, 39 * (seed + 1))
        np.testing.assert_allclose(columns["confidence"][here], probabilities.max(axis=1), atol=2e-3)
        assert columns["predicted"][here] == probabilities.argmax(axis=1).tolist()
        logits = inputs @ state["classify.weight"].T + state["classify.bias"]
        np.testing.assert_allclose(np.array(columns["logits"][here]), logits, atol=2e-2)


@pytest.mark.parametrize("trained_in", ["bf16", "fp32", None])
def test_heads_are_evaluated_in_the_precision_of_their_training(copied, finished, trained_in):
    """Whatever this machine would train in; a run that keeps none is of an older loffta, and is float32."""
    paths = RunPaths(copied)
    training = json.loads(paths.training.read_text())
    assert training.pop("precision") == "fp32"
    paths.training.write_text(json.dumps(training | ({"precision": trained_in} if trained_in else {})))
    results = evaluate(copied, "test", device="cpu")
    assert results["training"].get("precision") == trained_in
    found, before = (pq.read_table(RunPaths(run).predictions("test")) for run in (copied, finished / "run"))
    rows = found.column("row").to_numpy()[:39]
    (array,) = Cache.open(finished / "cache").stores()[0].arrays
    pooled = torch.from_numpy(ArrayReader(array.paths).read(rows).astype(np.float32).mean(axis=(2, 3))[:, 0])
    confidence = torch.from_numpy(found.column("confidence").to_numpy().copy()).view(3, 39)
    for seed in range(3):
        state = load_file(paths.head(seed))
        inputs = (pooled - state["standardise.running_mean"]) / torch.sqrt(state["standardise.running_var"] + 1e-5)
        if trained_in == "bf16":  # what autocast does to a linear map
            cast = (tensor.bfloat16() for tensor in (inputs, state["classify.weight"], state["classify.bias"]))
            logits = torch.nn.functional.linear(*cast).float()
        else:
            logits = torch.nn.functional.linear(inputs, state["classify.weight"], state["classify.bias"])
        torch.testing.assert_close(confidence[seed], logits.softmax(dim=1).amax(dim=1), atol=1e-4, rtol=0)
    assert (found.column("confidence") == before.column("confidence")) == (trained_in != "bf16")


def test_several_classes_per_image(tmp_path):
    """Labels choose the task, from training to predictions; channel c of the features says whether class c is there."""
    rng = np.random.default_rng(0)
    has_class = rng.random((60, 3)) < [0.5, 0.3, 0.2]
    grids = rng.normal(size=(60, 2, 2, 4)).astype(np.float32)
    grids[:, :, :, :3] += 1.5 * has_class[:, None, None]
    table = make_table([-1] * 60, ["train"] * 30 + ["test"] * 30, classes=("a", "b", "c"))
    table = dataclasses.replace(table, label_sets=[tuple(np.flatnonzero(row).tolist()) for row in has_class])
    make_cache(tmp_path / "cache", table, [FakeStore("net", {"s.0": grids})])
    recipe = {"epochs": 20, "lr": 0.1}
    config = TrainConfig(cache=tmp_path / "cache", head="linear", seeds=2, device="cpu", recipe=recipe)
    results = train(config, tmp_path / "run", StopFlag())
    assert results["task"] == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["task"] == "multi-label"
    assert list(results["metrics"]) == ["map", "f1", "log_loss", "roc_auc"]
    assert results["metrics"]["map"]["mean"] > 0.7
    assert [row["class"] for row in results["per_class"]] == ["a", "b", "c"]
    columns = pq.read_table(RunPaths(tmp_path / "run").predictions("test")).to_pydict()
    assert columns["label"] == [np.flatnonzero(row).tolist() for row in has_class[30:]] * 2
    scores = np.array(columns["probabilities"])
    assert columns["predicted"] == [np.flatnonzero(row >= 0.5).tolist() for row in scores]
    expected = [average_precision_score(has_class[30:], of_seed, average="macro") for of_seed in np.split(scores, 2)]
    assert results["metrics"]["map"]["per_seed"] == pytest.approx(expected)
    assert train(config, tmp_path / "run", StopFlag()) == results, "read back, not repeated"


def test_cache_with_labels_of_another_kind(finished, copied, tmp_path):
    table = dataclasses.replace(Cache.open(finished / "cache").table, label_sets=[(0,)] * 100)
    grids = np.zeros((100, 2, 2, 6), np.float32)
    make_cache(tmp_path / "other", table, [FakeStore("net", {"s.0": grids}, weights="random:0")])
    with pytest.raises(LofftaError, match="are multi-label, and classification needs one class per image"):
        evaluate(copied, "test", cache_root=tmp_path / "other", device="cpu")


def test_one_seed_has_no_spread(finished, tmp_path):
    config = TrainConfig(cache=finished / "cache", head="linear", device="cpu", recipe={"epochs": 1})
    results = train(config, tmp_path / "run", StopFlag())
    assert results["metrics"]["top1"]["std"] is None
    assert len(results["metrics"]["top1"]["per_seed"]) == 1


def test_again_gives_the_same(finished, copied):
    before = results_of(copied)
    after = evaluate(copied, "test", device="cpu")
    assert after["metrics"] == before["metrics"]
    assert after["train_seconds"] == before["train_seconds"]
    assert json.loads(RunPaths(copied).results("test").read_text()) == after


def test_other_splits_have_their_own_file(copied):
    before = RunPaths(copied).results("test").read_bytes()
    results = evaluate(copied, "val+train", device="cpu")
    assert (results["split"], results["n"]) == ("val+train", 59)
    assert results["images"] == {"used": 59, "bad": 1, "trained_on": 49}
    assert "trained_on" not in evaluate(copied, "val", device="cpu")["images"]
    assert json.loads((copied / "results-val+train.json").read_text()) == results
    assert (copied / "results.json").read_bytes() == before
    assert RunPaths(copied).results("val").name == "results-val.json"
    with pytest.raises(UsageError, match="unknown split 'tests'"):
        evaluate(copied, "tests", device="cpu")


def test_moved_cache(finished, copied, tmp_path):
    moved = shutil.copytree(finished / "cache", tmp_path / "elsewhere")
    config = yaml.safe_load((copied / "config.yaml").read_text()) | {"cache": "/nowhere/cache"}
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(LofftaError, match=r"there is no cache here(.|\n)*/nowhere/cache") as caught:
        evaluate(copied, "test", device="cpu")
    assert caught.value.__notes__ == ["a cache that was moved is named with --cache DIR"]
    assert (
        evaluate(copied, "test", cache_root=moved, device="cpu")["metrics"] == results_of(finished / "run")["metrics"]
    )


def test_heads_that_cannot_be_used(finished, copied, tmp_path):
    head = RunPaths(copied).head(1)
    data = head.read_bytes()
    head.write_bytes(data[:40])
    with pytest.raises(LofftaError, match=r"file of trained weights is damaged(.|\n)*delete it"):
        evaluate(copied, "test", device="cpu")
    head.unlink()
    with pytest.raises(LofftaError, match=r"no trained head yet(.|\n)*`loffta train` again") as caught:
        evaluate(copied, "test", device="cpu")
    assert str(head) == caught.value.where
    trained = TrainConfig(cache=finished / "cache", head="linear", seeds=3, device="cpu", recipe={"epochs": 3})
    results = train(trained, copied, StopFlag())  # what both messages say helps, though the run had been finished
    assert head.read_bytes() == data
    assert results["metrics"] == results_of(finished / "run")["metrics"]
    with pytest.raises(LofftaError, match="there is no run here"):
        evaluate(tmp_path / "nothing", "test", device="cpu")


def test_cache_that_got_another_class(finished, copied, tmp_path):
    grown = shutil.copytree(finished / "cache", tmp_path / "grown")
    table = Cache.open(grown).table
    more = make_table([*table.labels, 3], [*table.splits, "train"], classes=("a", "b", "c", "d"))
    Cache.create(grown, more, unit_images=None, thumb_px=8)
    assert evaluate(copied, "test", cache_root=grown, device="cpu")["images"] == {
        "used": 39,
        "bad": 1,
        "known": 100,
        "now": 101,
    }


@pytest.mark.parametrize("order", ["cab", "xcyaz b"])
def test_classes_are_matched_by_name_whatever_their_order(finished, copied, tmp_path, order):
    """Another order, or others in between: the metrics are the very same."""
    table = Cache.open(finished / "cache").table
    names = tuple(order.replace(" ", ""))
    renumbered = dataclasses.replace(table.numbered_by(names), classes=names)
    assert renumbered.labels.tolist() == [names.index(table.classes[label]) for label in table.labels]
    shutil.copytree(finished / "cache", tmp_path / "other")
    (tmp_path / "other" / "images.parquet").write_bytes(renumbered.to_parquet())
    before = results_of(copied)
    after = evaluate(copied, "test", cache_root=tmp_path / "other", device="cpu")
    assert (after["metrics"], after["confusion"]) == (before["metrics"], before["confusion"])


def test_cache_of_other_classes(finished, copied, tmp_path):
    table = dataclasses.replace(Cache.open(finished / "cache").table, classes=("x", "y", "z"))
    grids = np.zeros((100, 2, 2, 6), np.float32)
    make_cache(tmp_path / "other", table, [FakeStore("net", {"s.0": grids}, weights="random:0")])
    before = RunPaths(copied).results("test").read_bytes()
    with pytest.raises(LofftaError, match=r"other classes than the training: 'x', ... instead of 'a', ...") as caught:
        evaluate(copied, "test", cache_root=tmp_path / "other", device="cpu")
    assert caught.value.where == str(tmp_path / "other")
    assert RunPaths(copied).results("test").read_bytes() == before


def test_recipe_that_was_edited(copied):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["recipe"]["epoch"] = 3
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UsageError, match=r"unknown key 'epoch'(.|\n)*config.yaml"):
        evaluate(copied, "test", device="cpu")


def test_relevance_per_backbone_and_tap():
    specs = [
        FeatureSpec("a", ("1", "2"), "grid", (2, 2, 3), 16),
        FeatureSpec("b", ("1",), "grid", (2, 2, 6), 16),
    ]
    heads = [build_head("combo", specs, 2, ComboRecipe(width=4, depth=1, n_heads=1), seed) for seed in (0, 1)]
    for head, of_b in zip(heads, (2.0, 4.0), strict=True):
        with torch.no_grad():
            head.project.weight[:, :3], head.project.weight[:, 3:6], head.project.weight[:, 6:] = 0.0, 1.0, of_b
    found = relevance(heads)
    first, second = found["backbones"]
    assert (first["backbone"], first["inputs"], first["tap"]) == ("b", 6, None)
    assert first["per_seed"] == pytest.approx([2 * 24**0.5, 4 * 24**0.5])
    assert first["score"] == first["raw_score"] == pytest.approx(3 * 24**0.5)  # equal sizes: size weights are 1
    assert second["score"] == pytest.approx(12**0.5)
    assert [(t["backbone"], t["tap"], t["inputs"]) for t in found["taps"]] == [
        ("a", "1", 3),
        ("a", "2", 3),
        ("b", "1", 6),
    ]
    sizes = [(p / 4) ** 0.5 for p in (3, 3, 6)]
    raw = [1e-4, 12**0.5, 3 * 24**0.5]
    assert [t["raw_score"] for t in found["taps"]] == pytest.approx(raw)
    assert [t["score"] for t in found["taps"]] == pytest.approx([r / s for r, s in zip(raw, sizes, strict=True)])

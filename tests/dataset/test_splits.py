"""Parts that are held out: who they are by a loop, how many by chance, and what a run does with them."""

import hashlib
import json

import numpy as np
import pytest

from loffta.config import TrainConfig
from loffta.dataset.splits import check_part, draw_by_key, draw_part, name_some
from loffta.errors import LofftaError, UsageError
from loffta.evaluation.evaluate import evaluate
from loffta.feed.batches import Feed
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths, read_predictions
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table, separable


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


def cache_of(root, labels, splits, *, bad=(), classes=None):
    _, grids = separable(len(labels))
    return make_cache(root, make_table(labels, splits, classes=classes), [FakeStore("net", {"x": grids})], bad=bad)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """No split but train, as a folder of classes has it; two images are quarantined."""
    return cache_of(tmp_path_factory.mktemp("holdout") / "cache", separable(50)[0], ["train"] * 50, bad=(3, 4))


def go(cache, out, head="linear", **changes):
    recipe = changes.pop("recipe", {"epochs": 2, "batch_size": 16})
    config = TrainConfig(cache=cache.paths.root, head=head, device="cpu", recipe=recipe, **changes)
    return train(config, out, StopFlag())


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("sizes", [(50, 50), (97, 13, 2, 1), (2,) * 40, (5, 15, 30), (1, 1, 8), (3,)])
def test_every_class_gives_its_share(sizes, fraction):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    held = draw_part(labels, fraction, 5)
    possible = 0
    for i, size in enumerate(sizes):
        n_held = held[labels == 3 * i].sum()
        assert abs(n_held - min(fraction * size, size - 1)) <= 1
        assert n_held < size
        possible += min(int(np.floor(fraction * size)) + 1, size - 1)
    assert held.sum() == min(round(fraction * len(labels)), possible)


def test_the_seed_decides():
    labels = np.arange(200) % 5
    one = draw_part(labels, 0.2, 1)
    assert np.array_equal(one, draw_part(labels, 0.2, 1))
    other = draw_part(labels, 0.2, 2)
    assert not np.array_equal(one, other)
    assert (one & other).sum() < 20
    picked = np.mean([draw_part(labels, 0.2, seed) for seed in range(300)], axis=0)
    assert 0.1 < picked.min() < picked.max() < 0.3  # no image is never or always held
    pairs = np.repeat(np.arange(10), 2)
    chosen = np.mean([draw_part(pairs, 0.2, seed) for seed in range(300)], axis=0)
    assert chosen.min() > 0.1  # of equal classes no one is always passed over


KEYS = [f"train/{i:05d}.png" for i in range(4000)]


def by_hand(table, rows, fraction, seed=0):
    """Row by row, as docs/training.md has it."""
    held = set()
    for row in rows:
        word = f"{seed}\n{table.keys[row]}".encode()
        number = hashlib.blake2b(word, digest_size=8, person=b"holdout").hexdigest()
        if int(number, 16) / 2**64 < fraction:
            held.add(row)
    spared = set()
    for label in set(table.labels.tolist()):
        of_class = [row for row in rows if table.labels[row] == label]
        if of_class and held >= set(of_class):
            spared.add(max(of_class, key=lambda row: draw_order(table.keys[row], seed)))
    return sorted(held - spared)


def draw_order(key, seed):
    return hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=8, person=b"holdout").digest()


def held_keys(keys, labels_of, fraction, seed=0):
    labels = np.array([labels_of[key] for key in keys])
    return {key for key, held in zip(keys, draw_by_key(keys, labels, fraction, seed), strict=True) if held}


def test_what_is_held_out_stays_held_out_whatever_comes_and_however_it_is_sorted():
    """A set of 300 grows image by image, is listed anew in another order, and loses its test set to nobody."""
    rng = np.random.default_rng(3)
    labels_of = {key: int(label) for key, label in zip(KEYS, rng.integers(0, 12, len(KEYS)) ** 2 // 11, strict=True)}
    order = rng.permutation(KEYS[:300]).tolist()
    before = set()
    for n in range(1, 301):
        held = held_keys(rng.permutation(order[:n]).tolist(), labels_of, 0.2)
        assert before <= held
        assert {labels_of[key] for key in order[:n]} == {labels_of[key] for key in set(order[:n]) - held}
        before = held


def test_the_share_is_right_but_for_chance():
    """By an independent binomial: the number within 4 standard deviations, seeds and keys without a pattern."""
    labels_of = dict.fromkeys(KEYS, 0)
    drawn = {seed: held_keys(KEYS, labels_of, 0.2, seed) for seed in range(20)}
    sigma = (4000 * 0.2 * 0.8) ** 0.5
    assert all(abs(len(held) - 800) < 4 * sigma for held in drawn.values())
    assert abs(np.std([len(held) for held in drawn.values()]) - sigma) < 0.6 * sigma
    assert all(abs(len(drawn[0] & drawn[seed]) - 160) < 4 * (4000 * 0.04 * 0.96) ** 0.5 for seed in range(1, 20))
    assert held_keys(KEYS, labels_of, 0.1) < drawn[0] < held_keys(KEYS, labels_of, 0.5)
    assert drawn[0] == held_keys(KEYS, labels_of, 0.2)
    strange = ["ä/ü.png", "\udcff.png", "", "a\nb"]
    assert draw_by_key(strange, np.zeros(4, dtype=np.int64), 0.999, 0).sum() == 3


def test_nothing_to_hold_out(cache):
    labels = np.array([0, 1, 2])
    held = draw_by_key(["a", "b", "c"], labels, 0.9, 0)
    with pytest.raises(LofftaError, match=r"no image of 3 is held out(.|\n)*--holdout\n(.|\n)*name a split"):
        check_part(held, labels, cache.table, "--holdout")


def test_names():
    assert name_some(["a"]) == "class a"
    assert name_some(["a", "b"]) == "classes a, b"
    assert name_some(list("abcdefg")) == "7 classes (a, b, c, d, e, ...)"


def test_holdout_is_kept_out_recorded_and_found_again(cache, tmp_path, monkeypatch):
    seen, make = [], Feed.__init__
    monkeypatch.setattr(Feed, "__init__", lambda self, f, rows, **k: seen.append(rows) or make(self, f, rows, **k))
    results = go(cache, tmp_path / "run", holdout=0.25)
    trained, measured = seen
    expected = by_hand(cache.table, [row for row in range(50) if row not in (3, 4)], 0.25)
    n = len(expected)
    assert 6 < n < 20
    assert (results["split"], results["n"]) == ("holdout", n)
    assert results["images"] == {"used": n, "bad": 0}
    assert set(trained) | set(measured) == set(range(50)) - {3, 4}
    assert not set(trained) & set(measured)
    paths = RunPaths(tmp_path / "run")
    recorded = json.loads(paths.holdout.read_text())
    assert recorded["rows"] == measured.tolist() == expected
    assert (recorded["of"], recorded["fraction"], recorded["seed"]) == ("train", 0.25, 0)
    again = evaluate(tmp_path / "run", "holdout", device="cpu")
    assert again["metrics"] == results["metrics"]
    assert read_predictions(paths.predictions("holdout"))["row"].tolist() == recorded["rows"]
    assert go(cache, tmp_path / "run", holdout=0.25) == again  # read back
    assert len(seen) == 3
    go(cache, tmp_path / "other", holdout=0.25, data_seed=1)
    assert json.loads(RunPaths(tmp_path / "other").holdout.read_text())["rows"] != recorded["rows"]


def test_holdout_of_another_cache(cache, tmp_path):
    go(cache, tmp_path / "run", holdout=0.25)
    renamed = cache_of(tmp_path / "cache", separable(50)[0], ["val"] * 50)
    with pytest.raises(LofftaError, match=r"held out are not in this cache(.|\n)*--cache"):
        evaluate(tmp_path / "run", "holdout", cache_root=renamed.paths.root, device="cpu")
    smaller = cache_of(tmp_path / "small", separable(20)[0], ["train"] * 20)
    with pytest.raises(LofftaError, match="held out are not in this cache"):
        evaluate(tmp_path / "run", "holdout", cache_root=smaller.paths.root, device="cpu")
    RunPaths(tmp_path / "run").holdout.write_text("{")
    with pytest.raises(LofftaError, match=r"file of the run cannot be read(.|\n)*another --out"):
        evaluate(tmp_path / "run", "holdout", device="cpu")


def test_a_run_that_failed_may_begin_anew_with_another_holdout(cache, tmp_path):
    with pytest.raises(LofftaError, match="not finite"):
        go(cache, tmp_path / "run", holdout=0.25, recipe={"epochs": 9, "lr": 1e38, "weight_decay": 0.0})
    n = go(cache, tmp_path / "run", holdout=0.5)["n"]
    rows = json.loads(RunPaths(tmp_path / "run").holdout.read_text())["rows"]
    assert rows == by_hand(cache.table, [row for row in range(50) if row not in (3, 4)], 0.5)
    assert len(rows) == n


def test_a_class_of_one_image_is_trained_on(tmp_path, capsys):
    labels = np.array([0, 1] * 20 + [2])
    cache = cache_of(tmp_path / "cache", labels, ["train"] * 41, classes=("cat", "dog", "yeti"))
    go(cache, tmp_path / "run", holdout=0.2)
    line = "--holdout: class yeti with one image: it is trained on, and none is held out"
    assert line in capsys.readouterr().err
    assert line in RunPaths(tmp_path / "run").log.read_text()
    assert 40 not in json.loads(RunPaths(tmp_path / "run").holdout.read_text())["rows"]
    single = cache_of(tmp_path / "single", np.arange(3), ["train"] * 3)
    with pytest.raises(LofftaError, match="no image of 3 is held out"):
        go(single, tmp_path / "none", holdout=0.5)
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    splits = ["train"] * 30 + ["val"] * 12 + ["test"] * 18
    return cache_of(tmp_path_factory.mktemp("three") / "cache", separable(60)[0], splits)


def test_validation_is_measured_too(three, tmp_path):
    results = go(three, tmp_path / "run", validate_on="val")
    assert (results["split"], results["n"]) == ("test", 18)
    val = json.loads(RunPaths(tmp_path / "run").results("val").read_text())
    assert (val["split"], val["n"]) == ("val", 12)
    assert len(read_predictions(RunPaths(tmp_path / "run").predictions("test"))["row"]) == 18
    assert len(read_predictions(RunPaths(tmp_path / "run").predictions("val"))["row"]) == 12
    RunPaths(tmp_path / "run").results("val").unlink()
    go(three, tmp_path / "run", validate_on="val")
    assert RunPaths(tmp_path / "run").results("val").exists()


def test_holdout_beside_a_test_split(three, tmp_path):
    assert go(three, tmp_path / "run", holdout=0.2, train_on="train+val")["split"] == "test"
    assert json.loads(RunPaths(tmp_path / "run").results("holdout").read_text())["n"] == len(
        by_hand(three.table, range(42), 0.2)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validate_on": "vl"}, r"unknown split 'vl'(.|\n)*did you mean val"),
        ({"validate_on": "train"}, r"split 'train' is trained on(.|\n)*--holdout 0.2"),
        ({"validate_on": "val", "train_on": "train+val"}, "split 'val' is trained on"),
        ({"validate_on": "val", "holdout": 0.2}, "--holdout and --validate-on exclude each other"),
        ({"test_on": "holdout"}, "unknown split 'holdout'"),
    ],
)
def test_splits_that_cannot_be(three, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        go(three, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_no_split_to_test_on(cache, three, tmp_path):
    with pytest.raises(UsageError, match=r"has no split 'test'(.|\n)*--holdout 0.2(.|\n)*known: train\)"):
        go(cache, tmp_path / "run")
    own = cache_of(tmp_path / "cache", separable(20)[0], ["train"] * 10 + ["holdout"] * 10)
    with pytest.raises(UsageError, match=r"has a split 'holdout' of its own(.|\n)*--test-on holdout"):
        go(own, tmp_path / "run", holdout=0.2)
    assert go(own, tmp_path / "run", test_on="holdout")["n"] == 10
    quarantined = cache_of(tmp_path / "bad", separable(16)[0], ["train"] * 8 + ["test"] * 8, bad=range(8, 16))
    with pytest.raises(LofftaError, match=r"all 8 images of split 'test' are quarantined(.|\n)*loffta info"):
        go(quarantined, tmp_path / "none")


def test_what_is_held_out_is_drawn_once(cache, tmp_path, monkeypatch):
    """Two images are repaired between training and evaluation: a new draw would measure on trained ones."""
    first = go(cache, tmp_path / "run", holdout=0.25)
    paths = RunPaths(tmp_path / "run")
    recorded = paths.holdout.read_bytes()
    paths.results("holdout").unlink()
    monkeypatch.setattr("loffta.training.cached.usable_rows", lambda *a, **k: np.arange(50))
    assert go(cache, tmp_path / "run", holdout=0.25)["metrics"] == first["metrics"]
    assert paths.holdout.read_bytes() == recorded
    paths.results("holdout").unlink()
    paths.holdout.unlink()
    with pytest.raises(LofftaError, match=r"held out are not in this cache any more(.|\n)*another --out"):
        go(cache, tmp_path / "run", holdout=0.25)


def test_images_without_a_label_are_left_out_and_counted(tmp_path, capsys):
    """Kaggle's layout: a test split without labels; and two train images without one."""
    labels = np.where(np.isin(np.arange(50), [0, 7]), -1, separable(50)[0])
    labels[40:] = -1
    cache = cache_of(tmp_path / "cache", labels, ["train"] * 40 + ["test"] * 10)
    with pytest.raises(UsageError, match=r"has no label in split 'test'\n(.|\n)*--holdout 0.2(.|\n)*known: train\)"):
        go(cache, tmp_path / "run")
    results = go(cache, tmp_path / "run", holdout=0.25)
    expected = by_hand(cache.table, [row for row in range(40) if row not in (0, 7)], 0.25)
    assert (results["split"], results["images"]) == ("holdout", {"used": len(expected), "bad": 0})
    assert "images of split train without a label: 2, left out" in capsys.readouterr().err
    assert json.loads(RunPaths(tmp_path / "run").holdout.read_text())["rows"] == expected
    results = go(cache, tmp_path / "other", test_on="train")
    assert results["images"] == {"used": 38, "bad": 0, "unlabelled": 2, "trained_on": 38}
    predicted = read_predictions(RunPaths(tmp_path / "other").predictions("train"))
    assert predicted["row"].tolist() == [row for row in range(40) if row not in (0, 7)]
    assert predicted["label"].tolist() == labels[predicted["row"]].tolist()
    with pytest.raises(LofftaError, match=r"no image of split 'test' has a label \(10 have none\)"):
        evaluate(tmp_path / "other", "test", device="cpu")


def test_one_class_is_trained_on_when_it_is_asked_for(tmp_path):
    cache = cache_of(tmp_path / "cache", np.zeros(50, int), ["train"] * 50, classes=("a",))
    with pytest.raises(LofftaError, match=r"all 50 images of split 'train' are of one class, 'a'(.|\n)*--one-class"):
        go(cache, tmp_path / "run", holdout=0.25)
    assert not (tmp_path / "run").exists()
    assert go(cache, tmp_path / "run", holdout=0.25, one_class=True)["n"] == len(by_hand(cache.table, range(50), 0.25))

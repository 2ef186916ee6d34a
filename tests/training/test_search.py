"""A search against separate runs of every setting; groups, interruptions, and settings that diverge."""

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loffta.config import TrainConfig
from loffta.errors import LofftaError, Stopped
from loffta.feed import batches
from loffta.heads.recipe import Recipe
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths
from loffta.training import cached
from loffta.training import fit as loop
from loffta.training import search as module
from loffta.training import turns as trainer
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table, separable

GRID = {"search_lr": [1e-4, 1e-2, 0.3], "search_weight_decay": [0.0, 0.1]}
RECIPE = {"epochs": 3, "batch_size": 16, **GRID}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Hard enough for the settings to differ; classes are not balanced."""
    labels = np.array([0, 0, 1, 2] * 30)
    rng = np.random.default_rng(0)
    grids = rng.normal(size=(120, 2, 2, 6)).astype(np.float32)
    grids[np.arange(120), :, :, labels] += 0.7
    table = make_table(labels, ["train"] * 60 + ["val"] * 30 + ["test"] * 30)
    return make_cache(tmp_path_factory.mktemp("search") / "cache", table, [FakeStore("net", {"x": grids})])


def go(cache, out, stop=None, **changes):
    recipe = changes.pop("recipe", RECIPE)
    config = TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe=recipe, **changes)
    return train(config, out, stop or StopFlag())


def table_of(out):
    table = json.loads(RunPaths(out).search.read_text())
    return {name: value for name, value in table.items() if name not in ("seconds", "cost")}


def test_scores_are_those_of_separate_runs_and_the_best_is_trained(cache, tmp_path, capsys):
    results = go(cache, tmp_path / "run", search=True, seeds=2, validate_on="val")
    assert "search: 6 settings on 60 images, split val" in capsys.readouterr().err
    table = table_of(tmp_path / "run")
    expected = []
    for lr in GRID["search_lr"]:
        for decay in GRID["search_weight_decay"]:
            out = tmp_path / f"{lr}-{decay}"
            recipe = {**RECIPE, "lr": lr, "weight_decay": decay}
            alone = go(cache, out, recipe=recipe, test_on="val")
            score = alone["metrics"]["balanced_accuracy"]["mean"]
            expected.append({"lr": lr, "weight_decay": decay, "score": score, "diverged_at": None})
    assert table["settings"] == expected
    assert len({entry["score"] for entry in expected}) > 1
    best = max(expected, key=lambda entry: entry["score"])
    chosen = {name: best[name] for name in ("lr", "weight_decay", "score")}
    assert table["chosen"] == chosen
    assert results["search"]["chosen"] == chosen
    assert (results["search"]["metric"], results["search"]["validated_on"]) == ("balanced_accuracy", "split val")
    assert (results["recipe"]["lr"], results["recipe"]["weight_decay"]) == (best["lr"], best["weight_decay"])
    plain = {**RECIPE, "lr": best["lr"], "weight_decay": best["weight_decay"]}
    go(cache, tmp_path / "best", recipe=plain, seeds=2)
    for seed in range(2):
        one, other = (load_file(RunPaths(tmp_path / name).head(seed)) for name in ("run", "best"))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_part_of_train_validates_where_no_split_does(cache, tmp_path, monkeypatch):
    parts, fit = [], loop.fit
    for where in (module, trainer):
        monkeypatch.setattr(where, "fit", lambda s, feed, *a, **k: parts.append(feed) or fit(s, feed, *a, **k))
    measured, predict = [], cached.predict
    monkeypatch.setattr(cached, "predict", lambda h, f, rows, **k: measured.append(rows) or predict(h, f, rows, **k))
    results = go(cache, tmp_path / "run", search=True, recipe=RECIPE | {"batch_size": 2048, "min_batches": 5})
    labels = cache.table.labels
    assert set(parts[0].rows) | set(measured[0]) == set(range(60))
    assert [(labels[parts[0].rows] == c).sum() for c in range(3)] == [24, 12, 12]
    assert parts[-1].rows.tolist() == list(range(60))  # the best settings are trained again, on all of it
    assert [feed.batch_size for feed in (parts[0], parts[-1])] == [12, 12]  # ALF: the batch is of all images
    assert [(labels[measured[0]] == c).sum() for c in range(3)] == [6, 3, 3]
    assert results["search"]["validated_on"] == "20 % of train"


@pytest.mark.parametrize("size", [1, 4])
def test_groups_score_as_all_at_once(cache, tmp_path, monkeypatch, size):
    go(cache, tmp_path / "whole", search=True)
    sizes, fit = [], loop.fit
    monkeypatch.setattr(module, "_room", lambda *_: size)
    monkeypatch.setattr(
        module, "fit", lambda s, f, members, *a, **k: sizes.append(len(members)) or fit(s, f, members, *a, **k)
    )
    go(cache, tmp_path / "groups", search=True)
    assert sizes == ([1] * 6 if size == 1 else [4, 2])
    assert table_of(tmp_path / "groups") == table_of(tmp_path / "whole")


def test_memory_decides_the_size_of_a_group(cache, tmp_path, monkeypatch):
    free, rooms, room = [10**12], [], module._room
    monkeypatch.setattr(module.process, "free_memory_bytes", lambda: free[0])
    monkeypatch.setattr(module, "_room", lambda *a: rooms.append(room(*a)) or rooms[-1])
    n_parameters = 6 * 3 + 3
    one = (16 + 24) * n_parameters + 8 * 12 * 3  # weights, gradients, moments; a checkpoint; the scores of 12 images
    for n, bytes_free in ((6, 10**12), (2, 2 * one * 2), (1, 2 * one * 2 - 2), (1, 0)):
        free[0], rooms[:] = bytes_free, []
        go(cache, tmp_path / f"{n}-{bytes_free}", search=True, feed="stream", recipe={**RECIPE, "epochs": 1})
        assert min(rooms[0], 6) == n


def test_interrupted_anywhere_it_ends_the_same_and_repeats_nothing(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_room", lambda *_: 4)
    go(cache, tmp_path / "whole", search=True)
    step = loop._step
    for moment in (1, 20, 36, 40, 50, 56, 60, 66):  # in the first group, the second, and the retraining
        stop, calls = StopFlag(), []

        def stopping(*arguments, stop=stop, calls=calls, moment=moment):
            calls.append(1)
            if len(calls) == moment:
                stop.signal = signal.SIGUSR1
            return step(*arguments)

        monkeypatch.setattr(loop, "_step", stopping)
        out = tmp_path / str(moment)
        with pytest.raises(Stopped):
            go(cache, out, stop, search=True)
        monkeypatch.setattr(module, "_room", lambda *_: 2)  # memory is another now: the group stays what it was
        monkeypatch.setattr(loop, "_step", lambda *a, calls=calls: calls.append(1) or step(*a))
        go(cache, out, search=True)
        monkeypatch.setattr(module, "_room", lambda *_: 4)
        assert table_of(out) == table_of(tmp_path / "whole")
        head, expected = (load_file(RunPaths(folder).head(0)) for folder in (out, tmp_path / "whole"))
        assert all(torch.equal(head[name], expected[name]) for name in head)
        assert len(calls) == 66  # no step was made twice


def test_killed_between_scores_and_checkpoint(cache, tmp_path, monkeypatch):
    """What a kill leaves there: a group's checkpoint beside the scores that it led to."""
    monkeypatch.setattr(module, "_room", lambda *_: 4)
    go(cache, tmp_path / "whole", search=True)
    write = module.write_json
    for at in (2, 4):  # of the writes: group, scores, group, scores, choice
        calls = []

        def dying(path, table, calls=calls, at=at):
            calls.append(1)
            write(path, table)
            if len(calls) == at:
                RunPaths(path.parent).checkpoint.write_bytes(b"of a group that has its scores")
                raise KeyboardInterrupt

        monkeypatch.setattr(module, "write_json", dying)
        out = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            go(cache, out, search=True)
        monkeypatch.setattr(module, "write_json", write)
        go(cache, out, search=True)
        assert table_of(out) == table_of(tmp_path / "whole")


@pytest.mark.parametrize("begun", ["uniform", "windowed"])
def test_all_settings_are_trained_in_one_order(cache, tmp_path, monkeypatch, begun):
    """Free memory decides what `auto` means: between two groups, where no checkpoint is, it may be another."""
    other = {"uniform": "windowed", "windowed": "uniform"}[begun]
    monkeypatch.setattr(module, "_room", lambda *_: 2)
    monkeypatch.setattr(batches, "choose_order", lambda *_: begun)
    go(cache, tmp_path / "whole", search=True, feed="stream")
    write, calls = module.write_json, []

    def dying(path, table):
        write(path, table)
        calls.append(1)
        if len(calls) == 2:  # the first group, its scores
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        go(cache, tmp_path / "run", search=True, feed="stream")
    monkeypatch.setattr(module, "write_json", write)
    monkeypatch.setattr(batches, "choose_order", lambda *_: other)
    go(cache, tmp_path / "run", search=True, feed="stream")
    assert table_of(tmp_path / "run") == table_of(tmp_path / "whole")
    go(cache, tmp_path / "other", search=True, feed="stream")
    assert table_of(tmp_path / "other") != table_of(tmp_path / "whole")


def test_settings_that_diverge_are_dropped(cache, tmp_path, capsys):
    recipe = {**RECIPE, "search_lr": [1e38, 1e-2], "search_weight_decay": [0.0]}
    results = go(cache, tmp_path / "run", search=True, recipe=recipe)
    settings = table_of(tmp_path / "run")["settings"]
    assert settings[0]["score"] is None
    step = settings[0]["diverged_at"]
    assert f"dropped: lr 1e+38, weight decay 0, not finite at step {step}" in capsys.readouterr().err
    assert "images of that step: train/" in RunPaths(tmp_path / "run").log.read_text()
    assert results["search"]["chosen"]["lr"] == 1e-2
    alone = {**recipe, "search_lr": [1e-2]}
    assert go(cache, tmp_path / "alone", search=True, recipe=alone)["search"]["chosen"] == results["search"]["chosen"]
    with pytest.raises(LofftaError, match=r"every setting of the search diverged(.|\n)*lower") as caught:
        go(cache, tmp_path / "none", search=True, recipe={**recipe, "search_lr": [1e38]})
    assert caught.value.where.endswith("search.json")


def test_equal_scores_give_the_first(tmp_path):
    labels, grids = separable(60, signal=9.0)
    table = make_table(labels, ["train"] * 40 + ["test"] * 20)
    easy = make_cache(tmp_path / "cache", table, [FakeStore("net", {"x": grids})])
    results = go(easy, tmp_path / "run", search=True, recipe={**RECIPE, "epochs": 20, "search_lr": [0.1, 0.2]})
    assert {entry["score"] for entry in table_of(tmp_path / "run")["settings"]} == {1.0}
    assert (results["search"]["chosen"]["lr"], results["search"]["chosen"]["weight_decay"]) == (0.1, 0.0)


def test_a_cache_that_has_changed(cache, tmp_path, monkeypatch):
    go(cache, tmp_path / "run", search=True)
    for path in (RunPaths(tmp_path / "run").results("test"), RunPaths(tmp_path / "run").training):
        path.unlink()
    monkeypatch.setattr("loffta.training.cached.usable_rows", lambda *a, **k: np.arange(50))
    with pytest.raises(LofftaError, match=r"other images than when this search began(.|\n)*another --out"):
        go(cache, tmp_path / "run", search=True)


def test_the_grid_is_the_heads_own_or_the_users(cache, tmp_path):
    with pytest.raises(LofftaError, match="search_lr"):
        go(cache, tmp_path / "run", search=True, recipe={"search_lr": []})
    assert len(Recipe.model_fields["search_lr"].default) >= 3

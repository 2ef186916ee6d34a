"""Training on tiny caches: what is learnt, what it does not depend on, what is said and refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from loffta.errors import LofftaError, UsageError
from loffta.heads import IMAGE_HEADS
from loffta.heads.combo import ComboRecipe
from loffta.heads.relevance import penalty
from loffta.machine.process import StopFlag
from loffta.reporting.tables import read_runs
from loffta.runs.run import RunPaths
from loffta.training import cached, members, turns
from loffta.training import fit as loop
from loffta.training import train as module
from loffta.training.fit import SMALL_STEP
from loffta.training.optim import lr_at
from loffta.training.train import train
from tests.caches import FakeStore, make_cache, make_table, separable, toy_cache
from tests.training.runs import SMALL, TINY, go, log_of, make_config


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tiny tensors on a busy machine: threads would only wait for one another."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache")


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_learns_what_can_be_learnt(cache, tmp_path, head):
    recipe = {"epochs": 40, "batch_size": 16, "lr": 1e-2, "min_steps": None} | SMALL.get(head, {})
    results = go(cache, tmp_path / "run", head, recipe=recipe)
    assert results["metrics"]["top1"]["mean"] == 1.0
    losses = [row["loss"] for row in log_of(tmp_path / "run")]
    assert losses[0] > 0.4  # of ALF's probes, which begin with large weights; of the others more
    assert losses[-1] < min(0.4, losses[0] / 2)


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_does_not_learn_what_is_not_there(tmp_path, head):
    """Labels are shuffled against the features: 0.9 here would be a leak of the test labels."""
    _, grids = separable(120)
    labels = np.random.default_rng(5).integers(0, 3, 120)
    table = make_table(labels, ["train"] * 60 + ["test"] * 60)
    noise = make_cache(tmp_path / "cache", table, [FakeStore("net", {"x": grids})])
    assert go(noise, tmp_path / "run", head)["metrics"]["top1"]["mean"] < 0.6


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_seeds_side_by_side_equal_seeds_alone(cache, tmp_path, monkeypatch, head):
    go(cache, tmp_path / "three", head, seeds=3)
    build, save = loop.Session.member, turns._save
    monkeypatch.setattr(turns, "_save", lambda paths, found: save(paths, [replace(m, seed=0) for m in found]))
    for seed in range(3):
        monkeypatch.setattr(loop.Session, "member", lambda self, recipe, _, seed=seed: build(self, recipe, seed))
        go(cache, tmp_path / f"alone-{seed}", head)
        together = load_file(RunPaths(tmp_path / "three").head(seed))
        alone = load_file(RunPaths(tmp_path / f"alone-{seed}").head(0))
        assert together.keys() == alone.keys()
        assert all(torch.equal(together[name], alone[name]) for name in together)
        assert log_of(tmp_path / "three", seed) == log_of(tmp_path / f"alone-{seed}")
    first, second = (load_file(RunPaths(tmp_path / "three").head(seed)) for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_same_run_whatever_the_feed(cache, tmp_path, monkeypatch):
    make_feed, n_threads = cached.Feed, iter([1, 2, 5, 2])
    monkeypatch.setattr(cached, "Feed", lambda *a, **k: make_feed(*a, **k, n_threads=next(n_threads)))
    heads = []
    for i, feed in enumerate(["host", "stream", "stream"]):
        go(cache, tmp_path / str(i), "combo", feed=feed)
        heads.append(load_file(RunPaths(tmp_path / str(i)).head(0)))
    assert all(torch.equal(heads[0][name], other[name]) for other in heads[1:] for name in heads[0])
    go(cache, tmp_path / "other-order", "combo", data_seed=1)
    other = load_file(RunPaths(tmp_path / "other-order").head(0))
    assert any(not torch.equal(heads[0][name], other[name]) for name in other)


@pytest.mark.parametrize(("n_images", "steps"), [(800, 1300), (1000, 1600)])
def test_steps_and_learning_rates_of_combos_recipe(tmp_path, monkeypatch, n_images, steps):
    table = make_table(np.arange(n_images + 1) % 2, ["train"] * n_images + ["test"])
    grids = np.zeros((n_images + 1, 1, 1, 2), np.float32)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("net", {"x": grids})])
    rates, sizes = [], []

    def cheap(member, prepared, labels, *rest):
        rates.append(member.optimizer.param_groups[0]["lr"])
        sizes.append(len(labels))
        return torch.zeros(())

    monkeypatch.setattr(loop, "_step", cheap)
    go(cache, tmp_path / "run", "combo", recipe={"depth": 1})
    assert len(rates) == steps
    assert sizes[: steps // 100] == [64] * (steps // 100 - 1) + [n_images % 64]
    assert rates == [lr_at(step, steps, ComboRecipe()) for step in range(steps)]
    log = log_of(tmp_path / "run")
    assert [row["step"] for row in log] == list(range(steps // 100, steps + 1, steps // 100))
    assert [row["lr"] for row in log] == rates[steps // 100 - 1 :: steps // 100]


def test_the_optimiser_gets_the_learning_rate(cache, tmp_path, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *args):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    go(cache, tmp_path / "run", "combo")
    expected = [lr_at(i, 6, ComboRecipe(**TINY)) for i in range(6)]
    assert seen == [[lr, lr] for lr in expected]


def test_the_log_says_what_is_fed_and_how_it_went(cache, tmp_path, capsys):
    go(cache, tmp_path / "run", feed="stream")
    n_train = cache.table.split_sizes()["train"]
    lines = RunPaths(tmp_path / "run").log.read_text().splitlines()
    texts = [line.partition(" ")[2] for line in lines]
    assert texts[1].startswith(f"linear: {n_train} images, ")
    assert texts[1].endswith("as asked); uniform order")
    assert texts[1] in capsys.readouterr().err
    losses = [row["loss"] for row in log_of(tmp_path / "run")]
    assert [text.rpartition(",")[0] for text in texts[2:4]] == [
        f"epoch {epoch}: loss {loss:.4f}" for epoch, loss in enumerate(losses)
    ]


def test_what_is_wrong_with_a_split_shows_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_train", None)
    labels, grids = separable(40)
    table = make_table(np.where(np.arange(40) == 3, -1, labels), ["train"] * 16 + ["val"] * 8 + ["test"] * 16)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("net", {"x": grids}, missing=(4,))])
    out = tmp_path / "run"
    with pytest.raises(UsageError, match=r"unknown split 'tset'(.|\n)*did you mean test"):
        go(cache, out, test_on="tset")
    with pytest.raises(LofftaError, match="8 of the 16 images of split 'test'"):
        go(cache, out)
    same = make_table(np.arange(40) // 16, table.splits)
    other = make_cache(tmp_path / "other", same, [FakeStore("net", {"x": grids})])
    with pytest.raises(LofftaError, match=r"16 images of split 'train' are of one class, 'class 0'(.|\n)*--one-class"):
        go(other, out, test_on="val")
    with pytest.raises(UsageError, match="device 'abacus' cannot be used"):
        train(
            make_config(cache, train_on="val", test_on="val").model_copy(update={"device": "abacus"}), out, StopFlag()
        )
    assert not out.exists()


def test_a_split_that_is_trained_on_is_no_test(cache, tmp_path, capsys):
    line = "split 'train' is trained on, too: its results say nothing about new images"
    go(cache, tmp_path / "plain")
    assert line not in capsys.readouterr().err
    go(cache, tmp_path / "run", train_on="test+train", test_on="train")
    assert line in capsys.readouterr().err


def test_augmentation_that_reaches_nothing_is_said(cache, tmp_path, capsys):
    """The linear probe reads means: they have no places that could move."""
    line = "head 'linear' reads no grids here: of --augment only mixing and noise reach it"
    for head, preset, said in [
        ("linear", "trivial", True),
        ("linear", {"token_drop": 0.5}, True),
        ("linear", {"noise_std": 0.1}, False),
        ("linear", "none", False),
        ("combo", "trivial", False),
    ]:
        go(cache, tmp_path / f"{head}-{preset}", head, augment=preset)
        assert (line in capsys.readouterr().err) == said, (head, preset)


def several_classes(root):
    labels, grids = separable(40)
    table = make_table(labels, ["train"] * 20 + ["test"] * 20)
    table = replace(table, label_sets=[(int(c),) if i % 5 else (0, 2) for i, c in enumerate(labels)])
    return make_cache(root, table, [FakeStore("net", {"x": grids})])


@pytest.mark.parametrize("head", IMAGE_HEADS)
def test_every_head_learns_several_classes_an_image(tmp_path, head):
    """Also those that weigh single classes by default."""
    cache = several_classes(tmp_path / "cache")
    assert go(cache, tmp_path / "run", head, seeds=2, augment="loff-ta")["metrics"]["map"]["mean"] > 0.3
    saved = yaml.safe_load(RunPaths(tmp_path / "run").config.read_text())
    assert saved["recipe"]["class_weights"] is False
    recipe = saved["recipe"] | {"class_weights": True}
    with pytest.raises(UsageError, match=r"one class per image(.|\n)*class_weights=false"):
        go(cache, tmp_path / "weighted", head, recipe=recipe)
    assert not (tmp_path / "weighted").exists()


def test_partial(tmp_path):
    labels, grids = separable(40)
    table = make_table(labels, ["train"] * 24 + ["test"] * 16)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("net", {"x": grids}, missing=(1, 4))], bad=(30,))
    with pytest.raises(LofftaError, match="--partial"):
        go(cache, tmp_path / "run")
    results = go(cache, tmp_path / "run", partial=True)
    assert results["images"] == {"used": 7, "bad": 1}
    assert log_of(tmp_path / "run")[0]["step"] == 1  # the 16 images that are there: one batch


def test_unknown_names(cache, tmp_path):
    with pytest.raises(UsageError, match=r"unknown head 'comboo'(.|\n)*did you mean combo"):
        go(cache, tmp_path / "run", "comboo")
    with pytest.raises(UsageError, match=r"unknown task 'clasification'(.|\n)*did you mean classification"):
        go(cache, tmp_path / "run", task="clasification")
    with pytest.raises(UsageError, match=r"unknown key 'epoch'(.|\n)*did you mean epochs"):
        go(cache, tmp_path / "run", recipe={"epoch": 1})
    with pytest.raises(UsageError, match=r"(?s)epochs.*recipe of head 'linear'"):
        go(cache, tmp_path / "run", recipe={"epochs": "many"})
    assert not (tmp_path / "run").exists()


def test_penalty_enters_the_loss(cache, tmp_path, monkeypatch):
    recipe = {**TINY, "epochs": 1, "batch_size": 64, "relevance_weight": 0.5}
    fitted = []
    build = members.build_head

    def keep(*args):
        head = build(*args)
        fitted.append(float(0.5 * penalty(head.project.weight.detach(), head.backbone_groups)))
        return head

    monkeypatch.setattr(members, "build_head", keep)
    with_it = go(cache, tmp_path / "with", "combo", recipe=recipe)
    without = go(cache, tmp_path / "without", "combo", recipe={**recipe, "relevance_weight": 0.0})
    first, second = (log_of(tmp_path / name)[0]["loss"] for name in ("with", "without"))  # of one step, before it
    assert first - second == pytest.approx(fitted[0], rel=1e-4)
    assert "relevance" in with_it
    assert "relevance" not in without


@pytest.mark.parametrize(("limit", "n_threads"), [(SMALL_STEP, 1), (0, 2)])
def test_small_heads_get_one_thread(cache, tmp_path, monkeypatch, limit, n_threads):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # whoever runs the tests may say 1
    monkeypatch.setattr(loop, "SMALL_STEP", limit)
    seen = set()
    step = loop._step
    monkeypatch.setattr(loop, "_step", lambda *a: seen.add(torch.get_num_threads()) or step(*a))
    go(cache, tmp_path / "run")
    assert seen == {n_threads}
    assert torch.get_num_threads() == 2  # what follows, evaluation or another training, does not depend on it


def test_results_and_report_tell_the_length_that_it_was(cache, tmp_path, capsys):
    recipe = {"epochs": 2, "batch_size": 16, "min_steps": 9, "min_batches": 4}
    results = go(cache, tmp_path / "run", recipe=recipe)
    logged = [json.loads(line) for line in RunPaths(tmp_path / "run").metrics(0).read_text().splitlines()]
    assert len(logged) == results["training"]["epochs"] > 2
    assert logged[-1]["step"] >= 9
    assert results["training"]["batch_size"] < 16
    assert "(recipe: min_batches=4, min_steps=9)" in capsys.readouterr().err
    assert read_runs([tmp_path / "run"])[0].row.epochs == len(logged)

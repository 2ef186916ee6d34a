"""Several processes train what one trains: in shares of every batch, or with members dealt out."""

import json
from pathlib import Path

import pytest
import torch

from loffta.errors import UsageError
from loffta.files.tensor_file import read_tensors
from loffta.machine.process import StopFlag
from loffta.machine.ranks import Rank, this_rank
from loffta.runs.run import RunPaths
from loffta.training.ranks import choose_sharing
from loffta.training.train import train
from tests.caches import toy_cache
from tests.training.denseruns import config_of as dense_config
from tests.training.denseruns import dense_cache
from tests.training.rankjobs import finish, reads, start
from tests.training.runs import log_of, make_config

# 40 images: with 9 a batch 5 + 4 for two ranks, then 4 are left over; with 13 one is, which every rank then takes
QUICK = {"epochs": 3, "batch_size": 9, "min_steps": None}
CASES = {
    "linear": {"recipe": {"max_grad_norm": 0.05, "class_weights": True}},
    "one left over": {"recipe": {"batch_size": 13, "max_grad_norm": 0.05}},
    "attentive": {
        "head": "attentive",
        "seeds": 2,
        "recipe": {"attention_dropout": 0.3, "jitter_std": 0.1, "min_batches": None},
    },
    "combo": {"head": "combo", "recipe": {"relevance_weight": 0.3, "grid": 2, "width": 8, "depth": 1}},
    "loff": {
        "head": "loff",
        "augment": {"preset": "loff-ta", "token_drop": 0.2},
        "recipe": {"width": 8, "depth": 1, "n_heads": 2},
    },
}
# Their gradients are 0 but for rounding: a softmax knows no common shift, a BatchNorm no bias before it. Adam divides
# what is left by its own size, so that they differ with the number of threads, too, and with them what BatchNorm sees.
NO_GRADIENT = ("norm_key.bias", "norm_value.bias", "probe.output.bias", "batch_norm.running_mean", "attend.key.bias")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return dense_cache(tmp_path_factory.mktemp("dense") / "cache", kinds=("mask", "boxes"))


def quick(cache, head="linear", **changes):
    return make_config(cache, head, recipe=QUICK | changes.pop("recipe", {}), **changes)


def heads_of(out):
    return {str(path.relative_to(out)): read_tensors(path)[0] for path in sorted(Path(out).rglob("head.safetensors"))}


def assert_close(found, expected):
    """To float tolerance, of each tensor's largest value."""
    assert found.keys() == expected.keys()
    for head in expected:
        assert found[head].keys() == expected[head].keys()
        for name in (name for name in expected[head] if not name.endswith(NO_GRADIENT)):
            one, other = found[head][name].double(), expected[head][name].double()
            off = float((one - other).abs().max() / other.abs().max().clamp(min=1e-3))
            assert off < 2e-4, (head, name, off)


def assert_same(found, expected):
    """To the bit."""
    assert found.keys() == expected.keys()
    for head in expected:
        assert all(torch.equal(found[head][name], expected[head][name]) for name in expected[head])


def one_process(config, out):
    results = train(config, out, StopFlag())
    return heads_of(out), json.loads(json.dumps(results["metrics"]))


LONG = [pytest.param(*case, marks=pytest.mark.long) for case in (("combo", 2), ("loff", 2), ("attentive", 4))]


@pytest.mark.parametrize(("case", "n"), [("linear", 2), ("one left over", 2), ("attentive", 2), *LONG])
def test_shares_of_batches_come_to_the_training_of_one_process(case, n, cache, tmp_path):
    config = quick(cache, **CASES[case])
    expected, _ = one_process(config, tmp_path / "one")
    codes, out, err = finish(start(config, tmp_path / "ranks", n))
    assert codes == [0] * n, err
    assert len(set(out)) == 1  # every rank returns the results of the first
    assert_close(heads_of(tmp_path / "ranks"), expected)
    assert len(expected) == config.seeds
    for seed in range(config.seeds):
        losses = [[epoch["loss"] for epoch in log_of(tmp_path / of, seed)] for of in ("ranks", "one")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (tmp_path / "ranks" / "log.txt").read_text().count("trained in") == 1


@pytest.mark.parametrize(
    ("head", "task"),
    [("dense-linear", "segmentation"), pytest.param("deap", "detection", marks=pytest.mark.long)],
)
def test_dense_losses_are_means_over_what_counts_in_the_whole_batch(head, task, scenes, tmp_path):
    recipe = {"batch_size": 7} | ({"dropout": 0.3} if head == "dense-linear" else {})
    config = dense_config(scenes, head, task, recipe=recipe)
    expected, _ = one_process(config, tmp_path / "one")
    codes, _, err = finish(start(config, tmp_path / "ranks", 2))
    assert codes == [0, 0], err
    assert_close(heads_of(tmp_path / "ranks"), expected)


def test_a_rank_reads_its_share_of_each_batch(cache, tmp_path):
    codes, out, err = finish(start(quick(cache, feed="stream"), tmp_path / "run", 2, function=reads))
    assert codes == [0, 0], err
    seen = [json.loads(said.splitlines()[1]) for said in out]
    assert seen[0][: 3 * 5] == [4, 4, 4, 4, 2] * 3  # of 9, 9, 9, 9 and 4
    assert seen[1] == [5, 5, 5, 5, 2] * 3  # and nothing after the training: the first one measures


def test_a_signal_on_any_rank_stops_all_and_any_number_goes_on(cache, tmp_path):
    config = quick(cache)
    expected, _ = one_process(config, tmp_path / "one")
    codes, _, err = finish(start(config, tmp_path / "run", 2, events={1: "stop"}))
    assert codes == [75, 75], err
    assert all("stopped by SIGUSR1 while training step 5 of 15; kept in checkpoint.safetensors" in one for one in err)
    codes, _, err = finish(start(config, tmp_path / "run", 3, "auto", events={0: "stop"}))
    assert codes == [75] * 3, err
    assert "training step 10 of 15" in err[2]
    train(config, tmp_path / "run", StopFlag())
    assert_close(heads_of(tmp_path / "run"), expected)


def test_a_rank_that_dies_ends_the_others(cache, tmp_path):
    codes, _, err = finish(start(quick(cache), tmp_path / "run", 2, events={1: "die"}))
    assert codes == [1, 9]
    assert "another rank of this training has ended" in err[0]
    assert "the same command goes on from the last checkpoint" in err[0]


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (2, {"head": "attentive", "seeds": 3, "recipe": {"attention_dropout": 0.3}}),
        pytest.param(2, {"folds": 3, "seeds": 2}, marks=pytest.mark.long),
        (3, {"search": True, "seeds": 3, "recipe": {"search_lr": [1e-4, 1e-3, 1e-2, 1e-1]}}),
    ],
)
def test_members_that_are_dealt_out_are_those_of_one_process(n, options, cache, tmp_path):
    config = quick(cache, **options)
    expected, metrics = one_process(config, tmp_path / "one")
    codes, out, err = finish(start(config, tmp_path / "ranks", n, "auto"))
    assert codes == [0] * n, err
    assert [json.loads(said) for said in out] == [metrics] * n
    assert_same(heads_of(tmp_path / "ranks"), expected)
    if "search" in options:
        tables = [json.loads((tmp_path / of / "search.json").read_text()) for of in ("one", "ranks")]
        assert tables[0]["settings"] == tables[1]["settings"]
        assert tables[0]["chosen"] == tables[1]["chosen"]


@pytest.mark.parametrize("options", [{"seeds": 4}, pytest.param({"folds": 3}, marks=pytest.mark.long)])
def test_what_was_dealt_goes_on_with_any_number_of_ranks(options, cache, tmp_path):
    """One rank is stopped and one dies; three go on."""
    config = quick(cache, **options)
    expected, _ = one_process(config, tmp_path / "one")
    running = start(config, tmp_path / "run", 2, "auto", events={0: "stop", 1: "die"})
    codes, _, err = finish(running)
    assert codes == [75, 9], err
    assert not RunPaths(tmp_path / "run").training.exists()
    codes, _, err = finish(start(config, tmp_path / "run", 3, "auto"))
    assert codes == [0] * 3, err
    assert_same(heads_of(tmp_path / "run"), expected)


def test_a_rank_that_died_is_stood_in_for(cache, tmp_path):
    config = quick(cache, seeds=2)
    expected, _ = one_process(config, tmp_path / "one")
    codes, _, err = finish(start(config, tmp_path / "run", 2, "auto", events={1: "die"}))
    assert codes == [0, 9], err
    assert_same(heads_of(tmp_path / "run"), expected)


REFUSED = [
    ({"head": "head2toe"}, "chooses features between its phases"),
    ({"head": "dense-knn", "task": "segmentation"}, "takes no steps"),
    ({"search": True}, "side by side"),
    ({"task": "instances"}, "told from all others"),
    ({"augment": {"mixup_alpha": 0.2}}, "mixed with one of the same batch"),
]


@pytest.mark.parametrize(("options", "why"), REFUSED)
def test_what_cannot_share_batches_is_dealt_out_or_refused(options, why, cache, tmp_path):
    config, paths = make_config(cache, **options), RunPaths(tmp_path / "run")
    assert choose_sharing("auto", Rank(0, 8), config, paths) == "members"
    with pytest.raises(UsageError, match=rf"{why}(.|\n)*--ranks members"):
        choose_sharing("batches", Rank(0, 8), config, paths)


def test_members_where_there_are_enough_and_as_it_began(cache, tmp_path):
    paths = RunPaths(tmp_path)
    assert choose_sharing("auto", Rank(0, 4), make_config(cache, seeds=3), paths) == "batches"
    assert choose_sharing("auto", Rank(0, 3), make_config(cache, seeds=3), paths) == "members"
    assert choose_sharing("auto", Rank(0, 3), make_config(cache, folds=3), paths) == "members"
    paths.checkpoint.touch()
    assert choose_sharing("auto", Rank(0, 3), make_config(cache, seeds=3), paths) == "batches"
    with pytest.raises(UsageError, match="begun with all its members side by side"):
        choose_sharing("members", Rank(0, 3), make_config(cache, seeds=3), paths)
    paths.deal.touch()
    assert choose_sharing("auto", Rank(0, 1), make_config(cache, seeds=3), paths) == "members"
    with pytest.raises(UsageError, match="were dealt out when it began"):
        choose_sharing("batches", Rank(0, 3), make_config(cache, seeds=3), paths)


def test_the_rank_is_what_the_launcher_says(monkeypatch):
    assert this_rank() == Rank()
    for name, value in (("PROCID", 5), ("NTASKS", 6), ("LOCALID", 1), ("NODEID", 2)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert this_rank() == Rank()  # a batch script: no step of srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "6")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")
    assert this_rank() == Rank(5, 6, 1, 2)
    for name, value in (("RANK", 3), ("WORLD_SIZE", 4), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    assert this_rank() == Rank(3, 4, 1, 2)  # torchrun, in a step of srun
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(UsageError, match="process 4 of 4"):
        this_rank()

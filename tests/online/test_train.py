"""`train --online` beside the cached training: one loop, so the same heads, whatever is asked of it."""

import json
from dataclasses import replace

import pytest

from loffta.config import TrainConfig
from loffta.errors import UsageError
from loffta.machine.process import StopFlag
from loffta.online.supply import OnlineSupply
from loffta.reporting.page import write_report
from loffta.reporting.tables import read_runs
from loffta.runs.run import RunPaths
from loffta.training.train import train
from tests.fakes import FakeBackbone
from tests.online.runs import TRAINED, assert_same_weights, config_of, log_of, make_fake_cache, run

COMBO = {"width": 8, "depth": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_fake_cache(tmp_path_factory.mktemp("float32") / "cache", dtype="float32")


def cached(cache, out, head, recipe, taps="all", **more):
    recipe = {"epochs": 2, "batch_size": 4, "lr": 0.01} | recipe
    values = {"seeds": 2, "device": "cpu", "recipe": recipe, "features": (f"fake:{taps}",)} | more
    return train(TrainConfig(cache=cache.paths.root, head=head, **values), out, StopFlag())


@pytest.mark.parametrize(
    ("head", "taps", "recipe", "more"),
    [
        ("online-linear", "blocks.1", {}, {}),
        ("linear", "blocks.0,stages.2", {"class_weights": True}, {}),
        ("linear", "blocks.0", {"precision": "bf16"}, {}),
        ("combo", "all", COMBO | {"relevance_weight": 0.01}, {}),
        ("combo", "all", COMBO, {"augment": "loff-ta"}),
        ("linear", "blocks.1", {"search_lr": [0.001, 0.1]}, {"search": True, "validate_on": "test"}),
        ("combo", "all", COMBO | {"search_lr": [0.001, 0.01]}, {"search": True, "holdout": 0.3}),
        ("head2toe", "all", {"keep_fraction": 0.5, "min_steps": 10}, {}),
    ],
)
def test_frozen_and_plain_it_is_the_cached_training(cache, tmp_path, head, taps, recipe, more):
    """float32 features, no crops: the same numbers on both ways, so the same heads in every bit."""
    expected = cached(cache, tmp_path / "cached", head.removeprefix("online-"), recipe, taps, **more)
    config = config_of(head, taps=taps, seeds=2, recipe=recipe, more=more, augment="none", pooling="mean")
    found = run(config, tmp_path / "online")
    for seed in range(2):
        assert_same_weights(tmp_path / "cached", tmp_path / "online", seed)
        assert log_of(tmp_path / "cached", seed) == log_of(tmp_path / "online", seed)
    both = [RunPaths(tmp_path / name) for name in ("cached", "online")]
    for split in ["test", "holdout"] if "holdout" in more else ["test"]:
        results = [json.loads(paths.results(split).read_text()) for paths in both]
        for of_one in results:
            for name in ("seconds", "train_seconds", "peak_rss_mib", "cost", "timing", "online"):
                of_one.pop(name, None)
            of_one.get("search", {}).pop("seconds", None)
        assert results[0].pop("head") == head.removeprefix("online-")
        assert results[1].pop("head") == head
        assert results[1] == results[0]
    assert found["features"] == expected["features"]  # the very recipe hash
    if "search" in more:
        tables = [json.loads(paths.search.read_text()) for paths in both]
        assert tables[0]["settings"] == tables[1]["settings"]


def test_a_head_of_several_phases_goes_into_a_report(tmp_path):
    config = config_of("head2toe", taps="all", recipe={"keep_fraction": 0.5, "min_steps": 10})
    found = run(config, tmp_path / "run")
    assert {entry["tap"].split(",")[0] for entry in found["kept"]} == {"blocks.0", "blocks.1", "stages.2"}
    write_report(read_runs([tmp_path / "run"]), tmp_path / "report.html")
    assert "head2toe" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "config",
    [
        config_of("combo", taps="all", recipe=COMBO, more={"augment": "loff-ta"}),
        config_of(**TRAINED),
        config_of("fusion", **TRAINED | {"taps": "all"}, recipe={"min_steps": None}),
    ],
    ids=["frozen", "trained", "trained, with dropout"],
)
def test_seeds_side_by_side_equal_seeds_alone(tmp_path, monkeypatch, config):
    """With random crops, which all seeds share; each seed has its own head, noise and, trained, network."""
    parts = ["head", "backbone"] if config.online.unfrozen else ["head"]
    run(config.model_copy(update={"seeds": 2}), tmp_path / "two")
    build = OnlineSupply.member
    for seed in range(2):
        alone = tmp_path / f"alone-{seed}"
        monkeypatch.setattr(OnlineSupply, "member", lambda s, r, _, k=seed: replace(build(s, r, k), seed=0))
        run(config, alone)
        for part in parts:
            assert_same_weights(tmp_path / "two", alone, seed, part, seed_there=0)
        assert log_of(tmp_path / "two", seed) == log_of(alone)
    for part in parts:
        with pytest.raises(AssertionError):
            assert_same_weights(tmp_path / "two", tmp_path / "two", 0, part, seed_there=1)


def test_one_pass_of_a_frozen_network_serves_all_seeds_and_settings(tmp_path):
    backbone = FakeBackbone()
    more = {"search": True, "validate_on": "test"}
    run(config_of(seeds=3, more=more), tmp_path / "run", load=lambda _: backbone)
    assert backbone.batches == [4, 4, 4, 3] * 2 + [4, 1] + [4, 4, 4, 3] * 2 + [4, 1]  # search, scores, training, test


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of(taps="stages.2", pooling="class"), "fake has no class token"),
        (config_of(taps="all"), "online-linear takes one tap"),
        (config_of(unfrozen=True), "fake is no timm model and cannot be trained"),
        (config_of("comboo"), "unknown head 'comboo'"),
        (config_of("combo", taps="blocks.7"), "unknown tap 'blocks.7'"),
        (config_of().model_copy(update={"train_on": "tran"}), "unknown split 'tran'"),
        (config_of("head2toe", **TRAINED), "chooses features and then trains anew"),
        (config_of(**TRAINED, more={"augment": "loff-ta"}), "cannot be augmented: no gradient passes"),
        (config_of(more={"holdout": 0.2, "validate_on": "test"}), "exclude each other"),
        *(
            (config_of().model_copy(update={name: value}), f"--{name.replace('_', '-')} is for training on a cache")
            for name, value in {
                "features": ("fake",),
                "select": 1,
                "feed": "host",
                "order": "windowed",
                "partial": True,
            }.items()
        ),
    ],
)
def test_mistakes(tmp_path, config, words):
    with pytest.raises(UsageError, match=words):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Registers(FakeBackbone):
    """Its prefix tokens are registers alone, as NaFlex has them."""

    def __init__(self):
        super().__init__()
        self.specs = tuple(replace(spec, registers_only=spec.n_prefix > 0) for spec in self.specs)


def test_registers_are_no_class_token(tmp_path):
    found = run(config_of(augment="none"), tmp_path / "auto", load=lambda _: Registers())
    mean = run(config_of(augment="none", pooling="mean"), tmp_path / "mean")
    assert found["metrics"] == mean["metrics"]
    assert_same_weights(tmp_path / "auto", tmp_path / "mean", 0)
    with pytest.raises(UsageError, match="fake has no class token"):
        run(config_of(pooling="class"), tmp_path / "class", load=lambda _: Registers())
    with pytest.raises(UsageError, match="no class token: its prefix tokens are registers"):
        run(config_of("linear", recipe={"pooling": "cls"}), tmp_path / "cls", load=lambda _: Registers())

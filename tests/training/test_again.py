"""What a second `train` into the same folder does, and one behind a stop or a loss that is no number."""

import math
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

from loffta.config import TrainConfig
from loffta.errors import LofftaError, Stopped
from loffta.heads.combo import ComboRecipe
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths
from loffta.tasks import TASKS
from loffta.training import fit as loop
from loffta.training import train as module
from loffta.training.train import train
from tests.caches import toy_cache
from tests.training.runs import TINY, files, go, make_config


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Tiny tensors on a busy machine: threads would only wait for one another."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache")


def test_the_config_is_resolved_and_enough_to_repeat_the_run(cache, tmp_path):
    go(cache, tmp_path / "run", "combo", recipe={**TINY, "grid": None})
    saved = yaml.safe_load(RunPaths(tmp_path / "run").config.read_text())
    store = cache.stores()[0].name
    assert saved["features"] == [f"{store}:a.0,a.1"]
    assert saved["recipe"] == ComboRecipe(**{**TINY, "grid": 4}).model_dump(mode="json")
    train(TrainConfig(**saved), tmp_path / "again", StopFlag())
    one, other = (load_file(RunPaths(tmp_path / name).head(0)) for name in ("run", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_cache_may_be_named_from_another_folder(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(cache.paths.root.parent)
    config = make_config(cache).model_copy(update={"cache": cache.paths.root.relative_to(cache.paths.root.parent)})
    train(config, tmp_path / "run", StopFlag())
    saved = yaml.safe_load(RunPaths(tmp_path / "run").config.read_text())
    assert saved["cache"] == str(cache.paths.root)


def test_finished_run_is_read_back(cache, tmp_path, monkeypatch):
    first = go(cache, tmp_path / "run")
    before = files(tmp_path / "run")
    monkeypatch.setattr(module, "_train", None)
    assert go(cache, tmp_path / "run") == first
    assert files(tmp_path / "run") == before


def test_run_of_another_configuration(cache, tmp_path):
    go(cache, tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(LofftaError, match="another configuration") as caught:
        go(cache, tmp_path / "run", seeds=2, recipe={"epochs": 3, "batch_size": 16})
    assert "    recipe.epochs: 2 -> 3\n    seeds: 1 -> 2\n" in str(caught.value)
    assert "choose another --out" in caught.value.remedy
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize("select", [None, 1])
def test_foreign_folder_is_left_alone(cache, tmp_path, select):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = files(tmp_path)
    with pytest.raises(LofftaError, match="holds something else"):
        go(cache, tmp_path, "combo", select=select)
    with pytest.raises(LofftaError, match="holds something else"):
        go(cache, tmp_path / "thesis.tex")
    assert files(tmp_path) == before


def test_loss_that_is_not_finite(cache, tmp_path, monkeypatch):
    task, calls = TASKS["classification"], []

    def broken(logits, labels):
        calls.append(1)
        return task.loss(logits, labels) * (math.nan if len(calls) == 8 else 1)  # step 3, the second of two seeds

    monkeypatch.setitem(TASKS, "classification", task._replace(loss=broken))
    with pytest.raises(LofftaError, match="loss of seed 1 is not finite at step 3") as caught:
        go(cache, tmp_path / "run", seeds=2)
    assert caught.value.exit_code == 1
    names = caught.value.where.removeprefix("images ").removesuffix(", ...").split(", ")
    assert len(names) == 5
    assert set(names) <= set(cache.table.keys[:40])
    assert "--set lr=" in caught.value.remedy
    monkeypatch.undo()
    go(cache, tmp_path / "run", recipe={"epochs": 1, "lr": 1e-4})  # the remedy works in the same folder


def test_real_divergence_is_found(cache, tmp_path):
    with pytest.raises(LofftaError, match="is not finite at step"):
        go(cache, tmp_path / "run", recipe={"epochs": 9, "batch_size": 16, "lr": 1e38, "weight_decay": 0.0})


def test_stop(cache, tmp_path, monkeypatch):
    stop = StopFlag()
    step = loop._step

    def stopping(*args):
        stop.signal = signal.SIGTERM
        return step(*args)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(Stopped, match=r"SIGTERM while training step 1 of 6; kept in checkpoint(.|\n)*same") as caught:
        train(make_config(cache), tmp_path / "run", stop)
    assert caught.value.exit_code == 75
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint.safetensors",
        "config.yaml",
        "images.json",
        "log.txt",
    ]
    assert "ended: stopped by SIGTERM" in RunPaths(tmp_path / "run").log.read_text()
    monkeypatch.undo()
    go(cache, tmp_path / "run")
    assert "train linear: goes on after step 1 of 6" in RunPaths(tmp_path / "run").log.read_text()
    assert not RunPaths(tmp_path / "run").checkpoint.exists()
    go(cache, tmp_path / "straight")
    one, other = (load_file(RunPaths(tmp_path / name).head(0)) for name in ("run", "straight"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_a_finished_training_goes_with_it(cache, tmp_path):
    """What a kill leaves behind between the last two writes of a training."""
    go(cache, tmp_path / "run")
    RunPaths(tmp_path / "run").checkpoint.write_bytes(b"of the last minute")
    RunPaths(tmp_path / "run").results("test").unlink()
    go(cache, tmp_path / "run")
    assert not RunPaths(tmp_path / "run").checkpoint.exists()

"""Checkpoints: every bit comes back, a training goes on as if nothing had been, and what cannot be used says why."""

import json
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from loffta.config import TrainConfig
from loffta.errors import LofftaError, Stopped
from loffta.feed import batches
from loffta.files import tensor_file
from loffta.files.tensor_file import FORMAT, write_tensors
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths
from loffta.tokens import FeatureSpec
from loffta.training import checkpoint as module
from loffta.training import fit as loop
from loffta.training.checkpoint import Keeper, Position, read_checkpoint
from loffta.training.members import build_member
from loffta.training.train import train
from tests.caches import toy_cache
from tests.training.noisyhead import NoisyRecipe, use_noisy_head

SPECS = [FeatureSpec("net", ("a",), "mean", (4,), 32)]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    use_noisy_head(monkeypatch)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache")


def member(seed=0, **changes):
    return build_member("noisy", SPECS, 3, NoisyRecipe(**changes), seed, torch.device("cpu"))


def go(cache, out, stop=None, **changes):
    config = TrainConfig(cache=cache.paths.root, head="noisy", device="cpu", seeds=2, **changes)
    return train(config, out, stop or StopFlag())


def outcome(out):
    """All that a training made, but for how long it took."""
    heads = [load_file(RunPaths(out).head(seed)) for seed in range(2)]
    tensors = {f"{i}/{name}": tensor.numpy().tobytes() for i, head in enumerate(heads) for name, tensor in head.items()}
    return tensors, [RunPaths(out).metrics(seed).read_text() for seed in range(2)]


def test_tensors_and_state_come_back(tmp_path):
    tensors = {
        "half": torch.randn(3, 2).half(),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "none": torch.empty(0, dtype=torch.float64),
        "bf16": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "rng": torch.Generator().manual_seed(3).get_state(),
        "nan": torch.tensor([float("nan"), float("-inf")]),
    }
    state = {"losses": [0.1, 1e-300, 1 / 3], "words": "ä\n", "nothing": None}
    path = tmp_path / "deep" / "x.safetensors"
    assert read_checkpoint(path) is None
    write_tensors(path, tensors, json.dumps(state))
    back, words = read_checkpoint(path)
    assert words == state
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(torch.nan_to_num(back[name]), torch.nan_to_num(tensor))


def test_every_kind_of_damage_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(40.0), "b": torch.zeros(3)}, json.dumps({"position": [1, 2]}))
    whole = path.read_bytes()
    torn = (whole[:-1], whole[:100], whole[:5], b"", save({"a": torch.zeros(2)}), b"x" * 300)
    assert all(complaint(path, data) for data in torn)
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    unnoticed = {i for i, data in enumerate(flipped) if not complaint(path, data)}
    # a file that names no format, or an older one, is read: by its checksum it holds what was written
    name = whole.index(b'"format":"1"') + 1
    assert unnoticed == {*range(name, name + 6), name + 9}


DAMAGED = r"this checkpoint (is damaged|has format).*delete this file to begin the training anew\Z"


def complaint(path, data):
    """The error of a file with these bytes; None where it is read, and then it holds what was written."""
    path.write_bytes(data)
    try:
        tensors, state = read_checkpoint(path)
    except LofftaError as error:
        message = str(error)
        return message if re.match(DAMAGED, message, re.DOTALL) else pytest.fail(message)
    assert state == {"position": [1, 2]}
    assert torch.equal(tensors["a"], torch.arange(40.0))
    assert torch.equal(tensors["b"], torch.zeros(3))
    return None


def test_newer_format(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    monkeypatch.setattr(tensor_file, "FORMAT", FORMAT + 1)
    write_tensors(path, {"a": torch.zeros(1)}, "{}")
    monkeypatch.undo()
    with pytest.raises(LofftaError, match=f"has format {FORMAT + 1}, and this loffta knows {FORMAT}") as caught:
        read_checkpoint(path)
    assert "continue with the loffta that wrote it" in caught.value.remedy


def test_another_training(tmp_path):
    path = tmp_path / "x.safetensors"
    Keeper(path, {"head": "noisy", "data_seed": 1}, 60.0).save([member()], Position(0, 1))
    with pytest.raises(LofftaError, match=r"of another training:\n    data_seed: 1 -> 2\n") as caught:
        Keeper(path, {"head": "noisy", "data_seed": 2}, 60.0).restore([member()])
    assert "delete this file" in caught.value.remedy


def test_a_head_of_another_shape(tmp_path):
    path = tmp_path / "x.safetensors"
    Keeper(path, {}, 60.0).save([member()], Position(0, 1))
    wider = build_member("noisy", [*SPECS, *SPECS], 3, NoisyRecipe(), 0, torch.device("cpu"))
    with pytest.raises(LofftaError, match=r"does not fit the head \(Error(.|\n)*delete this file"):
        Keeper(path, {}, 60.0).restore([wider])


def test_the_last_good_one_outlives_weights_that_are_no_numbers(tmp_path):
    keeper, found = Keeper(tmp_path / "x.safetensors", {}, 60.0), [member(), member(seed=1)]
    assert keeper.save(found, Position(0, 1))
    before = keeper.path.read_bytes()
    found[1].head.classify.weight.data[0, 0] = float("nan")
    assert not keeper.save(found, Position(0, 2))
    assert keeper.path.read_bytes() == before
    found[1].diverged_at = 2  # dropped: the other goes on
    assert keeper.save(found, Position(0, 3))
    again = [member(), member(seed=1)]
    assert Keeper(keeper.path, {}, 60.0).restore(again) == Position(0, 3)
    assert [m.diverged_at for m in again] == [None, 2]


@pytest.mark.parametrize("augment", ["none", {"preset": "loff-ta", "mixup_alpha": 0.2, "token_drop": 0.2}])
def test_stopped_at_any_step_and_gone_on_with(cache, tmp_path, monkeypatch, augment):
    """Before each of the 12 steps of two phases: noise, moments, selection and the logged losses are all kept."""
    go(cache, tmp_path / "whole", augment=augment)
    expected = outcome(tmp_path / "whole")
    step = loop._step
    for moment in range(1, 12):
        stop, calls = StopFlag(), []

        def stopping(*arguments, stop=stop, calls=calls, moment=moment):
            calls.append(1)
            if len(calls) == 2 * moment:
                stop.signal = signal.SIGTERM
            return step(*arguments)

        monkeypatch.setattr(loop, "_step", stopping)
        out = tmp_path / str(moment)
        with pytest.raises(Stopped, match=f"training step {moment} of 12; kept in checkpoint.safetensors"):
            go(cache, out, stop, augment=augment)
        monkeypatch.setattr(loop, "_step", step)
        go(cache, out, augment=augment)
        assert outcome(out) == expected
        assert not RunPaths(out).checkpoint.exists()


@pytest.mark.parametrize("begun", ["uniform", "windowed"])
def test_gone_on_with_where_the_memory_is_another(cache, tmp_path, monkeypatch, begun):
    """Free memory decides what `auto` means, and how large a window is: the first machine's answer holds."""
    other = {"uniform": "windowed", "windowed": "uniform"}[begun]
    choose_window = batches.choose_window
    monkeypatch.setattr(batches, "choose_order", lambda *_: begun)
    go(cache, tmp_path / "whole", feed="stream")
    step, stop, calls = loop._step, StopFlag(), []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 10:
            stop.signal = signal.SIGTERM
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", stopping)
    with pytest.raises(Stopped):
        go(cache, tmp_path / "run", stop, feed="stream")
    monkeypatch.setattr(loop, "_step", step)
    monkeypatch.setattr(batches, "choose_order", lambda *_: other)
    monkeypatch.setattr(batches, "choose_window", lambda *a: replace(choose_window(*a), n_images=16))
    go(cache, tmp_path / "run", feed="stream")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    go(cache, tmp_path / "other", feed="stream")
    assert outcome(tmp_path / "other") != outcome(tmp_path / "whole")


def test_written_when_it_is_time(cache, tmp_path, monkeypatch):
    positions, save_one = [], Keeper.save
    monkeypatch.setattr(Keeper, "save", lambda self, m, p: positions.append(p) or save_one(self, m, p))
    go(cache, tmp_path / "often", checkpoint_s=1e-9)
    assert positions == [Position(epoch, batch) for epoch in range(4) for batch in range(3)]
    positions.clear()
    go(cache, tmp_path / "never")
    assert positions == []
    assert outcome(tmp_path / "often") == outcome(tmp_path / "never")


def test_seconds_add_up(tmp_path, monkeypatch):
    """And so do the processor's; of the first attempt up to its checkpoint."""
    now, cpu = [100.0], [20.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "process_time", lambda: cpu[0])
    keeper = Keeper(tmp_path / "x", {}, 60.0)
    now[0], cpu[0] = 130.0, 75.0
    keeper.save([member()], Position(0, 1))
    now[0], cpu[0] = 500.0, 3.0  # another process
    keeper = Keeper(tmp_path / "x", {}, 60.0)
    keeper.restore([member()])
    now[0], cpu[0] = 504.0, 10.0
    assert keeper.seconds == 34
    assert keeper.cost.cpu_s == pytest.approx(55 + 7)


def test_a_checkpoint_of_before_costs_were_kept(tmp_path, monkeypatch):
    path = tmp_path / "x"
    Keeper(path, {}, 60.0).save([member()], Position(0, 1))
    tensors, state = read_checkpoint(path)
    del state["cost"]
    write_tensors(path, tensors, json.dumps(state))
    keeper = Keeper(path, {}, 60.0)
    assert keeper.restore([member()]) == Position(0, 1)
    assert 0 <= keeper.cost.cpu_s < 60


def test_a_signal_in_the_evaluation_costs_no_training(cache, tmp_path, monkeypatch):
    from loffta.evaluation import evaluate

    def stopped(*_, **__):
        raise Stopped("stopped", where="here", remedy="again")

    monkeypatch.setattr(evaluate, "predict", stopped)
    with pytest.raises(Stopped):
        go(cache, tmp_path / "run")
    assert json.loads(RunPaths(tmp_path / "run").training.read_text())["epochs"] == 2
    monkeypatch.undo()
    use_noisy_head(monkeypatch)
    monkeypatch.setattr(loop, "_step", None)
    results = go(cache, tmp_path / "run")
    assert results["train_seconds"] > 0


def test_a_checkpoint_on_other_images_is_refused(cache, tmp_path, monkeypatch):
    stop = StopFlag()
    save_one = Keeper.save
    monkeypatch.setattr(
        Keeper, "save", lambda self, m, p: (save_one(self, m, p) and setattr(stop, "signal", 15)) or True
    )
    with pytest.raises(Stopped):
        go(cache, tmp_path / "run", stop, checkpoint_s=1e-9)
    monkeypatch.undo()
    use_noisy_head(monkeypatch)
    monkeypatch.setattr("loffta.training.cached.usable_rows", lambda *a, **k: np.arange(30))
    with pytest.raises(LofftaError, match=r"of another training:\n    images: 40, digest \w+ -> 30, digest"):
        go(cache, tmp_path / "run", checkpoint_s=1e-9)
    RunPaths(tmp_path / "run").checkpoint.unlink()
    go(cache, tmp_path / "run", checkpoint_s=1e-9)


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(cache, tmp_path, monkeypatch):
    step, calls = loop._step, []

    def broken(*arguments):
        calls.append(1)
        return step(*arguments) * (float("nan") if len(calls) == 9 else 1)  # the first seed's fifth step

    monkeypatch.setattr(loop, "_step", broken)
    with pytest.raises(
        LofftaError, match=r"loss of seed 0 is not finite at step 4(.|\n)*No checkpoint was due in 60 s"
    ):
        go(cache, tmp_path / "short")
    calls.clear()
    with pytest.raises(LofftaError, match=r"at step 4(.|\n)*checkpoint.safetensors is of a step before it"):
        go(cache, tmp_path / "run", checkpoint_s=1e-9)
    assert read_checkpoint(RunPaths(tmp_path / "run").checkpoint)[1]["position"] == [1, 1]
    log = RunPaths(tmp_path / "run").log.read_text()
    (line,) = [line for line in log.splitlines() if "images of that step" in line]
    assert len(line.partition("images of that step: ")[2].split(", ")) == 16
    monkeypatch.setattr(loop, "_step", step)
    go(cache, tmp_path / "run", checkpoint_s=1e-9)
    go(cache, tmp_path / "whole")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_head_that_was_deleted_is_trained_again(cache, tmp_path):
    go(cache, tmp_path / "run")
    expected = outcome(tmp_path / "run")
    RunPaths(tmp_path / "run").head(1).unlink()
    RunPaths(tmp_path / "run").results("test").unlink()
    go(cache, tmp_path / "run")
    assert outcome(tmp_path / "run") == expected

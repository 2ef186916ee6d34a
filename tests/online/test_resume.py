"""A training online that was cut off: it goes on inside the epoch, and ends as it would have; what keeps it from it."""

import json
import signal
import threading

import pytest
import torch
from loffta_cli.main import main

from loffta.errors import LofftaError, Stopped
from loffta.machine.process import StopFlag
from loffta.runs.run import RunPaths
from loffta.training import fit as loop
from loffta.training.checkpoint import read_checkpoint
from tests.fakes import FakeBackbone, PngSource
from tests.forked import Forked
from tests.online import child
from tests.online.runs import TRAINED, N, assert_same_weights, config_of, run, stop_at_batch


@pytest.mark.parametrize("more", [{}, {"search": True, "validate_on": "test"}], ids=["plain", "search"])
def test_stopped_again_and_again_it_ends_as_it_would_have(tmp_path, more):
    """A signal at every sixth batch that is computed, wherever that is."""
    more = more | {"augment": "loff-ta"}
    config = config_of("combo", taps="all", recipe={"width": 8, "depth": 1}, seeds=2, more=more)
    expected = run(config, tmp_path / "whole")
    paths, places, found = RunPaths(tmp_path / "stopped"), set(), None
    while found is None:
        stop = StopFlag()

        def interrupt(backbone, stop=stop):
            if len(backbone.batches) == 6:
                stop.signal = signal.SIGTERM

        try:
            found = run(config, paths.root, load=lambda _, do=interrupt: FakeBackbone(before=do), stop=stop)
        except Stopped:
            if (kept := read_checkpoint(paths.checkpoint)) is not None:
                places.add(tuple(kept[1]["position"]))
    assert any(batch for _, batch in places), "it goes on in the middle of an epoch"
    assert found["metrics"] == expected["metrics"]
    for seed in range(2):
        assert_same_weights(tmp_path / "whole", paths.root, seed)
    assert not paths.checkpoint.exists()
    again = run(config, paths.root, load=lambda _: FakeBackbone(before=lambda _: 1 / 0))
    assert again == json.loads(paths.results("test").read_text())


def test_what_was_done_is_not_done_again(tmp_path):
    """The batch that the signal met, the sixth of two epochs of four, is all that is computed twice."""
    checkpoint = stop_at_batch(6, config_of(), tmp_path / "run")
    assert read_checkpoint(checkpoint)[1]["position"] == [1, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    backbone = FakeBackbone()
    run(config_of(), tmp_path / "run", load=lambda _: backbone)
    assert backbone.batches == [4, 4, 3, 4, 1]  # the last two of the test


def test_a_killed_process_ends_as_it_would_have(tmp_path):
    run(child.config(), tmp_path / "whole")
    process = Forked(child.main, tmp_path / "killed")
    for n_lines, _ in enumerate(process.stdout, start=1):
        if n_lines == 7:  # in the second epoch of four batches
            process.kill()
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    epoch, batch = read_checkpoint(RunPaths(tmp_path / "killed").checkpoint)[1]["position"]
    assert (epoch, batch > 0) == (1, True)
    batches = []  # those of the second process, which is this one
    run(child.config(), tmp_path / "killed", load=lambda _: FakeBackbone(before=lambda _: batches.append(1)))
    assert len(batches) == 4 * 4 + 2 - (4 * epoch + batch)  # epochs of batches, two of test images; those done
    for seed in range(2):
        assert_same_weights(tmp_path / "whole", tmp_path / "killed", seed)


def test_other_images_are_not_trained_on_in_the_same_run(tmp_path):
    checkpoint = stop_at_batch(6, config_of(), tmp_path / "run")
    before = checkpoint.read_bytes()
    with pytest.raises(LofftaError, match=r"another configuration(.|\n)*online.images_digest"):
        run(config_of(), tmp_path / "run", PngSource(N + 4))
    assert checkpoint.read_bytes() == before


def test_another_network_is_not_trained_on_in_the_same_run(tmp_path):
    checkpoint = stop_at_batch(6, config_of(), tmp_path / "run")
    before = checkpoint.read_bytes()
    with pytest.raises(LofftaError, match=r"another configuration(.|\n)*online.backbone_hash"):
        run(config_of(), tmp_path / "run", load=lambda _: FakeBackbone(seed=1))
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_that_cannot_be_continued(tmp_path):
    checkpoint = stop_at_batch(6, config_of(), tmp_path / "run")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-7])
    with pytest.raises(LofftaError, match=r"checkpoint is damaged(.|\n)*delete this file") as caught:
        run(config_of(), tmp_path / "run")
    assert caught.value.where == str(checkpoint)
    with pytest.raises(LofftaError, match=r"made with another configuration:\n    recipe.lr: 0.01 -> 0.02"):
        run(config_of(recipe={"lr": 0.02}), tmp_path / "run")


def test_a_training_that_an_older_version_began(tmp_path):
    """It had a checkpoint a seed, of whole epochs, and crops of the seed's own."""
    checkpoint = stop_at_batch(6, config_of(), tmp_path / "run")
    older = tmp_path / "run" / "seed-0" / "online.safetensors"
    older.parent.mkdir()
    checkpoint.rename(older)
    with pytest.raises(LofftaError, match=r"begun by an older loffta(.|\n)*another --out") as caught:
        run(config_of(), tmp_path / "run")
    assert caught.value.where == str(older)


def test_a_run_that_an_older_version_finished_is_read_back(tmp_path, capsys):
    """It had no training.json, and an epoch's seconds in metrics.jsonl."""
    found = run(config_of(), tmp_path / "run")
    paths = RunPaths(tmp_path / "run")
    paths.training.unlink()
    paths.metrics(0).write_text('{"epoch": 0, "step": 4, "loss": 1.0, "lr": 0.01, "seconds": 3.5}\n')
    assert run(config_of(), tmp_path / "run", load=lambda _: FakeBackbone(before=lambda _: 1 / 0)) == found
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


@pytest.mark.parametrize("at", [1, 9])  # in training; behind its two epochs of four batches, in the test
def test_memory_that_is_not_enough(tmp_path, at):
    def full(backbone):
        if len(backbone.batches) == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    with pytest.raises(LofftaError, match=r"memory of cpu is not enough \(CUDA out(.|\n)*--image-px") as caught:
        run(config_of(), tmp_path / "run", load=lambda _: FakeBackbone(before=full))
    assert caught.value.where == str(tmp_path / "run")
    run(config_of(), tmp_path / "run")


def test_a_loss_that_is_not_finite_names_images(tmp_path):
    backbone = FakeBackbone()
    backbone.matrices["blocks.1"] = backbone.matrices["blocks.1"] * float("nan")
    with pytest.raises(LofftaError, match=r"loss of seed 0 is not finite at step 0 .*\n  where:  images 00\d\d.png, "):
        run(config_of(pooling="mean"), tmp_path / "run", load=lambda _: backbone)
    assert "(lr 0.01, weight decay 0.0001); images of that step: 00" in RunPaths(tmp_path / "run").log.read_text()


@pytest.mark.parametrize(("part", "last"), [("head", 8), ("backbone", 8), ("head", 12), ("backbone", 12)])
def test_weights_that_are_no_numbers_replace_no_good_ones(tmp_path, monkeypatch, part, last):
    """The last step of an epoch, or of all, spoils the weights; its loss was still a number."""
    config = config_of(**TRAINED, recipe={"epochs": 3}, more={"checkpoint_s": 1e-3})
    run(config, tmp_path / "whole")
    step, calls = loop._step, []

    def spoil(member, *rest):
        loss = step(member, *rest)
        calls.append(1)
        if len(calls) == last:
            next(member.parts[part].parameters()).data.view(-1)[0] = float("nan")
        return loss

    monkeypatch.setattr(loop, "_step", spoil)
    where = "the last step" if last == 12 else "images 00"
    with pytest.raises(LofftaError, match=f"loss of seed 0 is not finite at step {last - (last == 12)} (.|\n)*{where}"):
        run(config, tmp_path / "run")
    paths = RunPaths(tmp_path / "run")
    assert not paths.head(0).exists()
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(paths.checkpoint)[0].values())
    monkeypatch.setattr(loop, "_step", step)
    run(config, tmp_path / "run")
    for name in ("head", "backbone"):
        assert_same_weights(tmp_path / "whole", tmp_path / "run", 0, name)

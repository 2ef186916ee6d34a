"""kill -9 at seeded moments of a real extraction and training, and a scheduler's signals: the same command then ends
it the same.

`pytest -s` prints the moments and where they landed.
"""

import contextlib
import json
import random
import re
import signal
import time

import numpy as np
import pytest
import zarr

from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from tests import fakes
from tests.caches import toy_cache
from tests.fakes import FakeBackbone, PngSource, cache_files, fake_config
from tests.forked import Forked
from tests.survival.commands import VIT, Command, loffta

TIMED = ("config.yaml", "log.txt", "training.json", "results-out-of-fold.json")  # names of folders, or seconds
SETTLED = ("stores/**/*", "targets/**/*", "done/**/*", "images.parquet", "cache.json")


def start(cache, n_images, delay_s=0.002):
    """A child that is about to extract."""
    child = Forked(fakes.main, [cache, "--images", n_images, "--delay-s", delay_s])
    assert child.stdout.readline() == "begin\n"
    return child


def finish(child):
    out, err = child.communicate()
    assert child.returncode == 0, err
    return out


def state(cache):
    """Where a kill landed, from what it left."""
    if not (cache / "cache.json").exists():
        return "before cache.json"
    parts = sorted(p.name for p in cache.rglob("*.part"))
    done = {(p.parent.name, int(p.stem[1:])) for p in cache.rglob("u*.parquet")}
    shards = {(p.parent.name, int(p.name.split(".")[1])) for p in cache.rglob("c.*")}
    writing = {"shard" if ".c." in p else "done file" if ".u0" in p else "metadata" for p in parts}
    text = f"{len(done)} done files"
    if writing:
        text += f", {len(parts)} parts of {'/'.join(sorted(writing))}"
    return text + (", a shard without its done file" if shards - done else "")


def assert_same_cache(found, expected):
    assert list(found.rglob("*.part")) == []
    assert cache_files(found, *SETTLED) == cache_files(expected, *SETTLED)
    arrays = sorted(p.parent for p in expected.glob("stores/*/*/zarr.json"))
    assert len(arrays) == 5
    for folder in [expected / "targets" / "thumb", *arrays]:
        ours = zarr.open_array(store=found / folder.relative_to(expected), mode="r")[:]
        assert np.array_equal(ours, zarr.open_array(store=folder, mode="r")[:])
        assert ours.dtype == np.uint8 or np.isfinite(ours).all()


@pytest.mark.parametrize("n_kills", [5, pytest.param(50, marks=pytest.mark.long)])
def test_kill_9_at_random_moments(tmp_path, n_kills):
    seed = 20261121 + n_kills
    n_images = 8 * max(16, 2 * n_kills)
    child = start(tmp_path / "whole", n_images)
    assert child.stdout.readline() == "batch\n"
    began = time.monotonic()
    finish(child)
    unit_s = 8 * (time.monotonic() - began) / n_images
    rng, cache, landed = random.Random(seed), tmp_path / "killed", []
    while len(landed) < n_kills:
        child = start(cache, n_images)
        making = len(landed) < 0.1 * n_kills  # the first moments fall into the making of the cache
        if not making:
            assert child.stdout.readline() in ("batch\n", "end 0\n")
        moment_s = rng.uniform(0, 0.03 if making else 2 * unit_s)
        time.sleep(moment_s)
        child.kill()
        child.communicate()
        if child.returncode == 0:  # a machine that has become faster: begin again, with what has been killed so far
            assert_same_cache(cache, tmp_path / "whole")
            cache = tmp_path / f"killed-{len(landed)}"
            continue
        assert child.returncode == -signal.SIGKILL
        landed.append(f"{moment_s * 1000:8.2f} ms after the {'start' if making else 'first batch'}: {state(cache)}")
    finish(start(cache, n_images))
    print(f"\nseed {seed}; {unit_s * 1000:.0f} ms a unit; killed", *landed, sep="\n")
    assert_same_cache(cache, tmp_path / "whole")


@pytest.mark.parametrize("n_kills", [3, pytest.param(30, marks=pytest.mark.long)])
def test_kill_9_while_targets_are_written(tmp_path, n_kills):
    """Beside features that are there: at a seeded rename of each life, or some milliseconds behind it."""
    rng, cache, landed = random.Random(20261128 + n_kills), tmp_path / "killed", []
    words = ["extract", "demo:scenes#px=32,n=24", *VIT, "--kinds", "mean", "--unit-images", "4", "--cache"]
    targets = ["--targets", "mask,instances,depth,boxes", "--target-px", "12"]
    loffta(tmp_path, *words, tmp_path / "whole", *targets)
    loffta(tmp_path, *words, cache)
    features = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in cache.rglob("*") if p.is_file()}
    for _ in range(n_kills):
        command = Command(tmp_path, *words, cache, *targets, hold="pathlib:Path.replace", n_hold=rng.randrange(1, 15))
        while command.process.is_alive() and not (command.files / "held").exists():
            time.sleep(0.002)
        if rng.random() < 0.5:
            command.go()
            time.sleep(rng.uniform(0, 0.02))
        with contextlib.suppress(ProcessLookupError):
            command.signal(signal.SIGKILL)
        assert command.finish().code in (-signal.SIGKILL, 0)
        landed.append(state(cache))
    loffta(tmp_path, *words, cache, *targets)
    print("\nkilled", *landed, sep="\n")
    assert any("parts of" in place for place in landed)
    assert [*cache.rglob("*.part")] == []
    assert cache_files(cache) == cache_files(tmp_path / "whole")
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in features} == features


def test_signals_end_with_75_and_the_same_command_continues(tmp_path):
    n_images = 120
    extract(fake_config(tmp_path / "whole", batch_size=4), PngSource(n_images), lambda _: FakeBackbone(), StopFlag())
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        child = start(tmp_path / "stopped", n_images, delay_s=0.1)
        for _ in range(3):  # inside the second unit of this life
            assert child.stdout.readline() == "batch\n"
        child.send_signal(number)
        out, err = child.communicate()
        assert child.returncode == 75
        stopped = rf"^stopped by {number.name} while extracting unit \d+; finished units are kept$"
        assert re.search(stopped, err, re.MULTILINE)
        assert err.endswith("remedy: run the same command again\n")
        assert out.count("batch") <= 2
        assert list((tmp_path / "stopped").rglob("*.part")) == []
    assert len(list((tmp_path / "stopped").rglob("thumb/u*.parquet"))) >= 4
    extract(fake_config(tmp_path / "stopped", batch_size=4), PngSource(n_images), lambda _: FakeBackbone(), StopFlag())
    assert_same_cache(tmp_path / "stopped", tmp_path / "whole")


def trained(run):
    """What a training leaves, but for times."""
    assert list(run.rglob("*.part")) == list(run.glob("checkpoint*")) == []
    table = json.loads((run / "search.json").read_text())
    files = {p.relative_to(run): p.read_bytes() for p in run.rglob("seed-*/*")}
    return table["settings"], table["chosen"], files, (run / "predictions.parquet").read_bytes()


def stage(run):
    """Where a kill landed, from what it left."""
    if not (run / "search.json").exists():
        return "before the search"
    where = "the training" if "chosen" in (run / "search.json").read_text() else "the search"
    kept = "a checkpoint" if (run / "checkpoint.safetensors").exists() else "no checkpoint"
    return f"{where}, {kept}, {len(list(run.rglob('*.part')))} parts"


@pytest.mark.parametrize("n_kills", [5, pytest.param(20, marks=pytest.mark.long)])
def test_kill_9_at_random_moments_of_a_training(tmp_path, n_kills):
    """Search and training, a checkpoint nearly every step: each life makes some steps and dies in the next."""
    seed = 20261122 + n_kills
    cache = toy_cache(tmp_path / "cache").paths.root
    options = ["--head", "combo", "--search", "--seeds", "2", "--checkpoint-s", "0.002", "--device", "cpu"]
    settings = ["width=8", "depth=1", "grid=2", "batch_size=8", f"epochs={max(5, n_kills)}"]
    settings += ["search_lr=[0.01,0.001]", "search_weight_decay=[0.0]"]
    words = ["train", cache, *options, *(word for setting in settings for word in ("--set", setting)), "--out"]
    loffta(tmp_path, *words, tmp_path / "whole")
    rng, run, landed = random.Random(seed), tmp_path / "run", []
    while len(landed) < n_kills:
        n_held, moment_s = rng.randrange(2, 16), rng.uniform(0, 0.03)
        command = Command(tmp_path, *words, run, hold="loffta.training.fit:_train_batch", n_hold=n_held)
        if len(landed) < 0.2 * n_kills:  # the first moments fall into the making of the run
            moment_s *= 10
        else:
            while command.process.is_alive() and not (command.files / "held").exists():
                time.sleep(0.002)
            command.go()
        time.sleep(moment_s)
        with contextlib.suppress(ProcessLookupError):
            command.signal(signal.SIGKILL)
        done = command.finish()
        if done.code == 0:  # a machine that has become faster: begin again, with what has been killed so far
            assert trained(run) == trained(tmp_path / "whole")
            run = tmp_path / f"run-{len(landed)}"
            continue
        assert done.code == -signal.SIGKILL, done.err
        landed.append(f"{moment_s * 1000:8.2f} ms: {stage(run)}")
    loffta(tmp_path, *words, run)
    print(f"\nseed {seed}; killed", *landed, sep="\n")
    assert trained(run) == trained(tmp_path / "whole")


def test_kill_9_while_a_checkpoint_is_written(tmp_path):
    """Between the writing of the new file and its taking the old one's place: the old one counts, the new one goes."""
    cache = toy_cache(tmp_path / "cache").paths.root
    options = ["--head", "linear", "--checkpoint-s", "1e-9", "--device", "cpu", "--set", "epochs=3"]
    loffta(tmp_path, "train", cache, *options, "--out", tmp_path / "whole")
    words = ["train", cache, *options, "--out", tmp_path / "run"]
    for n_held in (3, 3):  # the first checkpoint, after images.json and config.yaml; then one of those that follow
        command = Command(tmp_path, *words, hold="pathlib:Path.replace", n_hold=n_held).wait_held()
        assert command.signal(signal.SIGKILL).finish().code == -signal.SIGKILL
        assert len(list((tmp_path / "run").glob(".checkpoint*.part"))) == 1
    loffta(tmp_path, *words)
    assert list((tmp_path / "run").rglob("*.part")) == []
    heads = [(tmp_path / name / "seed-0" / "head.safetensors").read_bytes() for name in ("run", "whole")]
    assert heads[0] == heads[1]


def test_kill_9_in_later_folds(tmp_path):
    """Where the second fold is trained and not saved, and in the middle of the third: what was finished stays as it is,
    and all ends as without a kill.
    """
    cache = toy_cache(tmp_path / "cache").paths.root
    words = ["train", cache, "--head", "linear", "--folds", "3", "--seeds", "2", "--checkpoint-s", "1e-9"]
    words += ["--device", "cpu", "--set", "epochs=2", "--set", "batch_size=8", "--out"]
    loffta(tmp_path, *words, tmp_path / "whole")
    run, kept = tmp_path / "run", {}
    for fold, function, n_held in ((1, "turns:_save", 2), (2, "fit:_train_batch", 4)):
        command = Command(tmp_path, *words, run, hold=f"loffta.training.{function}", n_hold=n_held).wait_held()
        assert command.signal(signal.SIGKILL).finish().code == -signal.SIGKILL
        assert [path.parent.name for path in run.rglob("checkpoint.safetensors")] == [f"fold-{fold}"]
        heads = {path: path.stat().st_mtime_ns for path in run.rglob("head.safetensors")}
        assert {path.parts[-3] for path in heads} == {f"fold-{k}" for k in range(fold)}
        assert kept.items() <= heads.items(), "they are not trained again"
        kept = heads
    loffta(tmp_path, *words, run)
    left, wanted = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in TIMED}
        for root in (run, tmp_path / "whole")
    )
    assert left == wanted

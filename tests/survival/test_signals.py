"""A scheduler's signals at every stage of every command: exit 75, nothing half-written, and the same command goes on.

A command is held at the stage, signalled there and let go only where it may finish something first: what it would
not give up by itself hangs, and fails the test.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.fakes import cache_files
from tests.survival.commands import Command, assert_one_error, loffta

SIGNALS = [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]  # test_machine.py has the others, too
TRAIN = ["--head", "linear", "--set", "epochs=2", "--device", "cpu"]
AGAIN = "run the same command again"


def assert_stopped(done, number, doing):
    assert "Traceback" not in done.err
    assert done.code == 75, done.err
    assert_one_error(done, f"stopped by {number.name} while {doing}", "this process", AGAIN)


@pytest.mark.parametrize(
    ("hold", "n_hold", "doing"),
    [
        ("loffta.images.folder:ImageFolder.listing", 1, "listing the images"),
        ("loffta.backbones.timm_backbone:load_timm", 1, "loading test_vit"),
        ("loffta.backbones.weights:digest_state_dict", 1, "loading test_vit"),
        ("loffta.images.batches:ImageStream.take", 6, "extracting unit"),
        ("timm.models.vision_transformer:Block.forward", 28, "extracting unit"),
    ],
)
def test_extract_gives_up_at_once(tmp_path, extract_words, whole, hold, n_hold, doing):
    """Never let go: only the signal ends it."""
    cache = tmp_path / "cache"
    for number in (signal.SIGTERM, signal.SIGUSR1) if n_hold > 1 else (signal.SIGUSR2,):
        done = Command(tmp_path, *extract_words, cache, hold=hold, n_hold=n_hold).wait_held().signal(number).finish()
        assert_stopped(done, number, doing)
        assert list(tmp_path.rglob("*.part")) == []
    loffta(tmp_path, *extract_words, cache)
    assert cache_files(cache) == cache_files(whole)


@pytest.mark.parametrize("number", SIGNALS)
def test_extract_finishes_what_it_writes(tmp_path, extract_words, whole, number):
    """Held between a shard and its done file: that unit is finished or dropped, never half there."""
    cache = tmp_path / "cache"
    command = Command(tmp_path, *extract_words, cache, hold="loffta.store.writer:write_done", n_hold=5).wait_held()
    command.signal(number).signal(number)  # impatient
    time.sleep(0.05)
    assert_stopped(command.go().finish(), number, "extracting unit")
    assert list(cache.rglob("*.part")) == []
    assert "no damage found\n" in loffta(tmp_path, "verify", cache, "--deep").out
    loffta(tmp_path, *extract_words, cache)
    assert cache_files(cache) == cache_files(whole)


@pytest.mark.parametrize("number", SIGNALS)
def test_verify_gives_up_at_once(tmp_path, whole, number):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    command = Command(tmp_path, "verify", whole, "--deep", hold="loffta.store.verify:read_done", n_hold=7)
    assert_stopped(command.wait_held().signal(number).finish(), number, "looking for damage")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_repair_is_gone_on_with(tmp_path, extract_words, whole):
    cache = tmp_path / "cache"
    loffta(tmp_path, *extract_words, cache)
    for unit in (1, 3):
        (shard,) = cache.glob(f"stores/*/grid-0/c.{unit}.*")
        shard.write_bytes(shard.read_bytes()[:-1])
    words = ["verify", cache, "--repair"]
    command = Command(tmp_path, *words, hold="loffta.extraction.forward:Job.forward").wait_held()
    done = command.signal(signal.SIGUSR1).finish()
    assert_stopped(done, signal.SIGUSR1, "extracting unit")
    assert done.err.endswith("also from another SOURCE if the images have moved\n")
    found = loffta(tmp_path, "verify", cache, "--deep", code=4).out
    assert [line.split(",")[1] for line in found.splitlines() if "is not written anew yet" in line] == [
        " unit 1: it was damaged",
        " unit 3: it was damaged",
    ]
    loffta(tmp_path, *extract_words, cache)
    assert cache_files(cache) == cache_files(whole)


@pytest.mark.parametrize(
    ("hold", "doing"),
    [
        ("loffta.feed.sources:_load", "reading the features"),
        ("loffta.evaluation.evaluate:predict", "evaluating split 'test'; no results were written"),
    ],
)
def test_train_gives_up_at_once(tmp_path, whole, hold, doing):
    words = ["train", whole, *TRAIN, "--out", tmp_path / "run"]
    done = Command(tmp_path, *words, hold=hold).wait_held().signal(signal.SIGTERM).finish()
    assert_stopped(done, signal.SIGTERM, doing)
    assert not (tmp_path / "run" / "results.json").exists()
    expected = loffta(tmp_path, "train", whole, *TRAIN, "--out", tmp_path / "two")
    assert loffta(tmp_path, *words).figures == expected.figures


@pytest.mark.parametrize("number", SIGNALS)
def test_train_ends_after_the_step(tmp_path, whole, number):
    words = ["train", whole, *TRAIN, "--out", tmp_path / "run"]
    done = Command(tmp_path, *words, hold="loffta.training.fit:lr_at").wait_held().signal(number).go().finish()
    assert_stopped(done, number, "training step 1 of")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.safetensors",
        "config.yaml",
        "images.json",
        "log.txt",
    ]
    loffta(tmp_path, *words)


def test_a_training_whose_output_is_lost_ends_well(tmp_path, whole):
    """From the first step on nobody reads what it says: heads and results are there, and the code tells of stdout."""
    words = ["train", whole, *TRAIN, "--out"]
    expected = loffta(tmp_path, *words, tmp_path / "all")
    done = (
        Command(tmp_path, *words, tmp_path / "run", hold="loffta.training.fit:lr_at")
        .wait_held()
        .lose_output()
        .go()
        .finish()
    )
    assert done.code == 1
    head = "seed-0/head.safetensors"
    assert (tmp_path / "run" / head).read_bytes() == (tmp_path / "all" / head).read_bytes()
    assert loffta(tmp_path, *words, tmp_path / "run").figures == expected.figures


def test_evaluate_gives_up_at_once(tmp_path, whole):
    run = tmp_path / "run"
    loffta(tmp_path, "train", whole, *TRAIN, "--out", run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    command = Command(
        tmp_path, "evaluate", run, "--split", "train", hold="loffta.feed.batches:Feed.in_order"
    ).wait_held()
    done = command.signal(signal.SIGINT).finish()
    assert_stopped(done, signal.SIGINT, "evaluating split 'train'")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_audit_gives_up_at_once(tmp_path, whole):
    words = ["audit", whole, "--fix", tmp_path / "fixes.csv", "--device", "cpu"]
    held = Command(tmp_path, *words, hold="loffta.auditing.audit:find_nearest").wait_held()
    done = held.signal(signal.SIGINT).finish()
    assert_stopped(done, signal.SIGINT, "auditing")
    assert not (tmp_path / "fixes.csv").exists()


def test_a_command_that_only_looks_dies_of_the_signal(tmp_path, whole):
    for number, code in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)):
        done = (
            Command(tmp_path, "info", whole, hold="loffta.store.inventory:take_inventory")
            .wait_held()
            .signal(number)
            .finish()
        )
        assert done.code == code
        assert "Traceback" not in done.err


def test_a_process_from_its_own_start(tmp_path, extract_words, whole):
    """Without the fork server: `python -m loffta_cli`, signalled again and again from its first moment on."""
    words = [sys.executable, "-m", "loffta_cli", *map(str, extract_words), str(tmp_path / "cache")]
    for delay_s in (0.3, 4):
        child = subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, env={**os.environ, "SLURM_CPUS_PER_TASK": "1"}
        )
        time.sleep(delay_s)
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=120)
        assert child.returncode in (-signal.SIGTERM, 75, 0), err  # while Python starts, the signal is its own end
        assert "Traceback" not in err
        assert list(tmp_path.rglob("*.part")) == []
    loffta(tmp_path, *extract_words, tmp_path / "cache")
    assert cache_files(tmp_path / "cache") == cache_files(whole)

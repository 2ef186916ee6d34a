"""Who may train in a folder: one at a time, whoever else lives, sleeps, was killed, or sits on another machine."""

import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, replace
from threading import Event, Thread

import pytest
import torch

from loffta.config import TrainConfig
from loffta.errors import LofftaError
from loffta.machine.process import StopFlag
from loffta.runs import claims
from loffta.runs.claims import SILENT_S, Claim, Owner, claimed, take
from loffta.runs.run import RunPaths, load_head
from loffta.training import fit as loop
from loffta.training.train import train
from tests.caches import toy_cache


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setattr(claims, "WATCH_S", 0.05)


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "run").mkdir()
    return RunPaths(tmp_path / "run")


def leave(paths, number, owner, *, silent_s=0.0):
    """A claim of somebody else."""
    path = paths.claim(number)
    path.write_text(json.dumps(asdict(owner)))
    os.utime(path, (time.time() - silent_s,) * 2)
    return path


def here(**changes):
    return replace(claims._this_process(), **changes)


def test_one_at_a_time_and_nothing_is_left(paths):
    with claimed(paths) as claim:
        claim.check()
        with pytest.raises(
            LofftaError, match=rf"another training is at work in this folder: process {os.getpid()} on "
        ):
            take(paths)
        assert list(paths.claims()) == [1]
    assert list(paths.root.iterdir()) == []
    with pytest.raises(ZeroDivisionError), claimed(paths):
        raise ZeroDivisionError
    assert list(paths.root.iterdir()) == []


def test_a_killed_process_blocks_nobody(paths):
    child = subprocess.Popen(["sleep", "60"])
    began = claims.processes.began(child.pid)
    leave(paths, 3, here(pid=child.pid, began=began), silent_s=9 * SILENT_S)
    with pytest.raises(LofftaError, match=rf"process {child.pid} on .*, since \d{{4}}-") as caught:
        take(paths)  # it lives, however long it has been silent: suspended, or its file server away
    assert "the same command then goes on from there. Or choose another --out" in caught.value.remedy
    child.kill()
    while claims.psutil.Process(child.pid).status() != claims.psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert list(take(paths).paths.claims()) == [4]  # nobody has waited for it yet, and it writes no more
    child.wait()


def test_the_number_of_a_dead_process_is_used_again(paths):
    leave(paths, 1, here(began="ffff" if here().began != "ffff" else "fffe"))
    assert take(paths).number == 2


@pytest.mark.parametrize("owner", [Owner("elsewhere-12345678", os.getpid(), "0001", "node 7", "2026-01-01"), Owner()])
def test_of_another_machine_silence_tells(paths, owner):
    """Another host, or another container of the same one: its processes cannot be asked, and a pid means nothing."""
    leave(paths, 1, owner, silent_s=SILENT_S - 5)
    with pytest.raises(
        LofftaError, match=rf"on {owner.node}, since .*; it was heard of 17\d s ago, and after 180 s of"
    ):
        take(paths)
    leave(paths, 1, owner, silent_s=SILENT_S + 1)
    assert list(take(paths).paths.claims()) == [2]


def test_a_claim_of_another_clock_lives_while_it_is_touched(paths, monkeypatch):
    """Its machine's clock is ten minutes behind, and the file system writes that."""
    monkeypatch.setattr(claims, "WATCH_S", 20.0)
    path = leave(paths, 1, Owner("elsewhere", 1), silent_s=600)
    ended = Event()

    def beat():
        while not ended.wait(0.02):
            os.utime(path, (time.time() - 600,) * 2)

    heart = Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(LofftaError, match="another training is at work"):
            take(paths)
    finally:
        ended.set()
        heart.join()
    monkeypatch.setattr(claims, "WATCH_S", 0.05)
    assert take(paths).number == 2


@pytest.mark.parametrize("ahead_s", [-600, 600])
def test_the_clock_of_this_machine_does_not_count(paths, monkeypatch, ahead_s):
    """Both times are those of the file server."""
    leave(paths, 1, Owner("elsewhere", 1), silent_s=5)
    now = time.time
    monkeypatch.setattr(claims.time, "time", lambda: now() + ahead_s)
    with pytest.raises(LofftaError, match=r"heard of \d s ago"):
        take(paths)


def test_a_job_that_slurm_starts_again_has_ended(paths, monkeypatch):
    """On another node at once; a second process of the same start of a job is not the same."""
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    before = replace(here(), host="elsewhere")
    leave(paths, 1, before)
    with pytest.raises(LofftaError, match="another training is at work"):
        take(paths)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert take(paths).number == 2
    leave(paths, 2, replace(before, job="lab/18"))
    with pytest.raises(LofftaError, match="another training is at work"):
        take(paths)


@pytest.mark.parametrize("data", [b"", b"[" * 50_000, b'{"pid": "many"}', b"\xff\x00"])
def test_a_damaged_claim_is_judged_by_its_time(paths, data):
    paths.claim(1).write_bytes(data)
    with pytest.raises(LofftaError, match="process 0 on a host that is not known"):
        take(paths)
    os.utime(paths.claim(1), (time.time() - SILENT_S - 1,) * 2)
    assert take(paths).number == 2


def test_strangers_files_are_no_claims(paths):
    for name in ("claim-.json", "claim-1.json.txt", "claim-x.json", "claim-12345678901.json"):
        (paths.root / name).touch()
    assert take(paths).number == 1


def test_the_heart_beats_until_the_claim_is_lost(paths, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.01)
    with claimed(paths) as claim:
        os.utime(claim.path, (0, 0))
        while claim.path.stat().st_mtime == 0:
            time.sleep(0.005)
        claim.path.unlink()
        claim.beat(Event())  # returns
        with pytest.raises(LofftaError, match="taken this training over: its claim is gone"):
            claim.check()


def test_two_that_pass_over_the_same_dead_one(paths, monkeypatch):
    """Both have seen it dead; the one whose file is there first goes on, the other meets it."""
    leave(paths, 1, Owner("elsewhere", 1), silent_s=SILENT_S + 1)
    create, faster = claims.create_file, []

    def slow(path, data):
        if not faster:
            faster.append(1)
            faster[0] = take(paths)
        return create(path, data)

    monkeypatch.setattr(claims, "create_file", slow)
    with pytest.raises(LofftaError, match="another training is at work"):
        take(paths)
    assert list(paths.claims()) == [2]
    faster[0].check()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("toy") / "cache")


def config_of(cache, **changes):
    recipe = {"epochs": 3, "batch_size": 16}
    return TrainConfig(cache=cache.paths.root, head="linear", device="cpu", recipe=recipe, **changes)


def test_a_second_training_is_refused_and_the_first_ends_as_it_would_have(cache, tmp_path, monkeypatch):
    train(config_of(cache), tmp_path / "alone", StopFlag())
    step, seen = loop._step, []

    def meanwhile(*arguments):
        if not seen:
            for seed in (0, 5):  # the same command, and another
                with pytest.raises(LofftaError, match="another training is at work in this folder") as caught:
                    train(config_of(cache, data_seed=seed), tmp_path / "run", StopFlag())
                seen.append(caught.value.where)
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", meanwhile)
    train(config_of(cache), tmp_path / "run", StopFlag())
    assert seen == [str(tmp_path / "run")] * 2
    ours, expected = (load_head(RunPaths(tmp_path / name).head(0)) for name in ("run", "alone"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert RunPaths(tmp_path / "run").claims() == {}


@pytest.mark.parametrize("search", [False, True])
def test_one_that_slept_while_another_took_over_writes_nothing_more(cache, tmp_path, monkeypatch, search):
    """A suspended machine: its claim falls silent, another training begins and ends, then it wakes up."""
    step, written = loop._step, {}
    other = config_of(cache, search=True) if search else config_of(cache, data_seed=5)

    def suspended(*arguments):
        if not written:
            written[()] = b""
            (claim,) = RunPaths(tmp_path / "run").claims().values()
            claim.write_text(json.dumps(asdict(Owner("elsewhere", 1))))
            os.utime(claim, (0, 0))
            train(other, tmp_path / "run", StopFlag())
            written.update({p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()})
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", suspended)
    with pytest.raises(LofftaError, match=r"another process has taken this training over(.|\n)*was this one suspended"):
        train(config_of(cache, search=search), tmp_path / "run", StopFlag())
    del written[()]
    log = RunPaths(tmp_path / "run").log
    assert {p: p.read_bytes() for p in written if p != log} == {p: data for p, data in written.items() if p != log}
    assert f"data_seed: {other.data_seed}\n" in RunPaths(tmp_path / "run").config.read_text()


def test_a_claim_is_no_work(cache, tmp_path):
    """What a killed training leaves before its first file does not forbid another configuration."""
    before = signal.getsignal(signal.SIGUSR1)
    run = RunPaths(tmp_path / "run")
    run.root.mkdir()
    leave(run, 1, Owner("elsewhere", 1), silent_s=SILENT_S + 1)
    assert isinstance(take(run), Claim)
    run.claim(2).unlink()
    leave(run, 1, here(pid=2**22 - 1, began="0001"))
    train(config_of(cache), run.root, StopFlag())
    assert run.results("test").exists()
    assert signal.getsignal(signal.SIGUSR1) is before

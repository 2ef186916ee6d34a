"""Real extractions and trainings on a real SLURM, interrupted in every way it has: no byte of a result is another.

Both are held still (SIGSTOP) in mid-work before they are struck: so the blow meets no job that has just ended.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from loffta.pipeline.resources import Asked, Resources, Site
from loffta.pipeline.slurm import Wishes, submit_missing
from loffta.pipeline.stages import Stage
from loffta.pipeline.status import look
from tests.fakes import cache_files

OUT = Path("out")
EXTRACT = "extract demo:digits --backbone test_vit --weights random:0 --image-px 32 --kinds mean --device cpu"
EXTRACT += " --limit 480 --unit-images 16"
TRAIN = "train {cache} --head linear --device cpu --partial --set epochs=100 --checkpoint-s 0.2"


def words_of(cache, *, reads, run):
    """The two commands, each without what the other makes: both can run at once."""
    return [*EXTRACT.split(), "--cache", str(cache)], [*TRAIN.format(cache=reads).split(), "--out", str(run)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A cache and a run that nobody interrupted, by the commands of the jobs."""
    root = tmp_path_factory.mktemp("alone")
    for words in words_of(root / "cache", reads=root / "cache", run=root / "run"):
        command = [Path(sys.executable).parent / "loffta", *words]
        subprocess.run(command, env=os.environ | {"SLURM_CPUS_PER_TASK": "1"}, check=True, timeout=240)
    return root


def until(condition, seconds, told, *, pause_s=0.05):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, told()
        time.sleep(pause_s)
    return found


def n_done():
    return len(list(Path("cache").glob("done/**/*.parquet")))


def processes(program=""):
    """Those of this test's jobs, by id; of a Python program, only those that run it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = folder.joinpath("cwd").readlink() == Path.cwd()
            of_job = b"SLURM_ARRAY_TASK_ID=" in folder.joinpath("environ").read_bytes()
            words = folder.joinpath("cmdline").read_bytes().decode().split("\0")
            if ours and of_job and (not program or (words[1].endswith("/loffta") and words[2] == program)):
                found.append(int(folder.name))
    return found


def hold_both(held):
    """Stops each in the middle: behind some units, behind a checkpoint."""
    ready = {"extract": lambda: n_done() >= 3, "train": Path("run/checkpoint.safetensors").exists}
    for program in ready.keys() - held.keys():
        if ready[program]():
            (held[program],) = processes(program)
            os.kill(held[program], signal.SIGSTOP)
    return len(held) == len(ready)


def told_to_stop(pid):
    """A signal waits for the process, or SLURM has woken it up to get one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    pending = int(re.search(r"^ShdPnd:\s*(\w+)", status, re.M)[1], 16)
    return bool(pending) or not re.search(r"^State:\s*T", status, re.M)


def wake_when_told(held):
    for pid in held:
        until(lambda pid=pid: told_to_stop(pid), 150, lambda: "no signal has come")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def fill():
    """A job of the higher partition, on all nodes."""
    high = ["sbatch", "-phigh", "--mem=50M", "-c4", "-N3", "-n3", "--wrap=sleep 4", "-o/dev/null"]
    subprocess.run(high, check=True, capture_output=True, timeout=30)


def preempt(lab, held, states):
    fill()
    wake_when_told(held)


def preempt_and_kill(lab, held, states):
    """SLURM wakes up what it asks to stop: it is stopped again, until the KILL behind KillWait."""
    fill()
    end = time.monotonic() + 60
    while held and time.monotonic() < end:
        for pid in [*held]:
            try:
                os.kill(pid, signal.SIGSTOP)
            except ProcessLookupError:
                held.remove(pid)
        time.sleep(0.0005)


def crash(lab, held, states):
    """All processes of the jobs' nodes die at once."""
    nodes = {state.why.rpartition(" ")[2] for state in states}
    daemons = [int((lab / "run" / f"slurmd-{node}.pid").read_text()) for node in nodes]
    steps = subprocess.run(["pgrep", "-x", "slurmstepd"], capture_output=True, text=True, check=False).stdout.split()
    of_lab = [int(step) for step in steps if str(lab) in os.path.realpath(f"/proc/{step}/cwd")]
    for pid in (*daemons, *of_lab, *processes()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for node in nodes:
        down = ["scontrol", "update", f"nodename={node}", "state=down", "reason=crash"]
        subprocess.run(down, check=True, timeout=30)


def limit(lab, held, states):
    wake_when_told(held)


def kill(lab, held, states):
    """As the kernel does where memory ends. Nobody starts it again but the same command."""
    for pid in held:
        os.kill(pid, signal.SIGKILL)


def requeue(lab, held, states):
    for state in states:
        subprocess.run(["scontrol", "requeue", state.job], check=True, timeout=30)
    wake_when_told(held)


def cancel(lab, held, states):
    for state in states:
        subprocess.run(["scancel", "--signal=USR1", state.job], check=True, timeout=30)
    wake_when_told(held)


@pytest.mark.long
@pytest.mark.parametrize(
    ("strike", "asked", "told"),
    [
        (preempt, {"partition": "lowgrace"}, "stopped by SIGUSR1"),
        (preempt, {"partition": "low"}, "stopped by SIG(TERM|USR1)"),
        (preempt_and_kill, {"partition": "low"}, None),
        (crash, {}, None),
        (limit, {"time": "2"}, "stopped by SIGUSR1"),
        (kill, {}, None),
        (requeue, {}, "restart 1"),  # stopped or killed, as its unit ends before KillWait or not
        (cancel, {}, "stopped by SIGUSR1"),
    ],
    ids=["grace", "term", "no-grace", "node", "limit", "kill", "requeue", "signal"],
)
def test_no_byte_is_another(cluster, alone, strike, asked, told):
    """Of an extraction and of a training, against those that ran alone."""
    extract, train = words_of("cache", reads=alone / "cache", run="run")
    stages = [Stage("extract", extract), Stage("train", train)]
    small = Asked(cpus=1, mem="1500M", time="10")
    wishes = Wishes(Asked(**asked), Resources(**small.model_dump(exclude_none=True)), Site())

    def shown():
        return [look(stages, OUT), *(path.read_text() for path in OUT.glob("slurm/logs/*.log"))]

    def are(word):
        return lambda: all(state.state == word for state in look(stages, OUT))

    submit_missing(stages, OUT, wishes, print)
    held = {}
    until(lambda: hold_both(held), 120, shown)
    try:
        strike(cluster, [*held.values()], look(stages, OUT))
        if strike is kill:
            until(are("failed"), 60, shown, pause_s=0.5)
            assert all(state.why.startswith("killed (SIGKILL)") for state in look(stages, OUT))
            submit_missing(stages, OUT, wishes, print)
        until(are("done"), 240, shown, pause_s=0.5)
    finally:
        if strike is crash:
            subprocess.run([Path(__file__).parent / "slurm-up", cluster], check=False, timeout=90)
    logs = [path.read_text() for path in OUT.glob("slurm/logs/*.log")]
    assert [log.count(", restart ") for log in logs] == [2, 2], logs
    assert [bool(re.search(told or "stopped by SIG", log)) for log in logs] == [bool(told)] * 2, logs
    assert cache_files(Path("cache")) == cache_files(alone / "cache")
    assert heads(Path("run")) == heads(alone / "run")
    one, other = (json.loads((root / "results.json").read_text()) for root in (Path("run"), alone / "run"))
    assert one["metrics"] == other["metrics"]


def heads(run):
    """Bytes by name."""
    found = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("head.safetensors")}
    assert found
    return found

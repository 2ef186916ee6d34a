"""Stages as processes: their order, what is kept when one fails or runs again, and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from loffta.errors import LofftaError, Stopped
from loffta.pipeline import local
from loffta.pipeline.local import run_local
from loffta.pipeline.stages import Stage


@pytest.fixture
def processes(monkeypatch):
    """Stands in for the stages' processes; `codes` says how each ends, by the stage's first word."""
    codes, ran, begun = {}, [], []

    def start(self, name, command, environment):
        assert environment == {}
        begun.append((name, command[3]))
        ran.append(command[3:])

    def wait(self):
        name, word = begun.pop()
        return name, codes.get(word, 0), f"text\n{json.dumps({'stores': [{'bytes': 7}, {'bytes': 5}], 'word': word})}\n"

    monkeypatch.setattr(local._Children, "start", start)
    monkeypatch.setattr(local._Children, "wait", wait)
    return codes, ran


STAGES = [Stage("first", ["one", "a b"]), Stage("second", ["two"]), Stage("third", ["three"])]
CHAIN = [*STAGES, Stage("fourth", ["four"], needs=("first", "second")), Stage("fifth", ["five"], needs=("fourth",))]


def test_stages_run_in_order(tmp_path, processes):
    said = []
    outcome = run_local(STAGES, tmp_path / "out", said.append)
    outcome.check(tmp_path)
    assert processes[1] == [["one", "a b", "--json"], ["two", "--json"], ["three", "--json"]]
    assert [(r.name, r.bytes, r.result["word"]) for r in outcome.results] == [
        ("first", 12, "one"),
        ("second", 12, "two"),
        ("third", 12, "three"),
    ]
    assert said[::2] == ["$ loffta one 'a b'", "$ loffta two", "$ loffta three"]


def test_what_a_stage_answers_is_shown_where_it_is_to_be(tmp_path, processes):
    said = []
    run_local([Stage("first", ["one"]), Stage("second", ["two"], shows=True)], tmp_path, said.append)
    assert said[2:] == ["$ loffta two", "text", said[-1]]
    assert "text" not in said[:2]


@pytest.mark.parametrize(("code", "passed_on"), [(2, 2), (4, 4), (-9, 1)])
def test_a_failed_stage_takes_down_those_alone_that_need_it(tmp_path, processes, code, passed_on):
    codes, ran = processes
    codes["two"] = code
    outcome = run_local(CHAIN, tmp_path, print)
    assert [words[0] for words in ran] == ["one", "two", "three"]
    assert outcome.skipped == ["fourth", "fifth"]
    text = (
        rf"1 stage failed: 'second' \(exit code {code}\); not begun for that reason: fourth, fifth(.|\n)*run the pipe"
    )
    with pytest.raises(LofftaError, match=text) as caught:
        outcome.check(tmp_path)
    assert caught.value.exit_code == passed_on
    assert [entry["name"] for entry in json.loads((tmp_path / "stages.json").read_text())] == ["first", "third"]
    codes.clear()
    assert len(run_local(CHAIN, tmp_path, print).results) == 5


def test_a_stage_whose_files_are_all_there_is_not_begun(tmp_path, processes):
    stage = Stage("first", ["one"], makes=(tmp_path / "a", tmp_path / "b"))
    (tmp_path / "a").touch()
    assert len(run_local([stage], tmp_path, print).results) == 1
    (tmp_path / "b").touch()
    outcome = run_local([stage, Stage("second", ["two"], needs=("first",))], tmp_path, print)
    assert [result.name for result in outcome.results] == ["second"]


def test_all_failures_are_named(tmp_path, processes):
    processes[0].update(one=3, three=1)
    with pytest.raises(
        LofftaError, match=r"2 stages failed: 'first' \(exit code 3\), 'third' \(exit code 1\)\n"
    ) as caught:
        run_local(STAGES, tmp_path, print).check(tmp_path)
    assert caught.value.exit_code == 3


def test_a_stopped_stage_ends_all(tmp_path, processes):
    codes, ran = processes
    codes["two"] = 75
    with pytest.raises(Stopped, match=r"stopped in stage 'second'(.|\n)*run the same command again"):
        run_local(STAGES, tmp_path, print)
    assert [words[0] for words in ran] == ["one", "two"]


def test_second_run_keeps_the_seconds_of_the_first(tmp_path, processes, monkeypatch):
    clock = map(float, [0, 100, 100, 130, 130, 135])
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run_local(STAGES, tmp_path, print)
    clock = map(float, [0, 1, 1, 2, 2, 202])
    again = run_local(STAGES, tmp_path, print).results
    assert [r.seconds for r in again] == [100, 30, 200]
    kept = json.loads((tmp_path / "stages.json").read_text())
    assert [(entry["name"], entry["seconds"]) for entry in kept] == [("first", 100), ("second", 30), ("third", 200)]
    clock = map(float, [0, 1])
    (changed,) = run_local([Stage("first", ["one", "other"])], tmp_path, print).results
    assert changed.seconds == 1


@pytest.mark.parametrize("text", ["", "[3]", "{", '[{"command": "x"}]', "[" * 9999])
def test_costs_that_cannot_be_read(tmp_path, processes, text):
    (tmp_path / "stages.json").write_text(text)
    with pytest.raises(LofftaError, match=r"cannot read what the stages cost before(.|\n)*delete the file"):
        run_local(STAGES, tmp_path, print)


@pytest.mark.smoke
def test_a_real_process(tmp_path, capfd):
    """Its message goes to our stderr, its exit code to us; our signal handlers are ours again."""
    before = signal.getsignal(signal.SIGTERM)
    outcome = run_local([Stage("info", ["info", str(tmp_path / "nothing")])], tmp_path / "out", click.echo)
    assert outcome.failed == {"info": 1}
    assert "there is no cache here" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


SCRIPT = """
import sys
from pathlib import Path
from loffta.errors import LofftaError
from loffta.pipeline.local import run_local
from loffta.pipeline.stages import Stage
words = "extract demo:digits --backbone test_vit --weights random:0 --image-px 32 --batch-size 1 --cache"
stages = [Stage("extract", [*words.split(), sys.argv[1]]), Stage("never", ["info", "."])]
try:
    run_local(stages, Path(sys.argv[2]), print)
except LofftaError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_signal_reaches_the_stage(tmp_path):
    """Sent to the pipeline's process alone, as by a scheduler; the stage ends by itself before the pipeline does."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cache"), str(tmp_path / "out")]
    environment = os.environ | {"SLURM_CPUS_PER_TASK": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while "device" not in process.stderr.readline():  # the stage has begun
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        log = process.stderr.read()  # `communicate` would lose what readline has buffered
        output = process.stdout.read()
    assert process.returncode == 75
    assert "stopped in stage 'extract'" in output
    assert "stopped by SIGTERM" in log  # by the stage itself
    assert not list(Path(tmp_path / "cache").rglob("*.part"))


PYTHON = """#!/bin/bash
# stands in for `python -m loffta_cli WORD ... --json`
trap 'echo "stopped $3" >>log; exit 75' TERM USR1
echo "begin $3 $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS $LOFFTA_SIBLINGS" >>log
if [ "$3" = waits ]; then while :; do sleep 0.02; done; fi
case $3 in killed) kill -9 $$ ;; first) ;; c) sleep 0.9 ;; *) sleep 0.3 ;; esac
echo "end $3" >>log
echo '{}'
"""


@pytest.fixture
def side_by_side(tmp_path, monkeypatch):
    """Real processes that write what they do into `log`."""
    program = tmp_path / "python"
    program.write_text(PYTHON)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    return tmp_path / "log"


def test_stages_side_by_side(side_by_side, tmp_path):
    """Three at a time, each with a third of the CPUs, and none before what it needs has ended."""
    wide = [Stage(name, [name]) for name in ("first", "a", "b", "c")]
    outcome = run_local([*wide, Stage("last", ["last"], needs=("c",))], tmp_path, print, jobs=3)
    lines = [line.split() for line in side_by_side.read_text().splitlines()]
    assert {tuple(line[2:]) for line in lines if line[0] == "begin"} == {("2", "3")}  # threads; and who shares the log
    assert lines.index(["end", "c"]) < lines.index(["begin", "last", "2", "3"])
    running = most = 0
    for kind, *_ in lines:
        running += 1 if kind == "begin" else -1
        most = max(most, running)
    assert most == 3
    assert sorted(result.name for result in outcome.results) == ["a", "b", "c", "first", "last"]


def test_a_stage_that_is_killed_says_what_it_had(side_by_side, tmp_path, monkeypatch):
    said = []
    wait4 = os.wait4
    monkeypatch.setattr(os, "wait4", lambda *args: (*wait4(*args)[:2], SimpleNamespace(ru_maxrss=3_000_000)))
    monkeypatch.setattr(sys, "platform", "linux")
    outcome = run_local([Stage("big", ["killed"])], tmp_path, said.append)
    assert outcome.failed == {"big": -9}
    assert said[-2] == "  killed (SIGKILL), most likely for memory; it had 3.1 GB"  # Linux counts KiB
    assert "--feed stream" in said[-1]


def test_every_process_has_a_gpu_of_its_own(side_by_side, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-ab")
    stages = [Stage(name, [name]) for name in "abcd"] + [Stage("e", ["e", "--device", "cpu"])]
    run_local(stages, tmp_path, print, jobs=3)
    busy, seen = set(), set()
    for kind, name, gpus, *_ in ([*line.split(), ""] for line in side_by_side.read_text().splitlines()):
        if name == "e":
            assert kind == "end" or gpus == "4,GPU-ab"  # it asks for none: it sees what we see
        elif kind == "begin":
            assert gpus not in busy
            busy.add(gpus)
            seen.add(name + gpus)
        else:
            busy -= {gpu for gpu in busy if name + gpu in seen}
    assert {name_gpu[1:] for name_gpu in seen} == {"4", "GPU-ab"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_all_that_run(side_by_side, tmp_path, number):
    said = []

    def say(line):
        said.append(line)
        if len(said) == 2:  # both have begun to be made
            while not side_by_side.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=r"stopped in stage 'waits.*waits"):
        run_local([Stage("waits one", ["waits"]), Stage("waits two", ["waits"])], tmp_path, say, jobs=2)
    assert "stopped waits" in side_by_side.read_text()

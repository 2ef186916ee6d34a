"""Stages as processes: their order, what is kept when one fails or runs again, and signals."""

import json
import os
import signal
import subprocess
import sys
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

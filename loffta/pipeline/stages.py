"""Stages of a pipeline: `loffta` command lines, run one after the other as processes of their own.

In: stages and a folder.   Out: what each cost, kept in the folder's stages.json, and which of them failed. A failed
stage takes down only those that need it; a signal reaches the stage in flight and then ends all.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from loffta.errors import LofftaError, Stopped
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import replace_file
from loffta.machine.signals import STOPS, take_over
from loffta.machine.terminal import columns


@dataclass(frozen=True)
class Stage:
    """One command line of a pipeline."""

    name: str  # unique in its pipeline
    arguments: list[str]  # behind `loffta`
    needs: tuple[str, ...] = ()  # stages that must have succeeded before
    makes: tuple[Path, ...] = ()  # not begun where all are there: for a command that would do its work again
    shows: bool = False  # what the command prints is an answer: it is shown

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["loffta", *self.arguments])


@dataclass
class StageResult:
    """What a stage cost; kept in stages.json, so that a second run that has nothing to do does not hide it."""

    name: str
    command: str
    seconds: float  # wall clock of the whole process
    bytes: int  # that the stage added to the cache
    result: dict[str, Any]  # the JSON object that the command printed


@dataclass
class Outcome:
    """What became of a pipeline's stages."""

    results: list[StageResult] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)  # exit code by the stage's name
    skipped: list[str] = field(default_factory=list)  # stages whose need had failed or been skipped

    def check(self, out: Path) -> None:
        """Raises where a stage failed, with the exit code of the first that did.

        Raises:
            LofftaError: all failed stages are named.
        """
        if not self.failed:
            return
        listed = ", ".join(f"'{name}' (exit code {code})" for name, code in self.failed.items())
        what = f"{len(self.failed)} stage{'s' if len(self.failed) > 1 else ''} failed: {listed}"
        if self.skipped:
            what += f"; not begun for that reason: {', '.join(self.skipped)}"
        error = LofftaError(
            what,
            where=out,
            remedy="their messages are above; mend that and run the pipeline again: finished stages are kept",
        )
        code = next(iter(self.failed.values()))
        error.exit_code = code if code > 0 else 1
        raise error


def run_local(stages: Sequence[Stage], out: Path, say: Callable[[str], None]) -> Outcome:
    """Runs the stages in order, each in a process of its own; its log goes to this process's stderr.

    Raises:
        Stopped: a signal came, to this process or to a stage's; the stage had time to keep what it has.
    """
    outcome = Outcome()
    children = _Children()
    with children.listening():
        for stage in stages:
            if {*outcome.failed, *outcome.skipped} & {*stage.needs}:
                outcome.skipped.append(stage.name)
                continue
            if stage.makes and all(path.exists() for path in stage.makes):
                continue
            say(f"$ {stage.command}")
            start = time.monotonic()
            code, text = children.run([sys.executable, "-m", "loffta_cli", *stage.arguments, "--json"])
            if children.stopped or code == Stopped.exit_code:
                raise Stopped(
                    f"stopped in stage '{stage.name}'", where=stage.command, remedy="run the same command again"
                )
            if code != 0:
                outcome.failed[stage.name] = code
                say(f"  FAILED with exit code {code}")
                continue
            result = json.loads(text.splitlines()[-1])
            outcome.results.append(_keep(out, stage, time.monotonic() - start, result))
            for line in text.splitlines()[:-1] if stage.shows else ():
                say(line)
            say(f"  {outcome.results[-1].seconds:.0f} s")
    return outcome


def _keep(out: Path, stage: Stage, seconds: float, result: dict[str, Any]) -> StageResult:
    """Writes what the stage cost into stages.json; of two runs of the same command, the seconds of the longer."""
    path = out / "stages.json"
    kept = _read_costs(path)
    if stage.command in kept:
        seconds = max(seconds, kept[stage.command]["seconds"])
    done = StageResult(stage.name, stage.command, seconds, _bytes_of(result), result)
    kept[stage.command] = asdict(done)
    replace_file(path, json.dumps(list(kept.values()), indent=2).encode())
    return done


def _read_costs(path: Path) -> dict[str, dict[str, Any]]:
    """What stages cost before, by their commands."""
    if not path.exists():
        return {}
    try:
        entries = from_json(read_bytes(path))
        return {str(entry["command"]): {**entry, "seconds": float(entry["seconds"])} for entry in entries}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise LofftaError(
            f"cannot read what the stages cost before ({error})",
            where=path,
            remedy="delete the file: only their costs are lost",
        ) from error


def _bytes_of(result: dict[str, Any]) -> int:
    return sum(store["bytes"] for store in result.get("stores", []))


class _Children:
    """Runs one process after the other and hands every signal on to the one that runs."""

    def __init__(self) -> None:
        self.stopped = False
        self._child: subprocess.Popen[str] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over the signals, and gives them back; only the main thread may call this."""
        before = {number: signal.getsignal(number) for number in STOPS}
        take_over(self._hand_on)
        try:
            yield
        finally:
            if not self.stopped:  # else the process ends now, and a second signal changes nothing
                for number, handler in before.items():
                    signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """Exit code and stdout."""
        lines_fit = os.environ | {"COLUMNS": str(columns())}  # behind a pipe they would be as wide as in a file
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=lines_fit) as child:
            self._child = child
            if self.stopped:  # the signal came while the process was being made
                child.send_signal(signal.SIGTERM)
            text, _ = child.communicate()
            self._child = None
        return child.returncode, text

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        if self._child is not None:
            self._child.send_signal(number)

"""Stages as processes of this machine, one after the other or several at a time.

In: stages and a folder.   Out: what each cost, kept in the folder's stages.json, and which of them failed. A failed
stage takes down only those that need it; a signal reaches the stages in flight and then ends all.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from loffta.errors import LofftaError, Stopped
from loffta.machine.progress import SIBLINGS
from loffta.machine.signals import STOPS, take_over
from loffta.machine.terminal import columns
from loffta.pipeline.costs import StageResult, keep_cost
from loffta.pipeline.stages import Stage
from loffta.words import human_size

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"


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


def run_local(stages: Sequence[Stage], out: Path, say: Callable[[str], None], *, jobs: int = 1) -> Outcome:
    """Runs the stages in order, each in a process of its own; its log goes to this process's stderr.

    Args:
        jobs: processes at a time. With several each has its share of the threads, and a GPU of its own: a stage that
            may use one waits until one is free.
    Raises:
        Stopped: a signal came, to this process or to a stage's; the stages had time to keep what they have.
    """
    outcome, waiting, slots, children = Outcome(), list(stages), _Slots(jobs), _Children()
    running: dict[str, tuple[Stage, float]] = {}
    with children.listening():
        while waiting or running:
            while (stage := _next(waiting, outcome, running.keys(), slots)) is not None:
                say(f"$ {stage.command}")
                running[stage.name] = (stage, time.monotonic())
                words = [sys.executable, "-m", "loffta_cli", *stage.words, "--json"]
                children.start(stage.name, words, slots.take(stage))
            if not running:
                break
            name, code, text = children.wait()
            stage, start = running.pop(name)
            slots.give_back(stage)
            if children.stopped or code == Stopped.exit_code:
                children.end()
                names = "', '".join([name, *running])
                raise Stopped(f"stopped in stage '{names}'", where=stage.command, remedy="run the same command again")
            prefix = f"{name}: " if jobs > 1 else ""
            if code != 0:
                outcome.failed[name] = code
                say(f"  {prefix}FAILED with exit code {code}")
                if code == -signal.SIGKILL:
                    say(f"  {prefix}killed (SIGKILL), most likely for memory; it had {human_size(children.peak_bytes)}")
                    say(f"  {prefix}a training takes less with --feed stream; with --jobs, fewer at a time")
                continue
            result = json.loads(text.splitlines()[-1])
            outcome.results.append(keep_cost(out, stage, time.monotonic() - start, result))
            for line in text.splitlines()[:-1] if stage.shows else ():
                say(line)
            say(f"  {prefix}{outcome.results[-1].seconds:.0f} s")
    return outcome


def _next(waiting: list[Stage], outcome: Outcome, running: Set[str], slots: _Slots) -> Stage | None:
    """Takes the first stage out of `waiting` that can begin now; those that never will are skipped."""
    for stage in list(waiting):
        if {*outcome.failed, *outcome.skipped} & {*stage.needs}:
            waiting.remove(stage)
            outcome.skipped.append(stage.name)
        elif {*running, *(other.name for other in waiting)} & {*stage.needs} or not slots.has_room(stage):
            continue
        else:
            waiting.remove(stage)
            if not (stage.makes and all(path.exists() for path in stage.makes)):
                return stage
    return None


class _Slots:
    """So many processes at a time; with several, each gets a share of the threads and at most one its own GPU."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._gpus: list[str] = []
        self._threads: dict[str, str] = {}
        if jobs > 1:
            from loffta.machine.process import available_cpus  # torch takes seconds, and one process asks for nothing

            self._gpus = _visible_gpus()
            self._threads = {_THREADS: str(max(1, available_cpus() // jobs)), SIBLINGS: str(jobs)}
        self._free = list(self._gpus)
        self._given: dict[str, str | None] = {}  # GPU by the stage's name

    def has_room(self, stage: Stage) -> bool:
        """Whether the stage can begin now."""
        return len(self._given) < self._jobs and (bool(self._free) or not self._wants_gpu(stage))

    def take(self, stage: Stage) -> dict[str, str]:
        """What the stage's process has in its environment, beside what ours has."""
        gpu = self._free.pop(0) if self._wants_gpu(stage) else None
        self._given[stage.name] = gpu
        return self._threads if gpu is None else {**self._threads, _VISIBLE: gpu}

    def give_back(self, stage: Stage) -> None:
        """The stage has ended."""
        gpu = self._given.pop(stage.name)
        if gpu is not None:
            self._free.append(gpu)

    def _wants_gpu(self, stage: Stage) -> bool:
        """A stage that names a device itself (`cpu`, `cuda:1`) counts on all that are visible to us."""
        words = stage.arguments
        device = words[words.index("--device") + 1] if "--device" in words else "auto"
        return bool(self._gpus) and device in ("auto", "cuda")


def _visible_gpus() -> list[str]:
    """The GPUs of this process, in the words of CUDA_VISIBLE_DEVICES; none where there are none."""
    if _VISIBLE in os.environ:
        return [word.strip() for word in os.environ[_VISIBLE].split(",") if word.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


class _Children:
    """Runs processes side by side and hands every signal on to those that run."""

    def __init__(self) -> None:
        self.stopped = False
        self.peak_bytes = 0  # of the process that `wait` told of last
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._printed: dict[str, bytearray] = {}
        self._pipes = selectors.DefaultSelector()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes over the signals, and gives them back; only the main thread may call this."""
        before = {number: signal.getsignal(number) for number in STOPS}
        take_over(self._hand_on)
        try:
            yield
        finally:
            self._pipes.close()
            if not self.stopped:  # else the process ends now, and a second signal changes nothing
                for number, handler in before.items():
                    signal.signal(number, handler)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Begins a process."""
        lines_fit = {"COLUMNS": str(columns())}  # behind a pipe they would be as wide as in a file
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **lines_fit, **environment})
        assert child.stdout is not None
        self._running[name], self._printed[name] = child, bytearray()
        self._pipes.register(child.stdout, selectors.EVENT_READ, name)
        if self.stopped:  # the signal came while the process was being made
            child.send_signal(signal.SIGTERM)

    def wait(self) -> tuple[str, int, str]:
        """Name, exit code and stdout of the process that ends next."""
        while True:
            for key, _ in self._pipes.select():
                name = key.data
                child = self._running[name]
                assert child.stdout is not None
                piece = os.read(child.stdout.fileno(), 1 << 16)
                self._printed[name] += piece
                if not piece:
                    self._pipes.unregister(child.stdout)
                    child.stdout.close()
                    _, status, used = os.wait4(child.pid, 0)  # as `child.wait()`, and what it used
                    child.returncode = os.waitstatus_to_exitcode(status)
                    self.peak_bytes = used.ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
                    del self._running[name]
                    return name, child.returncode, self._printed.pop(name).decode(errors="replace")

    def end(self) -> None:
        """Asks all processes to stop, and waits until they have."""
        if not self.stopped:
            self._hand_on(signal.SIGTERM, None)
        while self._running:
            self.wait()

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        for child in list(self._running.values()):
            child.send_signal(number)

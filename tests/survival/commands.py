"""`loffta` commands as processes of their own, which a test can kill, starve, signal and hold at a chosen place.

Forked as tests/forked.py tells, in milliseconds, where `python -m loffta_cli` takes seconds. From there on it is the
same: its own process, signals, limits and files, `main` and an exit code.
"""

import contextlib
import ctypes
import importlib
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.forked import CONTEXT, PATIENCE_S

VIT = ["--backbone", "test_vit", "--weights", "random:0", "--image-px", "32", "--device", "cpu"]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    peak_mib: float

    @property
    def figures(self) -> str:
        """What a training printed before it told where everything is."""
        assert "\nwritten to" in self.out, self.out
        return self.out.partition("\nwritten to")[0]


class Command:
    """One `loffta` command in a process; it runs from the moment it is made.

    Args:
        folder: where its pipes are made.
        limits: soft limits by their names in `resource`, such as {"RLIMIT_NOFILE": 64}.
        powerless: what others own is theirs, also before root.
        hold: "module:Class.function" where the process stops, says so, and waits for `go`, at its `n_hold`-th call.
    """

    number = 0

    def __init__(self, folder, *words, limits=None, powerless=False, hold=None, n_hold=1, environment=None):
        Command.number += 1
        self.files = Path(folder) / f"command-{Command.number}"
        self.files.mkdir(parents=True)
        self.pipes = {name: _open_pipe(self.files / name) for name in ("out", "err", "peak")}
        hold = hold and (hold, n_hold)
        words = [os.fspath(word) if isinstance(word, Path) else str(word) for word in words]
        environment = {"COLUMNS": "2000"} | (environment or {})  # the fork server has that of whoever started it
        arguments = (words, self.files, limits or {}, powerless, hold, environment)
        self.process = CONTEXT.Process(target=_run, args=arguments, daemon=True)
        self.process.start()

    def wait_held(self):
        """Returns when the process stands where `hold` says."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.files / "held").exists():
            assert self.process.is_alive(), f"it ended without being held: {self.finish()}"
            assert time.monotonic() < deadline, "it never came there"
            time.sleep(0.005)
        return self

    def go(self):
        """Lets a held process go on."""
        (self.files / "go").touch()
        return self

    def signal(self, number):
        os.kill(self.process.pid, number)
        return self

    def lose_output(self):
        """From now on nobody reads stdout and stderr: to write there is an error."""
        for name in ("out", "err"):
            os.close(self.pipes[name])
            self.pipes[name] = os.open(os.devnull, os.O_RDONLY)
        return self

    def finish(self):
        self.process.join(PATIENCE_S)
        hangs = self.process.exitcode is None
        if hangs:
            self.process.kill()
            self.process.join()
        out, err, peak = (_drain(pipe) for pipe in self.pipes.values())
        assert not hangs, f"it hangs: {out}{err}"
        return Done(self.process.exitcode, out, err, float(peak or 0))


def loffta(folder, *words, code=0, **options):
    """Runs one command to its end and checks its exit code."""
    done = Command(folder, *words, **options).finish()
    assert "Traceback" not in done.err, done.err
    assert code in (None, done.code), f"{words} ended with {done.code}: {done.err}{done.out}"
    return done


def assert_one_error(done, *parts):
    """stderr ends in one message in three parts, which holds `parts` in this order."""
    message = done.err[done.err.rindex("error: ") :]
    assert re.fullmatch(r"error: .+\n  where:  .+\n  remedy: .+", message, re.DOTALL), done.err
    place = 0
    for part in parts:
        assert part in message[place:], f"{part!r} in {message!r}"
        place = message.index(part, place) + len(part)


def _open_pipe(path):
    """A named pipe that takes 64 KiB before anybody reads: a limit on file sizes does not stop a message."""
    os.mkfifo(path)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


def _drain(pipe):
    """All that a pipe holds."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(pipe, 1 << 16):
            parts.append(part)
    os.close(pipe)
    return b"".join(parts).decode(errors="surrogateescape")


def _run(words, files, limits, powerless, hold, environment):
    """The body of the process."""
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(files / name, os.O_WRONLY), number)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = open(1, "w", encoding=encoding, errors="strict")  # noqa: SIM115  as a new process has them
    sys.stderr = open(2, "w", encoding=encoding, errors="backslashreplace")  # noqa: SIM115
    os.environ.update({"SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "", **environment})  # one thread, no device
    os.fsync = lambda _: None  # no process here loses power
    if hold:
        _hold(*hold, files)
    from loffta_cli.main import main

    peak = os.open(files / "peak", os.O_WRONLY)
    for name, value in limits.items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        resource.setrlimit(getattr(resource, name), (value, hard))
    if powerless:
        _drop_capabilities()
    code = main(words)
    os.write(peak, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024).encode())
    sys.exit(code)


def _drop_capabilities():
    """capset(2) to none at all: from here on root is a user like any other, and may still import what is root's."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


def _hold(place, n_hold, files):
    """Replaces a function by one that waits at its `n_hold`-th call."""
    module, _, name = place.partition(":")
    *owners, attribute = name.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real = getattr(owner, attribute)
    calls = iter(range(1, 1 << 30))

    def held(*arguments, **options):
        if next(calls) == n_hold:
            (files / "held").touch()
            while not (files / "go").exists():
                time.sleep(0.005)
        return real(*arguments, **options)

    setattr(owner, attribute, held)

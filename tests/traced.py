"""What a process asks of a file system, by strace(1): calls about files below one folder."""

import re
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.forked import PATIENCE_S, Forked

CALLS = "trace=%file,getdents64,fsync,fdatasync,flock,fcntl"
_CALL = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)")
NEEDED = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here: apt-get install strace")


def traced(folder, root, function, *args):
    """The calls of `function(*args)`, in a process of its own, that concern `root` or what lies below it, one a line.

    Args:
        folder: for the trace.
    """
    go, log = folder / "go", folder / "trace"
    child = Forked(_wait_and_run, go, function, *args)
    words = ["strace", "-f", "-qq", "-y", "-s", "300", "-e", CALLS, "-o", str(log), "-p", str(child.pid)]
    strace = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for_tracer(child.pid, strace)
        go.touch()
        out, err = child.communicate()
        assert child.returncode == 0, out + err
        strace.wait(PATIENCE_S)
    finally:
        strace.kill()
        strace.communicate()
    return [line for line in log.read_text().splitlines() if str(root) in line]


def count(lines):
    """How often each call was made; the second half of one that another thread's cut in two is not counted again."""
    found = Counter()
    for line in lines:
        if (match := _CALL.match(line)) and " resumed>" not in line:
            found[match[1]] += 1
    return found


def _wait_for_tracer(pid, strace):
    end = time.monotonic() + PATIENCE_S
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if strace.poll() is not None:
            pytest.skip(f"strace may not look here: {strace.stderr.read()}")
        assert time.monotonic() < end
        time.sleep(0.01)


def _wait_and_run(go, function, *args):
    while not go.exists():
        time.sleep(0.01)
    return function(*args)

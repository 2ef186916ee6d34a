"""Signals in the last moments of a process, and one that nohup keeps away."""

import signal
import subprocess
import sys

import pytest

from loffta.machine.signals import STOPS

SCRIPT = """
import os, signal, sys
from loffta.machine.signals import STOPS, take_over

class Late:
    kill, numbers, pid = os.kill, STOPS, os.getpid()
    def __del__(self):  # when Python takes the module down, behind every exit handler
        for number in self.numbers:
            self.kill(self.pid, number)
        print("alive", flush=True)

heard = []
take_over(lambda number, frame: heard.append(signal.Signals(number).name))
for number in STOPS:
    signal.raise_signal(number)
print(*heard, flush=True)
late = Late()
sys.exit(75)
"""


@pytest.mark.parametrize("nohup", [False, True])
def test_a_signal_in_the_last_moment_changes_no_exit_code(nohup):
    trap = 'trap "" HUP; exec "$@"' if nohup else 'exec "$@"'
    command = ["sh", "-c", trap, "sh", sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = [number.name for number in STOPS if not (nohup and number == signal.SIGHUP)]
    assert done.stdout.splitlines() == [" ".join(names), "alive"], done.stderr
    assert done.returncode == 75

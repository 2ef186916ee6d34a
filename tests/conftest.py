"""What every test needs: threads bound before torch is imported, here and in every process that a test starts; and
the signal handlers of pytest, which commands take over, back after each test."""

import os
import signal

import pytest

from loffta.machine.signals import STOPS

# Tiny tensors gain nothing from 64 threads and lose much; and the same count everywhere gives the same last bits.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "2")
# Threads that wait for each other sleep. They spin otherwise, and worst where another process has the other core: an
# audit of 210 digits took 7.8 s of processor time on two busy cores, and 0.2 s so.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


# What `nohup` or a shell's & made deaf to a signal hands that on to every process it starts.
for number in STOPS:
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def signal_handlers_come_back():
    handlers = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def lines_are_whole(monkeypatch):
    """What commands print is wrapped to the terminal; only tests/cli/test_width.py looks at that."""
    monkeypatch.setenv("COLUMNS", "2000")


@pytest.fixture(autouse=True, scope="session")
def nothing_is_synced():
    """Thousands of fsyncs would be most of the time of many tests, and no process here loses power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield

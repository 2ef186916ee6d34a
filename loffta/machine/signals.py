"""The signals that ask a process to stop. They are taken over for good: one that comes while it leaves changes no code.

Called by `machine.StopFlag` and by `stages`, which hands them on to the process of a stage.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable
from types import FrameType

# what schedulers send ahead of a time limit (USR1, USR2, XCPU), at a preemption (TERM), Ctrl-C (INT), and what the
# system sends when the terminal or the connection has gone (HUP)
STOPS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)


def take_over(handler: Callable[[int, FrameType | None], None]) -> None:
    """Gives every signal that asks to stop to `handler`; only the main thread may call this.

    A SIGHUP that is ignored when the process starts stays so: that is all that nohup(1) does.
    """
    for number in STOPS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    atexit.unregister(_ignore)
    atexit.register(_ignore)


def _ignore() -> None:
    """From here on the exit code is decided. Python, taking itself down, would give the system's handlers back, and a
    second signal in that last second would end the process by itself; what is ignored it leaves alone
    (`_PySignal_Fini` of CPython's signalmodule.c).
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)

"""Ends work at a chosen deletion or rename, as a kill would: nothing after it is done, nothing is cleaned up."""

import sys
from contextlib import contextmanager

DEADLY = ("os.remove", "os.rmdir", "os.rename")
_left = None  # calls that are still let through; None: all


class Killed(BaseException):
    """No `except Exception` holds it up."""


def _look(event, _arguments):
    global _left
    if _left is None or event not in DEADLY:
        return
    if _left == 0:
        raise Killed
    _left -= 1


sys.addaudithook(_look)  # https://docs.python.org/3/library/audit_events.html; a hook stays for the life of the process


@contextmanager
def dying_after(n_calls):
    """Lets `n_calls` deletions and renames through; the list that it gives is not empty where the next one was met."""
    global _left
    died = []
    _left = n_calls
    try:
        yield died
    except Killed:
        died.append(True)
    finally:
        _left = None

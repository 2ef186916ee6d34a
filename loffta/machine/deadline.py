"""When this job is to have ended, so that nothing is begun that cannot be finished.

In: LOFFTA_END_TIME, which the batch scripts of `loffta run` set, else SLURM_JOB_END_TIME, as newer SLURMs do; seconds
since 1970.   Out: how long there is. Called by `extraction`.
"""

from __future__ import annotations

import math
import os
import time

from loffta.errors import Stopped

OURS, SLURMS, _START = "LOFFTA_END_TIME", "SLURM_JOB_END_TIME", "SLURM_JOB_START_TIME"
_BEGAN = time.monotonic()
_FARTHEST_S = 400 * 86_400  # SLURM ends a job without a limit in a year: that is no time to plan by
_FOR_THE_END_S = 5.0  # what is open is written, and the process leaves


def seconds_left() -> float:
    """Until this job is to have ended; infinite where nobody says so.

    A clock that shows a time before the job's start, or less behind it than this process has run, is behind the
    scheduler's: the start and what has passed are taken in its place.
    """
    told = _time(OURS)
    end = _time(SLURMS) if told is None else told
    if end is None or end - time.time() > _FARTHEST_S:
        return math.inf
    started = _time(_START)
    return end - max(time.time(), 0.0 if started is None else started + time.monotonic() - _BEGAN)


def has_time(needs_s: float) -> bool:
    """Whether so many seconds are left."""
    return _left_for_work() >= needs_s


def check_time(needs_s: float, doing: str) -> None:
    """Raises Stopped where so many seconds are not left.

    Args:
        doing: what is not begun, for the message.
    """
    if not has_time(needs_s):
        left = _left_for_work()
        raise Stopped(
            f"{doing} is not begun: one takes up to {needs_s:.0f} s, and the job's time limit leaves {left:.0f} s",
            where="this process",
            remedy="run the same command again",
        )


def _left_for_work() -> float:
    return max(0.0, seconds_left() - _FOR_THE_END_S)


def _time(variable: str) -> float | None:
    told = os.environ.get(variable, "")
    return float(told) if told.isdecimal() else None

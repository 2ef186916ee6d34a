"""The end of a job, as its scheduler tells it, and a unit that would not fit before it."""

import math

import pytest

from loffta.errors import Stopped
from loffta.machine import deadline
from loffta.machine.deadline import check_time, seconds_left

NOW = 1_800_000_000


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ({}, math.inf),
        ({"SLURM_JOB_END_TIME": NOW + 100}, 100),
        ({"SLURM_JOB_END_TIME": NOW + 100, "LOFFTA_END_TIME": NOW + 40}, 40),
        ({"SLURM_JOB_END_TIME": NOW - 5}, -5),
        ({"SLURM_JOB_END_TIME": NOW + 3600, "SLURM_JOB_START_TIME": NOW + 600}, 2940),  # ten minutes behind
        ({"SLURM_JOB_END_TIME": NOW + 3600, "SLURM_JOB_START_TIME": NOW - 20}, 3560),  # some seconds behind
        ({"SLURM_JOB_END_TIME": NOW + 3600, "SLURM_JOB_START_TIME": NOW - 600}, 3600),
        ({"SLURM_JOB_END_TIME": NOW + 500 * 86400}, math.inf),  # a job of no limit
        ({"SLURM_JOB_END_TIME": "Unknown"}, math.inf),
        ({"SLURM_JOB_END_TIME": ""}, math.inf),
        ({"LOFFTA_END_TIME": "-3"}, math.inf),
    ],
)
def test_time_that_is_left(monkeypatch, told, left):
    monkeypatch.setattr(deadline.time, "time", lambda: float(NOW))
    monkeypatch.setattr(deadline.time, "monotonic", lambda: deadline._BEGAN + 60)
    for name in ("SLURM_JOB_END_TIME", "LOFFTA_END_TIME", "SLURM_JOB_START_TIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    assert seconds_left() == left


def test_what_does_not_fit_is_not_begun(monkeypatch):
    monkeypatch.setattr(deadline.time, "time", lambda: float(NOW))
    monkeypatch.setenv("LOFFTA_END_TIME", str(NOW + 65))
    check_time(60.0, "unit 3")
    with pytest.raises(Stopped, match=r"unit 3 is not begun: one takes up to 61 s, and the job's time limit leaves 60"):
        check_time(61.0, "unit 3")

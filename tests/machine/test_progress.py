"""How progress is told: fast and slow work, in a log and on a terminal."""

import sys
from itertools import pairwise

import pytest

from loffta.machine import progress as module
from loffta.machine.progress import LOG_EVERY_S, Progress, human_rate
from loffta.words import human_time


@pytest.mark.parametrize(
    ("per_s", "text"),
    [
        (27_000, "27,000 images/s"),
        (120.4, "120 images/s"),
        (1, "1.0 images/s"),
        (1 / 20, "3.0 images/min"),
        (1 / 60, "1.0 images/min"),
        (1 / 90, "40.0 images/h"),
        (1e-9, "0.0 images/h"),
    ],
)
def test_a_rate_leaves_a_number_to_read(per_s, text):
    assert human_rate(per_s, "images") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (60, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (3725, "1 h 2 min"),
        (3.6e6, "1,000 h 0 min"),
    ],
)
def test_a_time_has_two_units(seconds, text):
    assert human_time(seconds) == text


def clock(monkeypatch):
    """The time, to be set on; no line has been written."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Progress, "_told_at", 0.0)
    return now


def test_slow_steps_in_a_log(monkeypatch, capsys):
    now = clock(monkeypatch)
    with Progress("fit", 10, "steps") as progress:
        now[0] += LOG_EVERY_S - 1
        progress.advance(1)  # not yet
        now[0] += 11
        progress.advance(1, "loss 0.5")
    assert capsys.readouterr().err == "fit: 2/10 steps, 3.0 steps/min, 2 min 40 s left loss 0.5\n"


def test_more_work_than_was_known_of(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress("extract", 2, "images") as progress:
        progress.advance(2)
        progress.expect(2)
        now[0] += 60
        progress.advance(1)
    assert capsys.readouterr().err == "extract: 3/4 images, 3.0 images/min, 20 s left\n"


def test_slow_steps_on_a_terminal(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("fit", 10, "steps")
    now[0] += 40
    progress.advance(2, "loss 0.5")
    (task,) = progress._bar.tasks
    assert (task.completed, task.fields["note"]) == (2, "3.0 steps/min, 2 min 40 s left loss 0.5")


def test_all_that_a_process_counts_shares_one_line_in_30_s(monkeypatch, capsys):
    """One inside another, and one behind the other."""
    now = clock(monkeypatch)
    lines = []
    for turn in range(5):
        with Progress("turn", 60, "steps") as outer, Progress("inner", 60, "steps") as inner:
            for _ in range(40):
                now[0] += 1
                for progress in (outer, inner):
                    progress.advance(1)
                if said := capsys.readouterr().err:
                    lines.append((now[0], turn, said.count("\n")))
    assert len(lines) == 5
    assert all(n == 1 for _, _, n in lines)
    assert all(b[0] - a[0] >= LOG_EVERY_S for a, b in pairwise(lines))


@pytest.mark.parametrize(
    ("variable", "told", "n"),
    [(module.SIBLINGS, "4", 4), ("SLURM_STEP_NUM_TASKS", "3", 3), ("SLURM_STEP_NUM_TASKS", "x", 1)],
)
def test_processes_with_one_log_share_its_lines(monkeypatch, capsys, variable, told, n):
    now = clock(monkeypatch)
    monkeypatch.setenv(variable, told)
    progress = Progress("fit", 10, "steps")
    now[0] += n * LOG_EVERY_S - 1
    progress.advance(1)
    assert capsys.readouterr().err == ""
    now[0] += 1
    progress.advance(1)
    assert capsys.readouterr().err.startswith("fit: 2/10 steps")

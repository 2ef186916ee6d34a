"""Progress on stderr: one live bar on a terminal, one line every 30 s in a log, never a carriage return there.

`say` writes all else that a user should see while work goes on. The 30 s are those of the whole log: of all that one
process counts, and of all processes that write there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar

from loffta.machine import usage
from loffta.words import human_time, printable

LOG_EVERY_S = 30.0
SIBLINGS = "LOFFTA_SIBLINGS"  # how many processes write into this one's log, where a launcher knows it
_OF_STEP = "SLURM_STEP_NUM_TASKS"  # the same of the tasks that srun starts together
_silent: ContextVar[bool] = ContextVar("no progress", default=False)


@contextmanager
def silenced(silent: bool = True) -> Iterator[None]:
    """Neither progress nor notes are shown inside."""
    before = _silent.set(silent)
    try:
        yield
    finally:
        _silent.reset(before)


def say(line: str, keep: str = "") -> None:
    """One line to the user on stderr, beside the results; `keep` as `printable` has it."""
    if not _silent.get():
        print(printable(line, keep), file=sys.stderr, flush=True)


class Progress:
    """Counts work items; `with Progress("extract", 1000, "images") as progress: progress.advance(32)`."""

    _told_at: ClassVar[float] = 0.0  # when this process last wrote a line of progress

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._start = time.monotonic()
        self._bar = _terminal_bar(title, total) if sys.stderr.isatty() and not _silent.get() else None

    def advance(self, n: int, note: str = "") -> None:
        """Adds `n` finished items; `note` is shown behind the count."""
        self._done += n
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=n, note=f"{self._pace()} {note}")
        elif time.monotonic() - max(self._start, Progress._told_at) >= LOG_EVERY_S * _n_processes():
            Progress._told_at = time.monotonic()
            say(f"{self._title}: {self._done}/{self._total} {self._unit}, {self._pace()} {note}".rstrip())
            usage.keep()

    def expect(self, n: int) -> None:
        """Adds `n` items that nobody knew of when it began."""
        self._total += n
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._total)

    @property
    def seconds(self) -> float:
        """Since the start; never 0."""
        return max(time.monotonic() - self._start, 1e-9)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _pace(self) -> str:
        """How fast, in the unit of time that leaves a number to read, and how long it will take at that."""
        rate = max(self._done, 1e-9) / self.seconds
        left = human_time((self._total - self._done) / rate)
        return f"{human_rate(rate, self._unit)}, {left} left"


def _n_processes() -> int:
    told = os.environ.get(SIBLINGS) or os.environ.get(_OF_STEP) or ""
    return max(1, int(told)) if told.isdecimal() else 1


def human_rate(per_s: float | int, unit: str) -> str:
    """(0.05, "steps") -> '3.0 steps/min': slow heads make less than one a second."""
    for factor, time_unit in ((1, "s"), (60, "min")):
        if per_s * factor >= 1:
            return f"{per_s * factor:,.{0 if per_s * factor >= 100 else 1}f} {unit}/{time_unit}"
    return f"{per_s * 3600:.1f} {unit}/h"


def _terminal_bar(title: str, total: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  rich loads only on a terminal
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
    bar.add_task(title, total=total, note="")
    return bar

"""Progress on stderr: one live bar on a terminal, one line every 30 s in a log, never a carriage return there."""

from __future__ import annotations

import sys
import time
from types import TracebackType

LOG_EVERY_S = 30.0


class Progress:
    """Counts work items; `with Progress("extract", 1000, "images") as progress: progress.advance(32)`."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._start = self._logged = time.monotonic()
        self._bar = _terminal_bar(title, total) if sys.stderr.isatty() else None

    def advance(self, n: int, note: str = "") -> None:
        """Adds `n` finished items; `note` is shown behind the count."""
        self._done += n
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=n, note=f"{self._rate():.0f} {self._unit}/s {note}")
        elif time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            left_s = (self._total - self._done) / max(self._rate(), 1e-9)
            line = f"{self._title}: {self._done}/{self._total} {self._unit}, {self._rate():.1f}/s, {left_s:.0f} s left"
            print(f"{line} {note}".rstrip(), file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Since the start; never 0."""
        return max(time.monotonic() - self._start, 1e-9)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _rate(self) -> float:
        return self._done / self.seconds


def _terminal_bar(title: str, total: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  rich loads only on a terminal
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
    bar.add_task(title, total=total, note="")
    return bar

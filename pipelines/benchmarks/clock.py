"""What the benchmarks share: jobs that take turns, a cold page cache, the machine, ratios beside their goals."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def alternate(
    jobs: dict[str, Callable[[], Any]],
    repeat: int,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Seconds of each job, run one after the other, backwards in every second repeat; `after` is not timed."""
    names = list(jobs) if repeat % 2 else list(jobs)[::-1]
    seconds = {}
    for name in names:
        before()
        seconds[name] = timed(jobs[name])
        after(name)
    return seconds


def timed(action: Callable[[], Any]) -> float:
    """Seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of first / second over the pairs."""
    return statistics.median(a / b for a, b in pairs)


def ratio_text(pairs: Sequence[tuple[float, float]], what: str, goal: float | None = None) -> str:
    """The median of first / second over the pairs, with its range and whether it reaches the goal."""
    ratios = sorted(a / b for a, b in pairs)
    ratio = median_ratio(pairs)
    text = f"{ratio:6.2f} {what} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    if goal is not None:
        text += f", goal {goal:g}: {'reached' if ratio >= goal else 'MISSED'}"
    return text


class Evictor:
    """Empties the page cache: of everything when allowed to, else of these files by advice.

    The host of a virtual machine may still hold the bytes.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = sorted(files)
        self.knob = Path("/proc/sys/vm/drop_caches")
        self.how = "drop_caches" if os.access(self.knob, os.W_OK) else "posix_fadvise DONTNEED"

    def __call__(self) -> None:
        """What is not on disk yet is written first: dirty pages cannot be dropped."""
        if self.how == "drop_caches":
            os.sync()
            self.knob.write_text("3")
            return
        for path in self.files:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def print_machine(libraries: Sequence[str]) -> None:
    """What the figures depend on."""
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    kernel = platform.release().partition("-")[0]
    print(f"{platform.system()} {kernel}, {os.cpu_count()} CPUs ({cpu_name()}), {memory_gb:.0f} GB memory")
    print(f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in libraries)}")
    load = os.getloadavg()[0]
    print(f"load before the start: {load:.1f}{' - others are at work here: expect noise' if load > 0.5 else ''}")


def cpu_name() -> str:
    """The processor's model, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [s.partition(":")[2].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.machine()

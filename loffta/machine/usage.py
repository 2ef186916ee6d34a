"""What work costs: processor time, GPU time, and the most memory that it had.

In: this process, and the costs of starts before.   Out: a Cost; as JSON in results, in summaries and, for a job that
may be killed, in the file that LOFFTA_USAGE names. Called by the stages, by `Progress` and by the command line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loffta.words import human_size, human_time

FILE = "LOFFTA_USAGE"  # where a process leaves what it has cost so far; the batch scripts of `loffta run` set it
_BEGAN = time.monotonic()
_MOST = 1e12  # hours, MiB: beyond it nothing is meant


@dataclass(frozen=True)
class Cost:
    """What something cost. A GPU counts for all the time that a process has it, as a cluster charges it."""

    cpu_s: float = 0.0  # of all threads
    gpu_s: float = 0.0
    peak_rss_mib: float = 0.0
    peak_gpu_mib: float | None = None  # that torch reserved; None: no CUDA

    def __add__(self, other: Cost) -> Cost:
        """Of work in turn: times add up, of peaks the higher one holds."""
        gpu = [peak for peak in (self.peak_gpu_mib, other.peak_gpu_mib) if peak is not None]
        return Cost(
            self.cpu_s + other.cpu_s,
            self.gpu_s + other.gpu_s,
            max(self.peak_rss_mib, other.peak_rss_mib),
            max(gpu, default=None),
        )

    def as_json(self) -> dict[str, float | None]:
        """Hours, and MiB."""
        return {
            "cpu_hours": self.cpu_s / 3600,
            "gpu_hours": self.gpu_s / 3600,
            "peak_rss_mib": self.peak_rss_mib,
            "peak_gpu_mib": self.peak_gpu_mib,
        }

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Cost:
        """What `as_json` wrote; what an older version left out, and what is no amount, counts as nothing."""
        amounts = {key: value for key, value in values.items() if isinstance(value, int | float)}
        found = {key: float(value) for key, value in amounts.items() if 0 <= value < _MOST}
        cpu_s, gpu_s = (3600.0 * found.get(key, 0.0) for key in ("cpu_hours", "gpu_hours"))
        return cls(cpu_s, gpu_s, found.get("peak_rss_mib", 0.0), found.get("peak_gpu_mib"))

    def __str__(self) -> str:
        words = [f"CPU time {human_time(self.cpu_s)}"]
        words += [f"GPU time {human_time(self.gpu_s)}"] if self.gpu_s else []
        words += [f"memory up to {human_size(self.peak_rss_mib * 2**20)}"] if self.peak_rss_mib else []
        words += [f"of the GPU {human_size(self.peak_gpu_mib * 2**20)}"] if self.peak_gpu_mib else []
        return ", ".join(words)


FREE = Cost()


class Meter:
    """Measures what this process does from here on."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        """On the clock."""
        return time.monotonic() - self._wall_s

    def cost(self) -> Cost:
        """So far; the peaks are those of the whole process, which has no others."""
        cpu_s = time.process_time() - self._cpu_s
        return Cost(cpu_s, self.seconds if _on_gpu() else 0.0, peak_rss_mib(), _peak_gpu_mib())


def of_process() -> Cost:
    """What this process has cost since it began."""
    gpu_s = time.monotonic() - _BEGAN if _on_gpu() else 0.0
    return Cost(time.process_time(), gpu_s, peak_rss_mib(), _peak_gpu_mib())


def keep() -> None:
    """Leaves what this process has cost so far where LOFFTA_USAGE says, for whoever asks when it is gone."""
    if path := os.environ.get(FILE):
        with suppress(OSError):  # nothing may fail for it, nor wait for a disk
            Path(f"{path}.part").write_text(json.dumps(of_process().as_json()))
            Path(f"{path}.part").replace(path)


def peak_rss_mib(status: Path = Path("/proc/self/status")) -> float:
    """Largest resident memory of this process so far, MiB.

    From the kernel's own line where there is one: getrusage also counts what the process was before its `exec`, a copy
    of its parent.
    """
    try:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    except (OSError, StopIteration):  # no Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _on_gpu() -> bool:
    torch = sys.modules.get("torch")  # a process that never loaded it has none
    return torch is not None and bool(torch.cuda.is_initialized())


def _peak_gpu_mib() -> float | None:
    """The most that torch has reserved on one device: what is compared with the memory that a GPU has."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return float(max(torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count())) / 2**20)

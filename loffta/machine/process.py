"""The machine a process runs on: device, threads, memory, versions, and the signals that ask it to stop."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TypeVar

import psutil
import torch

from loffta.errors import LofftaError, Stopped, UsageError
from loffta.machine import cgroups, signals
from loffta.machine.borrowed import lent_threads
from loffta.machine.cpus import available_cpus as available_cpus  # where one looks for it
from loffta.machine.ranks import this_rank

Item = TypeVar("Item")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NO_MEMORY = re.compile("out of memory|can't allocate memory")  # MPS and the CPU say it in a RuntimeError
_BEHIND = 5  # of the 19 steps of `nice`: a third of the weight
LESS_MEMORY = (
    "with --feed stream the features take next to none of it; a smaller batch (--set batch_size=...), fewer taps or "
    "--device cpu need less"
)
_REPORTED = ("loffta", "torch", "timm", "zarr", "numpy", "pyarrow")


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; any other name is torch's own.

    Of several ranks on a node each takes its own of the GPUs that it sees, where no number is given.

    Raises:
        UsageError: torch does not know or does not have the device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if name == "cuda" and (local := this_rank().local) and torch.cuda.device_count() > 1:
            device = torch.device("cuda", local % torch.cuda.device_count())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device '{name}' cannot be used: {str(error).splitlines()[0]}",
            where="--device",
            remedy="use auto, cpu, cuda or mps",
        ) from error
    return device


def cap_threads() -> int:
    """Gives torch as many threads as there are CPUs for this job, no more; returns that number.

    In a process that is borrowed no more than its owner has.
    """
    n_cpus = available_cpus()
    n_cpus = min(n_cpus, lent_threads() or n_cpus)
    torch.set_num_threads(n_cpus)
    return n_cpus


@contextmanager
def one_thread(small: bool = True) -> Iterator[None]:
    """One torch thread for many small products, where they are; the number before comes back.

    Of several each waits for the next product by spinning: ten times the processor's time on a machine of one's own,
    and where others want the same CPUs a multiple of the time on the clock, too.
    """
    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def give_way() -> None:
    """Lets the calling thread run behind its process's others where there are fewer CPUs than threads, till it ends.

    On Linux, where threads have priorities of their own; elsewhere, and where that is forbidden, nothing.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _BEHIND)


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, for the batch that comes next; other C libraries are left as they are.

    By default it gives tensors of some MB back to the kernel and takes them anew, zeroed, page by page: 2-3 % of the
    time of a ViT-B on two cores that keeps the outputs of its blocks. Nobody can undo it: a borrowed process is let be.
    """
    if lent_threads() is not None:
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def explain_memory(device: torch.device, where: str | Path, remedy: str = LESS_MEMORY) -> Iterator[None]:
    """Turns an allocator's error in a training or an evaluation into one that says what to do.

    Raises:
        LofftaError: memory ran out, of the device or of the host.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _NO_MEMORY.search(str(error))):
            raise
        raise LofftaError(
            f"the memory of {device} is not enough ({str(error).partition(chr(10))[0] or 'allocation failed'})",
            where=where,
            remedy=remedy,
        ) from error


def trim_memory() -> None:
    """Gives what was freed back to the kernel, where the C library is glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_memory_bytes() -> int:
    """Memory that this process may still take: what the machine has free, and no more than its job's limit leaves.

    Several ranks on a node find the same memory free: each has its part.
    """
    free = int(psutil.virtual_memory().available)
    left = cgroups.free_bytes()
    return (free if left is None else min(free, left)) // this_rank().n_local


def versions() -> dict[str, str]:
    """Versions of the libraries that decide results."""
    found = {"python": sys.version.split()[0]}
    for name in _REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe(device: torch.device) -> str:
    """One line for the log: versions, device, threads."""
    named = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"{named}; device {device}, {torch.get_num_threads()} threads"


class StopFlag:
    """Set by the signals that ask a process to stop; the work in flight looks at it and ends by itself."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._in_between: str | None = None  # what may be given up at any place of the code

    def listen(self) -> StopFlag:
        """Takes over the signals; only the main thread may call this."""
        signals.take_over(self._set)
        return self

    def check(self, doing: str) -> None:
        """Raises Stopped where a signal has come.

        Args:
            doing: what is being given up, for the message.
        """
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            raise Stopped(f"stopped by {name} while {doing}", where="this process", remedy="run the same command again")

    @contextmanager
    def at_once(self, doing: str) -> Iterator[None]:
        """Work that is given up wherever a signal meets it: what takes long and writes nothing.

        Raises:
            Stopped: as `check`, from any line inside.
        """
        self._in_between = doing
        try:
            self.check(doing)
            yield
            self.check(doing)
        except Exception:  # a library may have swallowed our exception, or wrapped it in its own
            self.check(doing)
            raise
        finally:
            self._in_between = None

    def sleep(self, seconds: float | int, doing: str) -> None:
        """Waits, and no longer when a signal comes; raises as `check`."""
        with self.at_once(doing):
            time.sleep(seconds)

    def each(self, items: Iterable[Item], doing: str) -> Iterator[Item]:
        """`items` one by one, the making of each given up `at_once`, but nothing of what is done with it."""
        iterator = iter(items)
        while True:
            with self.at_once(doing):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _set(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        if self._in_between is not None:
            doing, self._in_between = self._in_between, None  # a second signal must not disturb the way out
            self.check(doing)

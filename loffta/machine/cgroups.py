"""What the kernel's control groups leave to this process: its job's or container's share of memory and processor time.

In: /proc/self/cgroup and the file systems of cgroup v1 and v2.   Out: numbers, or None where there is no limit.
Limits of parent groups count too. A container that does not see its own path still sees its limit at the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def free_bytes(mounted: Path = MOUNTED, own: Path = OWN) -> int | None:
    """Memory that the tightest limit leaves; a SLURM job is killed beyond it, whatever the node has free.

    The page cache is charged to a group but given back when needed, so it counts as free.
    """
    left = []
    for level, is_old in _levels("memory", mounted, own):
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_old else ("memory.max", "memory.current")
        with suppress(OSError):  # the root group has no limit
            most, taken = (level / limit).read_text().strip(), int((level / used).read_text())
            stat = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
            cached = int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0))
            if most != "max":
                left.append(max(0, int(most) - taken + cached))
    return min(left, default=None)


def whole_cpus(mounted: Path = MOUNTED, own: Path = OWN) -> int | None:
    """Processors that the tightest quota pays for all the time, at least 1; a container's `--cpus` is such a quota.

    Rounded down, as uber-go/automaxprocs does: one thread more than the quota pays for has all of them stand still
    for the rest of each period, and threads that meet at the end of every loop wait for the last.
    """
    shares = []
    for level, is_old in _levels("cpu", mounted, own):
        with suppress(OSError):
            if is_old:
                words = [(level / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")]
            else:
                words = (level / "cpu.max").read_text().split()
            if words[0] not in ("max", "-1"):
                shares.append(max(1, int(words[0]) // int(words[1])))
    return min(shares, default=None)


def _levels(controller: str, mounted: Path, own: Path) -> Iterator[tuple[Path, bool]]:
    """This process's group and its parents, each with whether it is of cgroup v1."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:  # no Linux
        return
    for _, controllers, group in lines:
        is_old = controllers != ""
        if is_old and controller not in controllers.split(","):
            continue
        root = mounted / controller if is_old else mounted
        folder = root / group.strip("/")
        yield from ((p, is_old) for p in (folder, *folder.parents) if p.is_relative_to(root))

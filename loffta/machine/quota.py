"""What a file system still takes: free bytes and inodes, and what the user's quota leaves of them.

`quota` and `lfs quota` are asked where they are installed; whatever they say that is not understood counts as silence.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

TIMEOUT_S = 10.0  # a quota server that does not answer must not hold an extraction up
_KIB = 1024
# name, then used, soft and hard limit in kB, perhaps a grace time, then the same for files; `*` marks what is exceeded
_GRACE = r"(?:(?:-|none|\d+[a-z:]\S*)\s+)?"
_ROW = re.compile(rf"(\S+)\s+(\d+)\*?\s+(\d+)\s+(\d+)\s+{_GRACE}(\d+)\*?\s+(\d+)\s+(\d+)(?:\s|$)")


@dataclass(frozen=True)
class Room:
    """What can still be written; None where nobody tells."""

    bytes: int
    files: int | None = None  # free inodes; some file systems do not count them


@dataclass(frozen=True)
class Quota:
    """What a user's quota leaves; None: no limit."""

    tool: str  # who said so
    bytes: int | None
    files: int | None


def free_room(path: Path) -> Room:
    """Free space for this user on the file system where `path` is or would be made."""
    status = os.statvfs(existing_parent(path))
    return Room(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def lies_in_memory(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether what is written to a folder takes memory: the job's own, where its memory is limited (cgroups(7))."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:  # no Linux
        return False
    # proc_pid_mountinfo(5): the third word is the device; behind a lone hyphen comes the kind
    return any(words[2] == number and words[words.index("-") + 1] in ("tmpfs", "ramfs") for words in lines)


def user_quota(path: Path) -> Quota | None:
    """This user's quota on the file system of `path`, None where there is none or no tool tells."""
    folder = existing_parent(path)
    user = _user()
    if user and (told := _ask("lfs", "quota", "-u", user, str(folder))):
        rows = parse_quota(told)
        return _left(rows[0], "lfs quota") if rows else None
    told = _ask("quota", "-w", "-u")
    names = _names_of_mount(folder) if told else ()
    return next((_left(row, "quota") for row in parse_quota(told or "") if row[0] in names), None)


def parse_quota(text: str) -> list[tuple[str, tuple[int, int, int], tuple[int, int, int]]]:
    """Rows of what `quota` or `lfs quota` print: file system, (used, soft, hard) in kB, the same in files."""
    _, _, table = text.partition("Filesystem")
    rows = []
    for match in _ROW.finditer(" ".join(table.split())):  # long names stand on a line of their own
        numbers = [int(number) for number in match.groups()[1:]]
        rows.append((match[1], (numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5])))
    return rows


def existing_parent(path: Path) -> Path:
    """The nearest folder that is there: a cache to be made lies on its file system."""
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _left(row: tuple[str, tuple[int, int, int], tuple[int, int, int]], tool: str) -> Quota | None:
    sizes, files = (_below(*numbers) for numbers in row[1:])
    if sizes is None and files is None:
        return None
    return Quota(tool, None if sizes is None else sizes * _KIB, files)


def _below(used: int, soft: int, hard: int) -> int | None:
    """What is left under the hard limit, or the soft one where that is all there is; 0 means no limit."""
    limit = hard or soft
    return max(0, limit - used) if limit else None


def _ask(*command: str) -> str | None:
    """What a command prints, None where it is not installed or does not answer in time."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            check=False,  # `quota` ends with 1 when a limit is exceeded, and tells it all the same
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in many containers
        return None


def _names_of_mount(folder: Path) -> tuple[str, ...]:
    """What `quota` may call the file system of `folder`: its device (or server:/export), or where it is mounted."""
    mounts = [mount for mount in psutil.disk_partitions(all=True) if folder.is_relative_to(mount.mountpoint)]
    inner = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return (inner.device, inner.mountpoint) if inner else ()

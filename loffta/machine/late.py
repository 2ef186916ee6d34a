"""Files that another node wrote a moment ago: over a network file system they may show late, and are looked for again.

In: a look that tells what is missing.   Out: what is still missing when it has been looked for long enough.

An NFS client believes for up to 60 s (`acdirmax`, nfs(5)) that a folder is as it was, and that what was not there is
not. Every look lists the folder anew, which makes the client ask. Called only for what something on disk vouches for: a
done file names its shard. What nobody names, a misspelt cache, is missing at once; so is everything on a local disk.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from loffta.machine.progress import say

Found = TypeVar("Found")
Sleep = Callable[[float, str], None]  # seconds, and what for
PATIENCE_S = 60.0
_FIRST_S, _LONGEST_S = 0.5, 8.0  # between two looks: each is twice the one before
# file systems of one machine; all others, known or not, may be a network's
_DISKS = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "vfat", "exfat", "ntfs3"))
_LOCAL = _DISKS | {"tmpfs", "ramfs", "overlay", "squashfs", "erofs", "fuseblk", "iso9660", "rootfs"}
_OF_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
_MOUNTS = Path("/proc/self/mountinfo")


def pause(seconds: float, _doing: str) -> None:
    """Waits, for callers that hear no signals."""
    time.sleep(seconds)


def look_again(look: Callable[[], Found], folder: Path, what: str, sleep: Sleep = pause) -> Found:
    """What `look` finds missing, looked for again for a minute where `folder` may show files late.

    Args:
        look: gives what is missing, empty where nothing is; it lists names anew at each call.
        what: for the user, while it is waited for.
    """
    missing = look()
    if not missing or not may_show_late(folder):
        return missing
    say(f"{what} cannot be seen; another node may have just written it: looking again for {PATIENCE_S:.0f} s")
    wait_s, left_s = _FIRST_S, PATIENCE_S
    while missing and left_s > 0:
        sleep(min(wait_s, left_s), f"waiting until {what} can be seen")
        left_s, wait_s = left_s - wait_s, min(2 * wait_s, _LONGEST_S)
        missing = look()
    return missing


def may_show_late(folder: Path) -> bool:
    """Whether `folder` lies on a file system that several machines see; False where the system does not tell."""
    kind = file_system(folder)
    return kind is not None and kind not in _LOCAL


def is_job(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is part of a batch job, before which another may have just ended."""
    return any(name in environment for name in _OF_JOBS)


def file_system(folder: Path) -> str | None:
    """The type of the file system of a folder that is there, as `mount` prints it: ext4, nfs4, lustre, ..."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
        place = folder.resolve()
    except OSError:  # no Linux
        return None
    found: tuple[str | None, int] = (None, -1)
    for line in lines:  # proc_pid_mountinfo(5): the fifth field is the mount point, the type is behind the dash
        before, _, behind = line.partition(" - ")
        point = Path(_unescaped(before.split()[4]))
        if place.is_relative_to(point) and len(point.parts) >= found[1]:  # a later mount hides the earlier
            found = behind.split()[0], len(point.parts)
    return found[0]


def _unescaped(text: str) -> str:
    r"""Blanks, tabs, ends of lines and backslashes are written as \040 and so on."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)

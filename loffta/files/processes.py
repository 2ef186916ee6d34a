"""Which process a temporary file belongs to: told in the file's name, and asked of the system by others.

Two containers may have one host name and the same process numbers, so a host is told together with its boot and its
pid namespace (pid_namespaces(7)): only of the same three may a process be asked by its number. Numbers are used again,
in restarted containers at once, so it is told as well when the process began.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

import psutil

UNKNOWN = "0000"  # what `began` says where the system does not tell


def host() -> str:
    """The host's name; behind it, where the system has them, 8 hex digits of its boot and pid namespace."""
    name = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"
    scope = ""
    with suppress(OSError):  # no Linux
        scope = f"{Path('/proc/sys/kernel/random/boot_id').read_text()}{Path('/proc/self/ns/pid').stat().st_ino}"
    return f"{name}-{hashlib.blake2b(scope.encode(), digest_size=4).hexdigest()}" if scope else name


def began(pid: int) -> str:
    """When a process of this host began: 4 hex digits of its start in clock ticks since the boot (proc_pid_stat(5))."""
    try:
        if str(Path("/proc/self").readlink()) != str(os.getpid()):  # /proc of another namespace: other numbers
            return UNKNOWN
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return UNKNOWN
    return f"{ticks % 0xFFFF + 1:04x}"


def is_running(pid: int, since: str) -> bool:
    """Whether the process of this host that began at `since`, as `began` told it, is still there."""
    return psutil.pid_exists(pid) and (UNKNOWN in (since, now := began(pid)) or now == since)

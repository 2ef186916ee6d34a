"""Small durable files: written whole under a temporary name, then put in place at once.

A temporary name tells its writer's host and process, so that what a killed writer left behind can be swept safely.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from loffta.errors import LofftaError

_PART = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.part")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
STALE_AFTER_S = 24 * 3600  # a part of another host: its process cannot be asked, so only age tells


def part_name(final: Path) -> Path:
    """A temporary name beside `final` that names this host and process."""
    return final.with_name(f".{final.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")


@contextmanager
def write_guard(final: Path) -> Iterator[None]:
    """Turns what may forbid to write or delete `final` into an error that says what to do.

    Raises:
        LofftaError: a full disk, inode table or quota, a limit on file sizes, a folder that is read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSED:
            raise LofftaError(
                f"nothing can be written here ({os.strerror(error.errno)})",
                where=final,
                remedy="make the folder writable, or name another one; what is there can be read as it is",
            ) from error
        if error.errno not in _FULL:
            raise
        limit = "; `ulimit -f` says how large one may be" if error.errno == errno.EFBIG else ""
        raise LofftaError(
            f"no space left to write a file ({os.strerror(error.errno)}{limit})",
            where=final,
            remedy="free space or raise the quota, then run the same command again: what is finished is kept",
        ) from error


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` durably; a reader sees the old file or the new one, never part of one."""
    part = _write_part(path, data)
    try:
        with write_guard(path):
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Like replace_file, but the first writer wins.

    Returns:
        False where `path` was there already; it is left as it was.
    """
    part = _write_part(path, data)
    try:
        with write_guard(path):
            os.link(part, path)  # the one call that is exclusive on local disks, NFS and Lustre alike
    except FileExistsError:
        return False
    finally:
        part.unlink()
    sync_folder(path.parent)
    return True


def sweep_parts(folder: Path) -> list[Path]:
    """Deletes what dead writers left in `folder`; a living writer's part stays, and what may not be deleted.

    Returns:
        The files deleted.
    """
    swept = []
    for path in folder.glob(".*.part"):
        match = _PART.fullmatch(path.name)
        if match and _is_stale(path, match["host"], int(match["pid"])):
            with suppress(OSError):  # a read-only cache is used as it is
                path.unlink(missing_ok=True)
                swept.append(path)
    return swept


def _write_part(path: Path, data: bytes) -> Path:
    part = part_name(path)
    try:
        with write_guard(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):  # on a read-only file system this is refused, too
            part.unlink(missing_ok=True)
        raise
    return part


def _is_stale(path: Path, host: str, pid: int) -> bool:
    if host == _host():
        return pid != os.getpid() and not psutil.pid_exists(pid)
    try:
        return time.time() - path.stat().st_mtime > STALE_AFTER_S
    except FileNotFoundError:  # its owner was faster
        return False


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"

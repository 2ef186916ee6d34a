"""Small durable files: written whole under a temporary name, then put in place at once.

A temporary name tells its writer's host and process, so that what a killed writer left behind can be swept safely.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from loffta.os_words import guard

_PART = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.part")
STALE_AFTER_S = 24 * 3600  # a part of another host: its process cannot be asked, so only age tells


def part_name(final: Path) -> Path:
    """A temporary name beside `final` that names this host and process."""
    return final.with_name(f".{final.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are not there.

    Raises:
        LofftaError: a file is where one of them should be, or they may not be made.
    """
    with guard(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    with guard(folder):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` durably; a reader sees the old file or the new one, never part of one."""
    part = _write_part(path, data)
    try:
        with guard(path):
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
    with guard(path):
        try:
            os.link(part, path)  # the one call that is exclusive on local disks, NFS and Lustre alike
        except FileExistsError:
            return False
        finally:
            part.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def create_folder(path: Path, files: Mapping[Path, bytes]) -> bool:
    """Puts a folder of small files in place at once; the first writer wins.

    Args:
        files: contents by their final path inside `path`.
    Returns:
        False where `path` was there already; it is left as it was.
    """
    part = part_name(path)
    with guard(path):
        try:
            for final, data in files.items():
                place = part / final.relative_to(path)
                make_folder(place.parent)
                with place.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            for folder in {(part / final.relative_to(path)).parent for final in files}:
                sync_folder(folder)
            sync_folder(part)
            part.rename(path)  # fails where there is a folder with anything in it
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    sync_folder(path.parent)
    return True


def remove_folder(path: Path) -> None:
    """Takes a folder away at once, if it is there: a reader meets all of it or nothing."""
    part = part_name(path)
    with guard(path):
        try:
            path.rename(part)
        except FileNotFoundError:
            return
        sync_folder(path.parent)
        shutil.rmtree(part)


@dataclass(frozen=True)
class Part:
    """A temporary file, and the writer that its name tells."""

    path: Path
    host: str
    pid: int
    bytes: int
    age_s: float  # since it was last written to
    stale: bool  # its writer is dead, or was on another host and has not written for a day


def find_parts(root: Path) -> list[Part]:
    """Every temporary file or folder below `root`; nothing is deleted."""
    found = []
    for folder, folders, files in os.walk(root):  # unlike rglob, it passes over a folder that is gone
        for name in sorted((*folders, *files)):
            match = _PART.fullmatch(name)
            if match:
                path = Path(folder, name)
                try:
                    status = path.stat()
                except FileNotFoundError:  # its owner was faster
                    continue
                stale = _is_stale(path, match["host"], int(match["pid"]))
                age_s = max(0.0, time.time() - status.st_mtime)
                found.append(Part(path, match["host"], int(match["pid"]), status.st_size, age_s, stale))
        folders[:] = [name for name in folders if not name.endswith(".part")]
    return found


def sweep_parts(folder: Path) -> list[Path]:
    """Deletes what dead writers left in `folder`; a living writer's part stays, and what may not be deleted.

    Returns:
        The files and folders deleted.
    """
    swept = []
    for path in folder.glob(".*.part"):
        match = _PART.fullmatch(path.name)
        if match and _is_stale(path, match["host"], int(match["pid"])):
            with suppress(OSError):  # a read-only cache is used as it is
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)  # another process may sweep it as well
                else:
                    path.unlink(missing_ok=True)
                swept.append(path)
    return swept


def sweep_tree(root: Path) -> None:
    """Sweeps every folder under `root`, whatever other processes move meanwhile."""
    for folder, folders, files in os.walk(root):  # unlike rglob, it passes over a folder that is gone
        if any(name.endswith(".part") for name in (*folders, *files)):
            sweep_parts(Path(folder))
        folders[:] = [name for name in folders if not name.endswith(".part")]


def _write_part(path: Path, data: bytes) -> Path:
    part = part_name(path)
    try:
        with guard(path):
            make_folder(path.parent)
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

"""Small durable files: written whole under a temporary name, then put in place at once.

A temporary name tells its writer's host and process, so that what a killed writer left behind can be swept safely.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from loffta.errors import LofftaError
from loffta.files import processes
from loffta.files.exclusive import place_first
from loffta.files.os_words import guard

_PART = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)\.(?P<began>[0-9a-f]{4})[0-9a-f]{4}\.part")
STALE_AFTER_S = 24 * 3600  # a part of another host: its process cannot be asked, so only age tells
N_TRIES = 3  # for a part that others delete while it is written: a purge, an older loffta, somebody's `rm`
# of fsync(2) on a folder: as PostgreSQL passes them over in fsync_fname_ext; the last two are FUSE's
_NO_FOLDER_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_SYNC_FILE_RANGE_WRITE = 2  # of Linux' fcntl.h
_numbers = itertools.count(random.SystemRandom().randrange(1 << 16))


def part_name(final: Path) -> Path:
    """A temporary name beside `final` that names this host and process, and that no other call gives."""
    pid = os.getpid()
    unique = f"{processes.began(pid)}{next(_numbers) % (1 << 16):04x}"
    return final.with_name(f".{final.name}.{processes.host()}.{pid}.{unique}.part")


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
    """Makes a rename in `folder` survive a power cut; nothing where the file system syncs no folders."""
    with guard(folder):
        _sync(folder)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Writes `data` to `path` durably; a reader sees the old file or the new one, never part of one."""
    with new_file(path) as file, guard(path):
        file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; it is at `path`, durable, when the block has ended well, and nothing is left otherwise."""
    with _open_part(path) as (part, file):
        yield file
        with guard(path):
            file.flush()
        put_in_place(file.fileno(), part, path)


def create_file(path: Path, data: bytes) -> bool:
    """Like replace_file, but the first writer wins.

    Returns:
        False where `path` was there already; it is left as it was.
    """
    with _open_part(path) as (part, file):
        with guard(path):
            file.write(data)
            file.flush()
        return put_in_place(file.fileno(), part, path, place_first)


def replace_part(part: Path, path: Path) -> bool:
    """Gives a part its name, whatever was there."""
    part.replace(path)
    return True


def put_in_place(fd: int, part: Path, path: Path, move: Callable[[Path, Path], bool] = replace_part) -> bool:
    """Makes what was written to a part durable and gives it its name; what others deleted meanwhile is written again.

    Args:
        fd: the part, open for reading too: the bytes are there as long as it is open.
        move: gives the name, and then leaves no part; False where it left another's file as it was.
    """
    moved = False
    with guard(path):
        os.fsync(fd)
        try:
            for _ in range(N_TRIES):
                try:
                    moved = move(part, path)
                    break
                except FileNotFoundError:
                    part = part_name(path)
                    _copy(fd, part)
            else:
                raise _swept_away(path)
        finally:
            if not moved:  # else nothing is left, and a file server need not be asked
                delete_part(part)
    sync_folder(path.parent)
    return moved


def begin_sync(fd: int, place: int, n_bytes: int) -> None:
    """Lets the disk begin with bytes that were just written, so that the fsync has less to wait for; Linux alone.

    By itself the kernel waits for seconds, or for a tenth of the memory, and the disk stands still meanwhile.
    """
    with suppress(AttributeError):  # no such call here
        ctypes.CDLL(None).sync_file_range(
            fd, ctypes.c_int64(place), ctypes.c_int64(n_bytes), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
        )


def delete_part(part: Path) -> None:
    """Deletes a temporary file or folder, if it is there; one that may not be deleted now is swept later."""
    with suppress(OSError):  # on a read-only file system this is refused, too
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _swept_away(path: Path) -> LofftaError:
    return LofftaError(
        "another process deletes temporary files here",
        where=path,
        remedy="let no program clean up where loffta writes, then run the same command again",
    )


def _copy(fd: int, path: Path) -> None:
    """Writes the bytes of an open file to a new one."""
    with path.open("xb") as copy, os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())


@contextmanager
def _open_part(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    part = part_name(path)
    with guard(path):
        try:
            file = part.open("x+b")
        except FileNotFoundError:
            make_folder(path.parent)
            file = part.open("x+b")
    try:
        yield part, file
    except BaseException:
        _close(file)
        delete_part(part)
        raise
    _close(file)


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # of what was still to be written: it is told, and not wanted, already
        file.close()


def create_folder(path: Path, files: Mapping[Path, bytes]) -> bool:
    """Puts a folder of small files in place at once; the first writer wins.

    Args:
        files: contents by their final path inside `path`.
    Returns:
        False where `path` was there already; it is left as it was.
    """
    with guard(path):
        for _ in range(N_TRIES):
            part = part_name(path)
            try:
                _fill(part, {final.relative_to(path): data for final, data in files.items()})
                part.rename(path)  # fails where there is a folder with anything in it
                break
            except FileNotFoundError:  # as in `put_in_place`
                continue
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
            finally:
                delete_part(part)
        else:
            raise _swept_away(path)
    sync_folder(path.parent)
    return True


def _fill(folder: Path, files: Mapping[Path, bytes]) -> None:
    """Makes a folder with these files in it, all durable."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    for inner in {folder, *((folder / name).parent for name in files)}:
        _sync(inner)


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

    @property
    def is_mine(self) -> bool:
        """Whether this process writes it."""
        return (self.host, self.pid) == (processes.host(), os.getpid())


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
                stale = _is_stale(path, match["host"], int(match["pid"]), match["began"])
                age_s = max(0.0, time.time() - status.st_mtime)
                found.append(Part(path, match["host"], int(match["pid"]), status.st_size, age_s, stale))
        folders[:] = [name for name in folders if not name.endswith(".part")]
    return found


def sweep_parts(folder: Path) -> None:
    """Deletes what dead writers left in `folder`; a living writer's part stays, and what may not be deleted."""
    for path in folder.glob(".*.part"):
        match = _PART.fullmatch(path.name)
        if match and _is_stale(path, match["host"], int(match["pid"]), match["began"]):
            delete_part(path)


def sweep_tree(root: Path) -> None:
    """Sweeps every folder under `root`, whatever other processes move meanwhile."""
    for folder, folders, files in os.walk(root):  # unlike rglob, it passes over a folder that is gone
        if any(name.endswith(".part") for name in (*folders, *files)):
            sweep_parts(Path(folder))
        folders[:] = [name for name in folders if not name.endswith(".part")]


def _is_stale(path: Path, host: str, pid: int, began: str) -> bool:
    if host == processes.host():
        return not processes.is_running(pid, began)
    try:
        return time.time() - path.stat().st_mtime > STALE_AFTER_S
    except FileNotFoundError:  # its owner was faster
        return False

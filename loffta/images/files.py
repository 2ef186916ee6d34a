"""Image files below one root, by keys that cannot lead out of it; and what the readers of files share.

A key is a path relative to the root, with slashes. Called by every reader of image sets that lie in files.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loffta.errors import UsageError
from loffta.machine.progress import say
from loffta.store.names import text_fault
from loffta.words import first_of

ABSENT = "there is no such file"


class OutsideRoot(OSError):
    """A file that is reached from the root, but does not lie in it."""


class FileRoot:
    """A folder that bytes are read from, and never from elsewhere, unless the user said that its links may lead out."""

    def __init__(self, path: Path, *, follow_links: bool = False) -> None:
        self.path = path.resolve()
        self.follows = follow_links

    def locate(self, key: str) -> Path:
        """The file behind a key, all symbolic links followed.

        Raises:
            OSError: it leaves the root, is not there, or is no regular file (to open a pipe would wait for ever).
        """
        fault = key_fault(key)
        if fault:
            raise OutsideRoot(fault)
        real = Path(os.path.realpath(self.path / key, strict=True))
        if not self.follows and not real.is_relative_to(self.path):
            raise OutsideRoot("it leaves the image set's folder")
        return real

    def size(self, key: str) -> int:
        """Bytes of a file, without opening it; raises as `locate`."""
        status = self.locate(key).stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        return status.st_size

    def outside(self, key: str) -> str | None:
        """The folder of a file that a link leads out to; None where it lies in the root."""
        real = self.locate(key)
        return None if real.is_relative_to(self.path) else str(real.parent)

    def read(self, key: str) -> bytes:
        """The bytes of a file; raises as `locate`, for it may have been exchanged since the listing."""
        path = self.locate(key)
        if not path.is_file():
            raise OSError("it is no regular file")
        return path.read_bytes()


class FileList:
    """Image files of one root, each listed once; what is wrong is collected, to be told at once."""

    def __init__(self, root: FileRoot) -> None:
        self.sizes: dict[str, int] = {}  # bytes by key, in the order of listing
        self.faults: list[str] = []
        self._root = root
        self._places: dict[str, str] = {}

    def add(self, path: str, place: str) -> str | None:
        """The key of an image that is there and new, or None and a fault.

        Args:
            place: where the path was read, for messages: `train.txt line 3`.
        """
        fault, size = key_fault(path), 0
        key = path if fault else to_key(path)
        if not fault and key in self._places:
            fault = f"listed before, in {self._places[key]}"
        if not fault:
            size, fault = file_fault(self._root, key)
        if fault:
            self.faults.append(f"{place}: {path!r}: {fault}")
            return None
        self._places[key] = place
        self.sizes[key] = size
        return key

    def companion(self, path: str) -> str | None:
        """The path of a file that belongs to an image, None where it is not there; one that leads out is a fault."""
        _, fault = file_fault(self._root, path)
        if fault and fault != ABSENT:
            self.faults.append(f"{path!r}: {fault}")
        return None if fault else path


def key_fault(key: str) -> str | None:
    """Why a path is no key, None for a good one."""
    if not key:
        return "the path is empty"
    if text_fault(key):
        return "the path holds a control character or is not UTF-8"
    if key.startswith("/"):
        return "the path is absolute"
    if ".." in key.split("/"):
        return "the path holds '..'"
    return None


def to_key(path: str) -> str:
    """One spelling for paths that mean the same: `./a//b.png` is `a/b.png`. For paths without a fault."""
    return posixpath.normpath(path)


def file_fault(root: FileRoot, key: str) -> tuple[int, str | None]:
    """(bytes, None) of a file that can be used, or (0, why it cannot)."""
    try:
        return root.size(key), None
    except FileNotFoundError:
        return 0, ABSENT
    except OSError as error:
        return 0, error.strerror or str(error)


def user_path(text: str) -> Path:
    """The path that a user named; `~` is the home folder, which no shell expands behind a colon."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser raises for a user that is not there


def split_part(text: str) -> tuple[str, str]:
    """(path, part) of `path#part`; the part is empty where there is none, or where the whole text is a path."""
    path, mark, part = text.rpartition("#")
    return (path, part) if mark and not os.path.lexists(user_path(text)) else (text, "")


FOLLOW = "#follow-links"
_ROOT = "#root="


@dataclass(frozen=True)
class Place:
    """Where an image set lies, and what its user opened: `PATH#root=DIR#follow-links`."""

    path: str
    root: str | None = None  # of the images of a table
    follow_links: bool = False

    @classmethod
    def parse(cls, text: str) -> Place:
        """Reads it; a path that has such words in its name and is there is a path."""
        if os.path.lexists(user_path(text)):
            return cls(text)
        rest = text.removesuffix(FOLLOW)
        path, mark, root = rest.partition(_ROOT)
        return cls(path, root if mark else None, rest != text)

    def __str__(self) -> str:
        return self.path + (f"{_ROOT}{self.root}" if self.root is not None else "") + FOLLOW * self.follow_links


def is_there(path: Path, *, folder: bool) -> bool:
    """Whether there is such a folder or file; OSError where this process may not look."""
    try:
        mode = path.stat().st_mode
    except ValueError:  # a name with a zero byte
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise
    return stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)


def existing(text: str, *, source: str, folder: bool) -> Path:
    """The path of a folder or file that a user named.

    Raises:
        UsageError: there is none.
    """
    kind = "folder" if folder else "file"
    path = user_path(text)
    if not text or not is_there(path, folder=folder):
        raise UsageError(
            f"there is no {kind} '{text}'" if text else f"the path of the {kind} is missing",
            where=f"SOURCE {source}",
            remedy=f"give the path of a {kind}; relative ones start at {Path.cwd()}",
        )
    return path


def say_followed(source: str, root: FileRoot, keys: Iterable[str]) -> None:
    """One line about the files behind links that lead out of a folder, where the user opened them."""
    if root.follows:
        outside = [folder for key in keys if (folder := root.outside(key))]
        folders = [repr(folder) for folder in dict.fromkeys(outside)]
        say(
            f"{source}: files behind links that lead out: {len(outside)}"
            + (f", in {first_of(folders, ', ')}" * bool(outside))
        )

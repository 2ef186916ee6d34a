"""The one place that turns an OSError into words: what happened, to which file, whose it is, what to do.

In: the error of any file operation.   Out: a LofftaError. `guard` is for where the file is known better than the error
knows it (a descriptor has no name); what nobody guarded is explained by the command line. What each number means is
from the ERRORS sections of Linux' manual pages: open(2), write(2), link(2), rename(2), fsync(2), nfs(5).
"""

from __future__ import annotations

import errno
import os
import pwd
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from loffta.errors import LofftaError
from loffta.words import printable

_LONGEST = 300  # characters of a path in a message: one that is too long for the system would fill the screen
_GO_ON = "then run the same command again: what is finished is kept"
_FULL = ("no space left to write a file", f"free space or raise the quota, {_GO_ON}")
_REFUSED = ("nothing can be written here", "make the folder writable, or name another one; what is there can be read")
_LOST = (
    "the disk or file server did not answer as it should",
    f"look whether it is mounted and well, {_GO_ON}; `loffta verify CACHE` lists what is damaged in a cache",
)
_UNABLE = ("this file system cannot do what a cache or run needs", "choose a folder on another file system")
_IN_USE = ("something else holds this file or folder", f"wait until it is let go, {_GO_ON}")
_MEMORY = ("the system has no memory left for this", f"end other programs or ask for more memory, {_GO_ON}")

# errno -> what happened, what to do
_WORDS: dict[int, tuple[str, str]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _REFUSED),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN), _LOST),
    **dict.fromkeys((errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.EMLINK, errno.ENODEV), _UNABLE),
    **dict.fromkeys((errno.EBUSY, errno.ETXTBSY, errno.EAGAIN, errno.ENOLCK, errno.EDEADLK), _IN_USE),
    **dict.fromkeys((errno.ENOMEM, errno.ENOBUFS), _MEMORY),
    errno.ENOENT: (
        "there is no such file or folder",
        "check the path; where another process has just moved or deleted it, run the same command again",
    ),
    errno.EEXIST: ("something is there already", "name another place, or move what is there"),
    errno.ENOTEMPTY: ("this folder is not empty", f"wait for the process that writes there, {_GO_ON}"),
    errno.ENOTDIR: ("a file is where this folder should be", "name another place, or move the file"),
    errno.EISDIR: ("a folder is where this file should be", "name another place, or move the folder"),
    errno.ELOOP: ("symbolic links lead round in a circle here", "mend the links, or name the real path"),
    errno.ENAMETOOLONG: (
        "this name is too long for the file system",
        "choose a shorter one: most take 255 bytes for a file's name and 4,096 for a path",
    ),
    errno.EMFILE: ("this process may not open more files", f"raise its limit with `ulimit -n 4096`, {_GO_ON}"),
    errno.ENFILE: ("this machine may not open more files", f"end other programs, {_GO_ON}"),
}
# of the machine, or of a file server that comes back: they say nothing about the file, which is whole
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN)
PASSING = frozenset((*_OF_THE_MACHINE, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN))


class _Culprit(NamedTuple):
    """What on the way to a file does not let this process through, and what may not be done with it."""

    path: Path
    deed: str


def explain(error: OSError, where: str | Path | None = None) -> LofftaError:
    """The error of a file operation, for whoever has to mend it.

    Args:
        where: what was worked on; None: what the error names itself.
    """
    code = error.errno or 0
    named = where if where is not None else _named(error)
    if named is None and code == errno.ENOENT and _is_homeless():
        return LofftaError("the current folder has been deleted", where=os.curdir, remedy="`cd` to one that is there")
    what, remedy = _WORDS.get(code, ("the system refused a file operation", "add -v for the place in the code"))
    if not error.errno:  # a library's own, such as one of a decoder
        what, said = f"{type(error).__name__}: {printable(error)[:_LONGEST]}", ""
    else:
        said = f" ({os.strerror(code)}{_limit(code)})"
    if code in (errno.EACCES, errno.EPERM):
        culprit = _find_culprit(Path(_named(error) or named or os.curdir))
        if culprit is not None:
            what = f"{culprit.path} may not be {culprit.deed}"
            said = f" ({os.strerror(code)}): it is {_whose(culprit.path)}"
            remedy = "let the owner open it (`chmod`), or name another place"
    return LofftaError(f"{what}{said}", where=_short(named), remedy=remedy)


@contextmanager
def guard(where: str | Path) -> Iterator[None]:
    """Explains what a file operation on `where` meets.

    Raises:
        LofftaError: any OSError, in words.
    """
    try:
        yield
    except OSError as error:
        raise explain(error, where) from error


def _is_homeless() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return True
    return False


def _named(error: OSError) -> str | None:
    """The file that the error itself names: the last of two, where something goes from one to the other."""
    found = [name for name in (error.filename2, error.filename) if isinstance(name, str | bytes | os.PathLike)]
    return os.fsdecode(found[0]) if found else None


def _short(named: str | Path | None) -> str:
    if named is None:
        return "a file that the system did not name"
    text = str(named)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _limit(code: int) -> str:
    """The limit of this process that was met, if it was one."""
    if code == errno.EFBIG:
        return "; `ulimit -f` says how large one may be"
    if code == errno.EMFILE:
        return f"; the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    return ""


def _find_culprit(path: Path) -> _Culprit | None:
    """The first folder on the way that may not be entered, else the file, else the folder that it would be made in.

    None where all of it may be read and written: then it is an attribute, an access list or a rule of the system.
    """
    path = path.absolute()
    with suppress(OSError, ValueError):
        for folder in reversed(path.parents):
            if folder.is_dir() and not _may(folder, os.X_OK):
                return _Culprit(folder, "entered")
        for mode, deed in ((os.R_OK, "read"), (os.W_OK, "written to")):
            if path.exists() and not _may(path, mode | (os.X_OK if path.is_dir() else 0)):
                return _Culprit(path, deed)
        folder = next(folder for folder in path.parents if folder.is_dir())
        if not _may(folder, os.W_OK):
            return _Culprit(folder, "written to")
    return None


def _may(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _whose(path: Path) -> str:
    """`user ada's, drwx------, and this process runs as user bob`."""
    status = path.stat()
    return f"{_user(status.st_uid)}'s, {stat.filemode(status.st_mode)}, and this process runs as {_user(os.geteuid())}"


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:  # an id without a name, as in many containers
        return f"user {number}"

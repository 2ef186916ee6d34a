"""What is only shown may fail, the work never: standard streams that are closed or full, and terminals that have gone.

Called first of all by whatever is a process of its own (`loffta`, the pipelines).
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any

_WRITTEN = {"stdout": 1, "stderr": 2}


def secure_streams() -> None:
    """Lets no file take descriptors 0 to 2, and no stream raise: what cannot be written is dropped.

    A descriptor that was closed (cron, daemons, `2>&-`) would be the next file's, and a library's warning would go into
    it; `print(file=None)`, which Python makes of a closed stderr, would go to stdout.
    """
    for fd in range(3):  # in this order: the system gives the lowest that is free
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  as Python does at the start
    for name, fd in _WRITTEN.items():
        stream = getattr(sys, name)
        if stream is None or (_descriptor(stream) == fd and _shown(stream) is None):
            setattr(sys, name, _secured(stream, fd))


def lost_output() -> OSError | None:
    """Why not all of stdout could be written; None where it was, and where it went with its terminal."""
    shown = _shown(sys.stdout)
    if shown is None:
        return None
    sys.stdout.flush()
    return None if shown.is_terminal else shown.lost


class _Shown(io.FileIO):
    """A stream's descriptor that takes everything, and remembers the first reason why something was not written."""

    def __init__(self, fd: int, replaced: Any) -> None:
        super().__init__(fd, "w", closefd=False)
        self._replaced = replaced  # kept: the end of a file object closes its descriptor
        self.lost: OSError | None = None
        self.is_terminal = self.isatty()  # asked now: one that has gone says no

    def write(self, data: Any, /) -> int:
        """Writes all of it, or drops what cannot be written."""
        view = memoryview(data).cast("B")
        left = view
        try:
            while left:
                written = super().write(left)
                if written is None:  # another process made it non-blocking: waits as it would by itself
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError as error:
            self.lost = self.lost or error
        return view.nbytes


def _secured(stream: Any, fd: int) -> io.TextIOWrapper:
    """As `stream`, or as Python makes one; characters that the encoding lacks are escaped, on stdout as on stderr."""
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()
        encoding, by_line, at_once = stream.encoding, stream.line_buffering, stream.write_through
    else:
        encoding, by_line, at_once = "utf-8", fd == 2, False
    shown = _Shown(fd, stream)
    return io.TextIOWrapper(
        shown if at_once else io.BufferedWriter(shown),  # as CPython has it for `python -u`
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=by_line,
        write_through=at_once,
    )


def _shown(stream: Any) -> _Shown | None:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, _Shown) else None


def _descriptor(stream: Any) -> int | None:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):  # no file, as under a test
        return None

"""How files of a cache are read: what the storage has lost is damage, what may not be read says why.

In: paths.   Out: bytes or descriptors. Used wherever a cache's documents, done files and shards are opened.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loffta.errors import DamageFound
from loffta.files.documents import MAX_BYTES, from_json, read_bytes
from loffta.files.os_words import explain
from loffta.words import printable

REPAIR = "run `loffta verify CACHE` to list all damage, with --repair to mend it"
_LONGEST = 300  # characters of a library's words
# what a storage says of a file that it cannot give back: bad sectors, stale handles, a folder or a loop in its place
_LOST = (errno.EIO, errno.ESTALE, errno.EISDIR, errno.ELOOP, *(getattr(errno, n, 0) for n in ("EUCLEAN", "EBADMSG")))


@contextmanager
def read_guard(path: Path) -> Iterator[None]:
    """Tells apart what keeps a file from being read.

    Raises:
        FileNotFoundError, NotADirectoryError: it is not there; the caller knows what that means.
        DamageFound: the storage has lost it: `verify` lists it and `--repair` writes it anew.
        LofftaError: it may not be read, or the process may open no more files.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno in _LOST:
            raise DamageFound(f"cannot be read ({error.strerror})", where=path, remedy=REPAIR) from error
        raise explain(error, path) from error


def read_file(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a small file; errors as `read_guard`, and DamageFound where it is none that loffta writes."""
    try:
        with read_guard(path):
            return read_bytes(path, max_bytes)
    except ValueError as error:
        raise DamageFound(f"cannot be read: {error}", where=path, remedy=REPAIR) from error


def read_document(path: Path) -> Any:
    """What a small JSON file says; errors as `read_file`, and ValueError where it is none or too deep."""
    return from_json(read_file(path))


def reason(error: object) -> str:
    """Why a document cannot be read, fit for a message whatever it holds."""
    return printable(error)[:_LONGEST]


def open_file(path: Path) -> int:
    """A descriptor to read from; errors as `read_guard`."""
    with read_guard(path):
        return os.open(path, os.O_RDONLY)

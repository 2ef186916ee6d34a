"""Gives a finished temporary file its name, unless there is one: the first of many processes wins, on any file system.

By a hard link: link(2) is the one call that is exclusive on local disks, NFS and Lustre alike. Where there are none, by
a claim: an empty file beside the name, made with O_EXCL, whose maker alone may look and rename. A reader never meets
a file that is not whole, as it would were the name itself created empty.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

# of link(2): vfat and exFAT, FUSE file systems such as gcsfuse and s3fs, 9p, and a file that has too many links
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
CLAIM_S = 5.0  # what takes two calls of the system takes no longer: this claim is of a process that was killed


def place_first(part: Path, path: Path) -> bool:
    """Puts `part` at `path` if nothing is there.

    Returns:
        False where something was; it is left as it was.
    """
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _claim(part, path)
    with suppress(OSError):  # the file's other name; what may not be deleted is swept later
        part.unlink()
    return True


def _claim(part: Path, path: Path) -> bool:
    claim = path.with_name(f".{path.name}.claim.0.00000000.part")  # one name for all, and temporary like any other
    began = time.monotonic()
    while not path.exists():
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            if time.monotonic() - began > CLAIM_S:
                claim.unlink(missing_ok=True)
                began = time.monotonic()
            time.sleep(0.01)
            continue
        try:
            if path.exists():
                return False
            part.replace(path)
            return True
        finally:
            claim.unlink(missing_ok=True)
    return False

"""Which process trains in a folder: one at a time, on one machine or on many, and none for ever.

In: a run's folder.   Out: a Claim for as long as a training writes there. A claim is a small file with a number, made
exclusively, touched every HEARTBEAT_S and taken away at the end; no lock of the file system is needed, which Lustre and
NFS may not have or may keep to one host. A process that was killed leaves its claim behind, and the next takes the next
number: at once where the system knows that the process is gone, or SLURM, which starts a job again when it has ended;
after SILENT_S where it ran on another machine or in another container. Lustre writes the time that a client has, and
clocks of nodes may differ by minutes: so a claim that looks silent is watched for WATCH_S; one that is touched lives.
A process that was only asleep finds out before it writes its next file that it was taken over, and ends.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import Annotated

import psutil
from pydantic import Field, TypeAdapter, ValidationError

from loffta.errors import LofftaError
from loffta.files import processes
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import create_file, make_folder, part_name
from loffta.machine.progress import say
from loffta.runs.run import RunPaths

HEARTBEAT_S = 20.0
WATCH_S = 2.5 * HEARTBEAT_S
CLOCKS_S = 3600.0  # what is silent for longer is so by any clock
SILENT_S = 180.0  # nfs(5): another node's times show up to 60 s late (acregmax); a heartbeat, and as much again


class AtWork(LofftaError):
    """Another training has claimed the folder."""


@dataclass(frozen=True)
class Owner:
    """Who a claim is of; what nobody could tell is empty."""

    host: str = ""  # with its boot and pid namespace
    pid: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    began: str = processes.UNKNOWN  # when the process did
    node: Annotated[str, Field(max_length=256)] = "a host that is not known"
    since: Annotated[str, Field(max_length=64)] = "a time that is not known"
    job: Annotated[str, Field(max_length=256)] = ""  # of SLURM
    start: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0  # of the job; it counts how often it was requeued

    def __str__(self) -> str:
        return f"process {self.pid} on {self.node}, since {self.since}"


@dataclass(frozen=True)
class Claim:
    """The right to write into one folder."""

    paths: RunPaths
    number: int

    @property
    def path(self) -> Path:
        """Its file."""
        return self.paths.claim(self.number)

    def check(self) -> None:
        """Looks whether it still holds, before something is written.

        Raises:
            LofftaError: another process has taken the folder over.
        """
        if self.path.exists() and not self.paths.claim(self.number + 1).exists():
            return
        others = [_read_owner(path) for number, path in self.paths.claims().items() if number != self.number]
        raise LofftaError(
            f"another process has taken this training over: {others[-1] if others else 'its claim is gone'}",
            where=self.paths.root,
            remedy="was this one suspended? It has written nothing since; the same command goes on when the other ends",
        )

    def beat(self, ended: Event) -> None:
        """Says every HEARTBEAT_S that the process is there, until `ended` or until the claim is another's."""
        while not ended.wait(HEARTBEAT_S):
            try:
                os.utime(self.path)  # by the clock of the file server
            except FileNotFoundError:
                return
            except OSError:  # a file server that is away for a moment
                continue


@contextmanager
def claimed(paths: RunPaths) -> Iterator[Claim]:
    """The folder for this process alone, as long as the block lasts; it is made where it is not there.

    Raises:
        LofftaError: another training is at work there, or nothing can be written.
    """
    claim = take(paths)
    ended = Event()
    heart = Thread(target=claim.beat, args=(ended,), name="claim", daemon=True)
    heart.start()
    try:
        yield claim
    finally:
        ended.set()
        heart.join()
        with suppress(OSError):  # a folder that is gone, or that may not be written any more
            claim.path.unlink(missing_ok=True)


def take(paths: RunPaths) -> Claim:
    """A claim of this process; those of the dead are taken away.

    Raises:
        LofftaError: as `claimed`.
    """
    make_folder(paths.root)
    standing = paths.claims()
    for path in standing.values():
        _refuse_living(path)
    claim = Claim(paths, max(standing, default=0) + 1)
    while not create_file(claim.path, json.dumps(asdict(_this_process())).encode()):
        _refuse_living(claim.path)  # another was faster; by its name, for NFS may list the folder as it was before
        claim = Claim(paths, claim.number + 1)
    try:
        for number, path in paths.claims().items():
            if number != claim.number:
                _refuse_living(path)  # one that began while the dead were looked at
                path.unlink(missing_ok=True)
    except BaseException:
        claim.path.unlink(missing_ok=True)
        raise
    return claim


def is_claimed(paths: RunPaths) -> bool:
    """Whether a training is at work in a folder."""
    try:
        for path in paths.claims().values():
            _refuse_living(path)
    except AtWork:
        return True
    return False


def _this_process() -> Owner:
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    job = "/".join(os.environ.get(name, "") for name in ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID")).strip("/")[:256]
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    start = int(restarts) if restarts.isdecimal() and len(restarts) < 9 else 0
    return Owner(
        processes.host(), os.getpid(), processes.began(os.getpid()), socket.gethostname(), now, job=job, start=start
    )


def _refuse_living(path: Path) -> None:
    owner = _read_owner(path)
    if owner.host == processes.host():
        if not _is_running(owner):
            return
        heard = ""
    elif owner.job and (own := _this_process()).job == owner.job and own.start > owner.start:
        return
    else:
        silent_s = _silent_s(path)
        if silent_s > SILENT_S and not (silent_s < CLOCKS_S and _is_touched(path, owner)):
            return
        silent_s = max(0.0, silent_s)
        heard = f"; it was heard of {silent_s:.0f} s ago, and after {SILENT_S:.0f} s of silence it counts as gone"
    raise AtWork(
        f"another training is at work in this folder: {owner}{heard}",
        where=path.parent,
        remedy="wait for it to end: the same command then goes on from there. Or choose another --out",
    )


def _is_running(owner: Owner) -> bool:
    if not processes.is_running(owner.pid, owner.began):
        return False
    try:
        return psutil.Process(owner.pid).status() != psutil.STATUS_ZOMBIE  # killed, and its parent has not looked yet
    except psutil.NoSuchProcess:
        return False


def _read_owner(path: Path) -> Owner:
    try:
        return TypeAdapter(Owner).validate_python(from_json(read_bytes(path)))
    except (OSError, ValueError, ValidationError):  # gone meanwhile, or damaged: its times tell
        return Owner()


def _is_touched(path: Path, owner: Owner) -> bool:
    """Whether a claim is touched while one looks, whatever the clock says that touches it."""
    say(f"a training that seems to have ended, {owner}: looking for {WATCH_S:.0f} s whether it is so")
    with suppress(OSError):
        before, end = path.stat().st_mtime_ns, time.monotonic() + WATCH_S
        while time.monotonic() < end:
            time.sleep(WATCH_S / 50)
            path.read_bytes()  # opened: NFS asks its server anew
            if path.stat().st_mtime_ns != before:
                return True
    return False


def _silent_s(path: Path) -> float:
    """Seconds since a claim was touched, by the clock that its folder has; infinite where it is gone."""
    probe = part_name(path)
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    except OSError:  # nothing may be written here: the claim that comes next says so
        return time.time() - path.stat().st_mtime
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)

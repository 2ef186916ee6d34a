"""How a pipeline stands on a cluster: of every stage whether it is queued, runs, is done or failed, and why.

In: stages and their folder.   Out: a State each, from their jobs' answers, squeue, sacct and the logs. Writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loffta.errors import LofftaError
from loffta.pipeline import engine
from loffta.pipeline.jobs import SlurmPaths, find_active, find_done, read_records
from loffta.pipeline.stages import Stage
from loffta.store.cache import Cache
from loffta.store.ledger import done_units
from loffta.words import human_size, printable

DONE, RUNNING, QUEUED, FAILED, MISSING = "done", "running", "queued", "failed", "not submitted"
_LAST_LINES = 6
_LOG_TAIL = 4096  # bytes that are looked at
_KILLED = 9
_WAITS_FOR = {
    "Dependency": "for the stages before it",
    "DependencyNeverSatisfied": "for a stage that failed: it will not run",
    "BeginTime": "for its second start: it was requeued",
    "Priority": "behind jobs of higher priority",
    "Resources": "for free nodes",
}


@dataclass(frozen=True)
class State:
    """How one stage stands."""

    stage: str
    state: str  # one of the words above
    why: str = ""
    job: str = ""
    units: tuple[int, int] | None = None  # done, and all; of an extraction
    cpu: str = ""  # time of all CPUs, as sacct prints it
    peak: str = ""  # memory, as sacct prints it
    log: str = ""  # the file
    last_lines: tuple[str, ...] = ()  # of a failed one


def look(stages: Sequence[Stage], out: Path) -> list[State]:
    """How every stage stands now.

    Raises:
        LofftaError: SLURM does not answer, or a record cannot be read.
    """
    paths = SlurmPaths(out)
    done, active = find_done(stages, out), find_active(paths)
    last = {}  # the newest job that an element was submitted under, by the stage's mark; the log has them all
    records = read_records(paths)
    for record in records:
        for index, mark in enumerate(record.marks):
            ids = [f"{job}_{index}" for job in record.jobs]
            last[mark] = (ids, paths.log(record.array, index))
    ended = engine.ended(sorted({job for record in records for job in record.jobs}))
    found, finished = [], Finished()
    for stage in stages:
        ids, log = last.get(stage.mark, ([], None))
        old = next(((job, ended[job]) for job in reversed(ids) if job in ended), None)
        units = finished.of(stage)
        if stage.name in done:
            peak, cpu = (old[1].peak, old[1].cpu) if old else ("", "")
            found.append(State(stage.name, DONE, "", old[0] if old else "", units, cpu, peak, str(log or "")))
        elif stage.mark in active:
            found.append(_active(stage, active[stage.mark], units, str(log or "")))
        elif old is not None:
            job, how = old
            lines = tail(log) if log else ()
            found.append(State(stage.name, FAILED, why(how), job, units, how.cpu, how.peak, str(log or ""), lines))
        else:
            found.append(State(stage.name, MISSING, "", "", units))
    return found


def _active(stage: Stage, job: engine.Job, units: tuple[int, int] | None, log: str) -> State:
    if job.state == "PENDING":
        reason = job.reason.strip("()")
        return State(stage.name, QUEUED, f"waits {_WAITS_FOR.get(reason, f'({reason})')}", job.id, units, log=log)
    return State(stage.name, RUNNING, f"for {job.elapsed} on {job.node}", job.id, units, log=log)


def why(how: engine.Ended) -> str:
    """Why an element is no longer there and has no answer, in words, and what to do."""
    of_memory = f": its memory peaked at {_size(how.peak)} of {_size(how.memory)}" if how.peak else ""
    if how.state == "OUT_OF_MEMORY" or (how.state == "FAILED" and _KILLED in (how.code, how.code - 128, how.signal)):
        return f"killed (SIGKILL), most likely for memory{of_memory}; ask for more: --mem"
    if how.state == "TIMEOUT":
        return "the time limit came before it could stop; ask for more: --time"
    if how.state == "CANCELLED":
        return "cancelled, by somebody or because a stage before it failed"
    if how.state == "NODE_FAIL":
        return f"its node failed ({how.node})"
    if how.state == "COMPLETED":
        return "it ended well, but its answer or what it made is gone"
    if how.code == 75:
        return "stopped, and not requeued"
    return f"exit code {how.code}" + (f" ({how.state})" if how.state != "FAILED" else "")


def _size(text: str) -> str:
    return human_size(engine.in_bytes(text)) if engine.in_bytes(text) else "what the partition gives"


class Finished:
    """Finished units of extractions, from their caches' ledgers; each cache is looked at once."""

    def __init__(self) -> None:
        self._found: dict[Path, tuple[set[int], int] | None] = {}

    def of(self, stage: Stage) -> tuple[int, int] | None:
        """How many units a stage has finished, and how many it has; None where it is no extraction, or not begun."""
        if stage.kind != "extract" or not stage.writes:
            return None
        path = stage.writes[0]
        if path not in self._found:
            self._found[path] = _finished(path)
        found = self._found[path]
        if found is None:
            return None
        units, n_units = found
        index, count = stage.part or (0, 1)
        return sum(unit % count == index for unit in units), len(range(index, n_units, count))


def _finished(path: Path) -> tuple[set[int], int] | None:
    """The units that all arrays of a cache have, and how many it has."""
    try:
        cache = Cache.open(path)
        arrays = [{*done_units(paths)} for paths in cache.paths.done_arrays()]
    except (LofftaError, OSError):
        return None  # not begun, or damaged: verify tells
    return set.intersection(*arrays) if arrays else set(), cache.n_units


def tail(log: Path) -> tuple[str, ...]:
    """The last lines of a log, harmless to a terminal."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL))
            lines = file.read(_LOG_TAIL).decode(errors="replace").splitlines()
    except OSError:
        return ()
    told = [line for line in lines if line.strip() and not line.startswith("srun: ")]  # srun repeats the exit code
    return tuple(printable(line)[:300] for line in told[-_LAST_LINES:])

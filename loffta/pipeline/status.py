"""How a pipeline stands on a cluster: of every stage whether it is queued, runs, is done or failed, and why.

In: stages and their folder.   Out: a State each, from their jobs' answers, squeue, sacct and the logs. Writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loffta.errors import LofftaError
from loffta.machine.usage import FREE, Cost
from loffta.pipeline import engine
from loffta.pipeline.jobs import SlurmPaths, find_active, find_done, read_records, told_costs
from loffta.pipeline.stages import Stage
from loffta.store.cache import Cache
from loffta.store.ledger import done_units
from loffta.words import human_size, printable

_NOT_YET_TOLD = ("RUNNING", "COMPLETING")  # accounts of a job that is off the queue may lag (seen with slurmdbd)
DONE, RUNNING, QUEUED, FAILED, MISSING = "done", "running", "queued", "failed", "not submitted"
_LAST_LINES = 6
_LOG_TAIL = 4096  # bytes that are looked at
_KILLED = 9
MORE_MEMORY = "ask for more: --mem (mem in the file); a training takes less with --feed stream"
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
    starts: int = 0
    cost: Cost = FREE  # of all starts
    log: str = ""  # the file
    last_lines: tuple[str, ...] = ()  # of a failed one


def look(stages: Sequence[Stage], out: Path) -> list[State]:
    """How every stage stands now.

    Raises:
        LofftaError: SLURM does not answer, or a record cannot be read.
    """
    paths = SlurmPaths(out)
    done, active = find_done(stages, out), find_active(paths)
    last = {}  # the jobs that an element was submitted under, the newest last, by the stage's mark; and their one log
    records = read_records(paths)
    for record in records:
        for index, mark in enumerate(record.marks):
            last[mark] = ([f"{job}_{index}" for job in record.jobs], paths.log(record.array, index))
    ended = engine.ended(sorted({job for record in records for job in record.jobs}))
    told = told_costs(paths)
    found, finished = [], Finished()
    for stage in stages:
        ids, log = last.get(stage.mark, ([], None))
        old = [(job, ended[job]) for job in ids if job in ended]
        starts, cost = _costs([how for _, how in old], told.get(stage.mark, []))
        state = State(stage.name, MISSING, units=finished.of(stage), starts=starts, cost=cost, log=str(log or ""))
        if stage.name in done:
            found.append(replace(state, state=DONE, job=old[-1][0] if old else ""))
        elif stage.mark in active:
            found.append(_active(state, active[stage.mark]))
        elif old and old[-1][1].state in _NOT_YET_TOLD:
            found.append(replace(state, state=RUNNING, why="it has just ended: accounts lag", job=old[-1][0]))
        elif old:
            job, how = old[-1]
            reason, lines = why(replace(how, cost=cost)), tail(log) if log else ()
            found.append(replace(state, state=FAILED, why=reason, job=job, last_lines=lines))
        else:
            found.append(state)
    return found


def _costs(old: Sequence[engine.Ended], told: Sequence[Cost]) -> tuple[int, Cost]:
    """Starts, and what all of them cost: by the site's accounts, or by the stage's own words where these say more.

    A site may keep no accounts, or none of GPUs; and its accounts of memory are looks from time to time.
    """
    own, of_site = sum(told, FREE), sum((how.cost for how in old), FREE)
    starts = max(sum(how.starts for how in old), len(told))
    peak = max(own.peak_rss_mib, of_site.peak_rss_mib)
    return starts, Cost(max(own.cpu_s, of_site.cpu_s), max(own.gpu_s, of_site.gpu_s), peak, own.peak_gpu_mib)


def _active(state: State, job: engine.Job) -> State:
    if job.state == "PENDING":
        reason = job.reason.strip("()")
        return replace(state, state=QUEUED, why=f"waits {_WAITS_FOR.get(reason, f'({reason})')}", job=job.id)
    return replace(state, state=RUNNING, why=f"for {job.elapsed} on {job.node}", job=job.id)


def why(how: engine.Ended) -> str:
    """Why an element is no longer there and has no answer, in words, and what to do."""
    peak = how.cost.peak_rss_mib * 2**20
    of_memory = f": its memory peaked at {human_size(peak)} of {_size(how.memory)}" if peak else ""
    if how.state == "OUT_OF_MEMORY" or (how.state == "FAILED" and _KILLED in (how.code, how.code - 128, how.signal)):
        return f"killed (SIGKILL), most likely for memory{of_memory}; {MORE_MEMORY}"
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

"""What a pipeline's jobs on a cluster leave beside its runs: scripts, records, logs, answers. And what is done by them.

In: stages and their folder.   Out: OUT/slurm/. A stage is done where its job left its answer and what it made is still
there, or where nobody needs it any more. Called by `slurm` and `status`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loffta.errors import LofftaError
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import replace_file
from loffta.machine.usage import FREE, Cost
from loffta.pipeline import engine
from loffta.pipeline.costs import keep_cost, read_costs
from loffta.pipeline.stages import Stage, short_hash


class SlurmPaths:
    """The files of a pipeline's jobs, below its folder."""

    def __init__(self, out: Path) -> None:
        self.root = out.absolute() / "slurm"
        self.prefix = f"loffta-{short_hash(str(out.resolve()))}-"  # of the jobs of this folder, and of no other
        self.logs = self.root / "logs"
        self.results = self.root / "results"
        self.usage = self.root / "usage"  # MARK.JOB-RESTART.json, by the scripts

    def script(self, array: str) -> Path:
        """The batch script of an array."""
        return self.root / f"{array}.sbatch"

    def record(self, array: str) -> Path:
        """Which stages an array holds, and the ids that it was submitted under."""
        return self.root / f"{array}.json"

    def log(self, array: str, index: int) -> Path:
        """What an element of an array prints."""
        return self.logs / f"{self.prefix}{array}.{index}.log"

    def result(self, stage: Stage) -> Path:
        """What a stage that has succeeded answered, and how many seconds it took."""
        return self.results / stage.mark

    def plan(self, suffix: str) -> Path:
        """The stages of a pipeline that were submitted; see `loffta.pipeline.submitted`."""
        return self.root / "plans" / f"plan{suffix}.json"


@dataclass(frozen=True)
class Array:
    """Stages of one kind that wait for the same: one script."""

    stages: list[Stage]

    @property
    def name(self) -> str:
        """Of its files; a change of what it does changes it."""
        first = self.stages[0]
        kind = first.kind if first.part is None else first.stem
        return f"{kind}-{short_hash(chr(10).join(stage.mark for stage in self.stages))}"


@dataclass(frozen=True)
class Record:
    """An array that was submitted."""

    array: str
    marks: list[str]  # of its stages
    jobs: list[str]  # ids, the newest last


def arrays_of(stages: Sequence[Stage], most: int) -> list[Array]:
    """Stages in arrays of at most `most`, in the order of the stages."""
    groups: dict[tuple[Any, ...], list[Stage]] = {}
    for stage in stages:
        groups.setdefault((stage.kind, stage.needs, stage.part and stage.whole), []).append(stage)
    return [Array(found[i : i + most]) for found in groups.values() for i in range(0, len(found), most)]


def write_record(paths: SlurmPaths, array: Array, jobs: Sequence[str]) -> None:
    """Adds ids to what is known of an array."""
    path = paths.record(array.name)
    known = _read_record(path).jobs if path.exists() else []
    values = {"marks": [stage.mark for stage in array.stages], "jobs": [*known, *jobs]}
    replace_file(path, json.dumps(values, indent=2).encode())


def read_records(paths: SlurmPaths) -> list[Record]:
    """All arrays that were submitted, the newest last.

    Raises:
        LofftaError: a record cannot be read.
    """
    found = sorted(paths.root.glob("*.json")) if paths.root.exists() else []
    return sorted(map(_read_record, found), key=lambda record: [len(record.jobs[-1]), record.jobs[-1]])


def _read_record(path: Path) -> Record:
    try:
        values = from_json(read_bytes(path))
        marks, jobs = values["marks"], values["jobs"]
        if not (jobs and all(isinstance(mark, str) for mark in marks) and all(str(job).isdecimal() for job in jobs)):
            raise ValueError("no ids of jobs")
        return Record(path.stem, list(marks), [str(job) for job in jobs])
    except (ValueError, KeyError, TypeError) as error:
        raise LofftaError(
            f"cannot read what was submitted ({error})",
            where=path,
            remedy="delete the file when squeue shows none of its jobs: they are submitted again",
        ) from error


def find_active(paths: SlurmPaths) -> dict[str, engine.Job]:
    """Elements that wait or run, by their stage's mark."""
    marks = {f"{paths.prefix}{record.array}": record.marks for record in read_records(paths)}
    return {
        marks[job.name][job.index]: job
        for job in engine.queue(paths.prefix)
        if job.name in marks and job.index < len(marks[job.name])
    }


def find_done(stages: Sequence[Stage], out: Path) -> set[str]:
    """Names of the stages that need not run: they are done, or all that need them are."""
    paths, costs = SlurmPaths(out), read_costs(out)
    done: set[str] = set()
    users: dict[str, list[Stage]] = {}
    for stage in stages:
        for need in stage.needs if not stage.always else ():
            users.setdefault(need, []).append(stage)
    for stage in reversed(stages):
        answered = paths.result(stage).exists() or shlex.join(["loffta", *stage.arguments]) in costs
        made = bool(stage.makes) and all(path.exists() for path in stage.makes)
        of_stage = users.get(stage.name, [])
        unneeded = bool(of_stage) and all(user.name in done for user in of_stage)
        if made or unneeded or (answered and all(path.exists() for path in (*stage.writes, *stage.makes))):
            done.add(stage.name)
    return done


def collect(stages: Sequence[Stage], out: Path) -> list[dict[str, Any]]:
    """What stages cost, from their jobs' answers into stages.json; of an extraction in parts the sum of its parts."""
    paths = SlurmPaths(out)
    wholes: dict[str, list[Stage]] = {}
    for stage in stages:
        wholes.setdefault(stage.whole, []).append(stage)
    for name, parts in wholes.items():
        if all(paths.result(part).exists() for part in parts):
            answers = [_read_result(paths.result(part)) for part in parts]
            whole = replace(parts[0], name=name, part=None)
            keep_cost(out, whole, sum(seconds for seconds, _ in answers), answers[-1][1])
    costs = read_costs(out)
    commands = {shlex.join(["loffta", *stage.arguments]) for stage in stages}
    return [cost for command, cost in costs.items() if command in commands]


def told_costs(paths: SlurmPaths) -> dict[str, list[Cost]]:
    """What each start of each stage has cost by its own words, by the stage's mark; one that was killed wrote them a
    status line before at most.
    """
    found: dict[str, list[Cost]] = {}
    for path in paths.usage.glob("*.json"):
        cost = FREE
        with suppress(OSError, ValueError, AttributeError):  # half a word of a full disk costs nothing
            cost = Cost.of_json(from_json(read_bytes(path)))
        mark, _, _start = path.stem.rpartition(".")
        found.setdefault(mark, []).append(cost)
    return found


def _read_result(path: Path) -> tuple[float, dict[str, Any]]:
    """Seconds and the command's JSON object; the script writes both."""
    try:
        *_, answer, seconds = read_bytes(path).decode(errors="replace").splitlines()
        values = from_json(answer)
        if not isinstance(values, dict):
            raise ValueError("no object")
        return float(seconds), values
    except ValueError as error:
        raise LofftaError(
            f"cannot read what a job answered ({error})",
            where=path,
            remedy="delete the file: its stage runs again, and does nothing where all is there",
        ) from error

"""SLURM's own commands: sbatch, squeue, sacct, scontrol, scancel, as functions of words.

In: scripts and ids.   Out: what SLURM says, parsed. Nothing here knows of stages. Names of jobs are unique to a folder,
so that a submission whose answer was lost is found again before it is tried twice.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loffta.errors import LofftaError
from loffta.machine.cpus import environment_for_others
from loffta.machine.usage import FREE, Cost
from loffta.words import printable

MOST_TASKS = 500  # of one array, however many a site allows
_TRIES = 4
_PAUSE_S = 5.0  # ahead of a second look, longer each time
_NO_NODE = "None assigned"  # sacct's word for what never began
_LONGEST_S = 120.0  # that an answer is waited for
# what sbatch says where the controller is busy, and the job may be there all the same
_LOST = re.compile(r"timed out|unable to contact slurm|zero bytes|connection refused|try again|endpoint", re.I)
_NO_ACCOUNTING = re.compile(r"accounting storage is disabled|problem talking to the database|slurmdbd", re.I)


@dataclass(frozen=True)
class Job:
    """An element of a job array that waits or runs."""

    job: str  # of the array
    index: int
    name: str
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits
    elapsed: str
    node: str

    @property
    def id(self) -> str:
        """As SLURM's commands take it."""
        return f"{self.job}_{self.index}"


@dataclass(frozen=True)
class Ended:
    """An element of a job array as the accounting has it."""

    state: str  # COMPLETED, FAILED, CANCELLED, TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, ...
    code: int
    signal: int
    memory: str = ""  # that was asked for, as sacct prints it
    node: str = ""
    starts: int = 1
    cost: Cost = FREE  # of all starts; nothing where nobody keeps accounts


_NEVER = Ended("", 0, 0, starts=0)


def call(*words: str) -> str:
    """Runs one of SLURM's commands that may run twice, and gives what it prints.

    Raises:
        LofftaError: it is not here, does not answer, or refuses; its words are in the message.
    """
    for attempt in range(_TRIES):
        code, out, err = _run(words)
        if code == 0:
            return out
        if not _LOST.search(err):
            break
        time.sleep(_PAUSE_S * attempt)
    raise refusal(words, err or out)


def refusal(words: Sequence[str], said: str) -> LofftaError:
    """The error for a command of SLURM's that failed."""
    text = " ".join(printable(line.strip()) for line in said.splitlines() if line.strip()) or "it said nothing"
    return LofftaError(
        f"{words[0]} refused: {text}",
        where=printable(" ".join(words)),
        remedy="mend what it names (partition, account, time, memory: the file's `slurm`, an option or the site file) "
        "and run the same command again: what is submitted stays, and nothing is submitted twice",
    )


def _run(words: Sequence[str]) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LONGEST_S,
            env=environment_for_others(),
            check=False,
        )
    except FileNotFoundError as error:
        raise LofftaError(
            f"SLURM's command {words[0]} is not on this machine",
            where="--launcher slurm",
            remedy="run this on a login node of the cluster; or, on this machine alone, with --launcher local",
        ) from error
    except subprocess.TimeoutExpired:
        return 1, "", f"timed out: no answer in {_LONGEST_S:.0f} s"
    return done.returncode, done.stdout, done.stderr


def submit(script: Path, name: str, indices: Sequence[int], after: str) -> str:
    """Submits some elements of a script's array; gives the array's id.

    Where the answer is lost (`Socket timed out`), squeue is looked at before a second try.

    Args:
        after: of `--dependency`; empty: none.
    Raises:
        LofftaError: sbatch refused, or never answered.
    """
    words = ["sbatch", "--parsable", f"--array={spans(indices)}", *([f"--dependency={after}"] if after else [])]
    words += ["--kill-on-invalid-dep=yes"] if after else []
    before = {job.job for job in queue(name)}
    for attempt in range(_TRIES):
        code, out, err = _run([*words, str(script)])
        if code == 0:
            return out.strip().splitlines()[-1].partition(";")[0]
        if not _LOST.search(err):
            break
        time.sleep(_PAUSE_S * (attempt + 1))
        found = {job.job for job in queue(name)} - before
        if found:
            return found.pop()
    raise refusal([*words, str(script)], err)


def queue(prefix: str) -> list[Job]:
    """This user's jobs that wait or run, and whose names begin so."""
    shown = call("squeue", "-h", "-r", "--me", "-o", "%F|%K|%j|%T|%r|%M|%N")
    jobs = []
    for line in shown.splitlines():
        cells = line.strip().split("|")
        if len(cells) == 7 and cells[2].startswith(prefix) and cells[1].isdecimal():
            job, index, *rest = cells
            jobs.append(Job(job, int(index), *rest))
    return jobs


def most_tasks() -> int:
    """Elements that one array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return max(1, min(MOST_TASKS, int(found[1]) if found else MOST_TASKS))


def ended(jobs: Sequence[str]) -> dict[str, Ended]:
    """What became of arrays' elements, by `<array>_<index>`; from scontrol where there is no accounting.

    A requeued element has a record for each of its starts: the last one says how it ended, and the costs add up.
    """
    if not jobs:
        return {}
    fields = "JobID,State,ExitCode,MaxRSS,ReqMem,ElapsedRaw,TotalCPU,AllocTRES,NodeList"
    code, out, err = _run(["sacct", "-D", "-n", "-P", "-j", ",".join(jobs), "-o", fields])
    if code != 0 or _NO_ACCOUNTING.search(err):
        return _from_controller(jobs)
    found: dict[str, Ended] = {}
    for line in out.splitlines():
        cells = line.split("|")
        if len(cells) != 9:
            continue
        job, state, exited, peak, memory, elapsed, cpu, tres, node = cells
        job, _, step = job.partition(".")
        if step:
            if job in found:
                at_most = Cost(peak_rss_mib=in_bytes(peak) / 2**20)
                found[job] = replace(found[job], cost=found[job].cost + at_most)
            continue
        gpu_s = float(elapsed) * _gpus(tres) if elapsed.isdecimal() else 0.0
        cost, began = Cost(seconds_of(cpu), gpu_s), node != _NO_NODE
        for element in _elements(job):
            before = found.get(element, _NEVER)
            how = Ended(state.split()[0] if state else "", *_codes(exited), memory, node, before.starts + began)
            found[element] = replace(how, cost=before.cost + cost)
    return found


def _from_controller(jobs: Sequence[str]) -> dict[str, Ended]:
    """The same of jobs that the controller still remembers: some minutes."""
    found = {}
    for job in jobs:
        _, out, _ = _run(["scontrol", "-o", "show", "job", job])
        for line in out.splitlines():
            facts = dict(word.partition("=")[::2] for word in line.split())
            if facts.get("ArrayTaskId", "").isdecimal():
                key = f"{facts.get('ArrayJobId', job)}_{facts['ArrayTaskId']}"
                found[key] = Ended(facts.get("JobState", ""), *_codes(facts.get("ExitCode", "")))
    return found


def _elements(job: str) -> list[str]:
    """`7_[0-2,5]`, which never began together, as its elements."""
    array, _, listed = job.partition("_[")
    if not listed:
        return [job]
    bounds = [span.split("-") for span in listed.partition("]")[0].partition("%")[0].split(",")]
    return [f"{array}_{index}" for first, *last in bounds for index in range(int(first), int((last or [first])[0]) + 1)]


def _codes(text: str) -> tuple[int, int]:
    """`1:0` as exit code and signal."""
    code, _, number = text.partition(":")
    return (int(code) if code.isdecimal() else 0), (int(number) if number.isdecimal() else 0)


def in_bytes(text: str) -> float:
    """`1536K` -> 1572864; 0 where it is no size."""
    found = re.fullmatch(r"([\d.]+)([KMGT]?)[nc]?", text)
    return float(found[1]) * 1024.0 ** ("_KMGT".index(found[2]) if found[2] else 0) if found else 0.0


def seconds_of(text: str) -> float:
    """`1-02:03:04` or `03:04.5`, as sacct writes processor time, in seconds; 0 where it is no time."""
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)", text)
    days, hours, minutes, seconds = (float(part or 0) for part in (found.groups() if found else [0] * 4))
    return 86400.0 * days + 3600.0 * hours + 60.0 * minutes + seconds


def _gpus(tres: str) -> int:
    """`cpu=2,gres/gpu=1,mem=4G` -> 1."""
    found = re.search(r"(?:^|,)gres/gpu=(\d+)", tres)
    return int(found[1]) if found else 0


def spans(indices: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> 0-2,5."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)

"""Which share of an extraction is this process's: by its rank (`ranks`), and in a SLURM job array by its task, too.

In: the environment of the process.   Out: its Place, for `--shard auto`. Called by `extraction`; nobody asks another.

A batch script has SLURM_NTASKS and SLURM_PROCID=0 as well, though it is one process: who took these for a rank would
leave the units of all others undone. SLURM_STEP_NUM_TASKS is set by `srun` alone (srun(1), and seen with 22.05).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from loffta.errors import UsageError
from loffta.machine.ranks import OF_SRUN, OF_TORCHRUN

_TASK, _FIRST, _LAST, _STEP, _COUNT = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT"))


@dataclass(frozen=True)
class Place:
    """One of several processes that share the work."""

    index: int
    count: int
    local: int | None  # its number on its node; None: nobody says so
    words: str  # for the user


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """The rank of this process, and in a job array the task times the ranks of each.

    torchrun goes first: under `srun torchrun` the step's tasks are nodes, and the ranks are its own.

    Raises:
        UsageError: nobody says that this is one of several, or the tasks of the array have gaps.
    """
    names = next((names for names in (OF_TORCHRUN, OF_SRUN) if {*names[:2]} <= environment.keys()), None)
    in_array = {_TASK, _FIRST, _LAST, _COUNT} <= environment.keys()
    if names is None and not in_array:
        raise UsageError(
            "--shard auto: nothing in the environment says which process of how many this is",
            where="--shard",
            remedy="put `srun` or `torchrun` in front of `loffta extract`, use a job array, or write --shard I/N",
        )
    rank, n_ranks, local, words = 0, 1, None, []
    if names is not None:
        rank, n_ranks = (_number(environment, name) for name in names[:2])
        local = _number(environment, names[2]) if names[2] in environment else None
        words.append(f"rank {rank} of {n_ranks}")
    task, n_tasks = _array_task(environment) if in_array else (0, 1)
    if in_array:
        words.insert(0, f"task {task} of {n_tasks} of the array")
    if not (0 <= rank < n_ranks):
        raise _nonsense(f"rank {rank} of {n_ranks}")
    index, count = task * n_ranks + rank, n_tasks * n_ranks
    return Place(index, count, local, f"share {index}/{count}: {', '.join(words)}")


def own_device(name: str, place: Place) -> str:
    """`name`, or where a process of several on its node sees several GPUs, the one that is its turn."""
    if name not in ("auto", "cuda") or place.local is None or not torch.cuda.is_available():
        return name
    n_gpus = torch.cuda.device_count()
    return f"cuda:{place.local % n_gpus}" if n_gpus > 1 else name


def _array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """Which task of how many; `--array=1-7:2` has four."""
    task, first, last, count = (_number(environment, name) for name in (_TASK, _FIRST, _LAST, _COUNT))
    step = _number(environment, _STEP) if _STEP in environment else 1
    if step < 1 or (last - first) // step + 1 != count or (task - first) % step or not first <= task <= last:
        raise UsageError(
            f"--shard auto: the {count} tasks of this array are not numbered evenly from {first} to {last}",
            where="--shard",
            remedy="write --shard I/N with an I of your own for each task, or submit --array=0-N",
        )
    return (task - first) // step, count


def _number(environment: Mapping[str, str], name: str) -> int:
    told = environment[name]
    if not told.isdecimal():
        raise _nonsense(f"{name}={told[:40]!r}")
    return int(told)


def _nonsense(found: str) -> UsageError:
    return UsageError(
        f"--shard auto: the environment says {found}", where="--shard", remedy="write --shard I/N instead"
    )

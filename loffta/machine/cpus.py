"""How many processors this job may use, and the pools of threads that libraries make when they are loaded.

In: SLURM's words, the affinity mask, control groups, OMP_NUM_THREADS.   Out: a number; torch is not needed for it, so
that a command can tell the libraries before it imports them.
"""

from __future__ import annotations

import os

from loffta.machine import cgroups

_OPENMP, _OWN = "OMP_NUM_THREADS", ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")
_found: dict[str, str | None] = {}  # what `limit_pools` has replaced


def available_cpus() -> int:
    """CPUs that this job may use: the least of what SLURM, the affinity mask, a quota and OMP_NUM_THREADS allow.

    SLURM says it with SLURM_CPUS_PER_TASK where `--cpus-per-task` was given. Else what the job has of its node counts,
    shared by the tasks of its step there: a site that confines no job would let one task take the whole node.
    """
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = (_told("SLURM_CPUS_PER_TASK") or _share_of_node(), cgroups.whole_cpus(), _told(_OPENMP))
    return min([n_cpus, *(limit for limit in allowed if limit is not None)])


def limit_pools() -> None:
    """Has the libraries that are imported from here on make no more threads than `available_cpus`.

    OpenBLAS, MKL, OpenMP and Arrow read OMP_NUM_THREADS when they are loaded, three libraries first a variable of
    their own; by themselves they look at the affinity mask at most, which no quota changes, nor `--cpus-per-task`
    everywhere.
    For a process of our own alone, and for those that it begins on this machine.
    """
    n_cpus = str(available_cpus())
    for name in (_OPENMP, *_OWN):
        _found.setdefault(name, os.environ.get(name))
        os.environ[name] = n_cpus


def environment_for_others() -> dict[str, str]:
    """The environment as it was before `limit_pools`: sbatch hands it on to machines with other processors."""
    kept = {name: value for name, value in os.environ.items() if name not in _found}
    return kept | {name: value for name, value in _found.items() if value is not None}


def _share_of_node() -> int | None:
    """What a task of this job's step has of its node, where SLURM says it."""
    of_node = _told("SLURM_CPUS_ON_NODE")
    tasks = _told("SLURM_STEP_TASKS_PER_NODE") or 1
    return None if of_node is None else max(1, of_node // tasks)


def _told(variable: str) -> int | None:
    """The number that an environment variable begins with: `2,8` of nested regions, `2(x3)` of nodes alike."""
    told = os.environ.get(variable, "").partition(",")[0].partition("(")[0].strip()
    return int(told) if told.isdigit() and int(told) > 0 else None

"""Which of several processes of one command this is: by the words of torchrun, or of srun.

In: the environment.   Out: a Rank; its default says that there is one process. Called by `training`, and by
`machine.process`, which deals a node's memory and GPUs out. A batch script is no step of srun: a command in it is one
process, however many tasks the job has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from loffta.errors import UsageError

OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # pytorch.org/docs: elastic/run
OF_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_NODES = "SLURM_STEP_NUM_NODES"


@dataclass(frozen=True)
class Rank:
    """One process of `of`; `n_local` of them are on this node."""

    number: int = 0
    of: int = 1
    local: int = 0
    n_local: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes what there is one of."""
        return self.number == 0


def this_rank() -> Rank:
    """As the launcher has told it.

    Raises:
        UsageError: the variables contradict each other.
    """
    for variables in (OF_TORCHRUN, OF_SRUN):
        numbers = [_number(variable) for variable in variables]
        if None in numbers[:2]:
            continue
        number, of, local, n_local = (*(found or 0 for found in numbers), 0)[:4]
        nodes = _number(_NODES) or 1
        if number >= of:
            raise UsageError(
                f"this is said to be process {number} of {of}",
                where=f"{variables[0]} and {variables[1]}, in the environment",
                remedy="start the command by torchrun or srun, which set both, or unset them",
            )
        return Rank(number, of, local, n_local or -(-of // nodes))
    return Rank()


def _number(variable: str) -> int | None:
    told = os.environ.get(variable, "")
    return int(told) if told.isdecimal() else None

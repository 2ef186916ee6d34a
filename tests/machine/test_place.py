"""Which of how many a process is: by the environments that srun, torchrun and job arrays really give.

The variables are those that were seen in jobs of a real SLURM (22.05), batch shells included.
"""

import pytest
import torch

from loffta.errors import UsageError
from loffta.machine.place import Place, find_place, own_device


def in_step(rank, n_ranks, **more):
    """Of a task of `srun -n N`; the batch shell above it has the first two lines alone, and is one process."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(n_ranks),
        "SLURM_STEP_NUM_TASKS": str(n_ranks),
        "SLURM_LOCALID": str(rank % 2),
        **more,
    }


def in_array(task, first, last, step=1, count=None):
    count = count or len(range(first, last + 1, step))
    named = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in named.items()}


BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "index", "count", "local"),
    [
        (in_step(0, 4), 0, 4, 0),
        (in_step(3, 4), 3, 4, 1),
        (in_step(0, 1, SLURM_JOB_NUM_NODES="4"), 0, 1, 0),  # `srun -n1` in a large allocation: all units are its own
        (TORCHRUN, 5, 8, 1),
        (in_step(1, 2, **TORCHRUN), 5, 8, 1),  # `srun torchrun`: the step's tasks are nodes
        (BATCH | in_array(3, 0, 3), 3, 4, None),  # a batch shell is one process, whatever its job asked for
        (in_step(1, 3, **in_array(7, 3, 7, step=2)), 2 * 3 + 1, 9, 1),
        (in_step(0, 3, **in_array(5, 5, 5)), 0, 3, 0),  # one task submitted again: nobody else does its work
    ],
)
def test_places(environment, index, count, local):
    place = find_place(environment)
    assert (place.index, place.count, place.local) == (index, count, local)
    assert place.words.startswith(f"share {index}/{count}: ")


@pytest.mark.parametrize("tasks", [range(4), range(1, 9, 2), range(10, 13)])
def test_ranks_of_an_array_own_every_unit_once(tasks):
    shares = [
        find_place(in_step(rank, 3, **in_array(task, tasks[0], tasks[-1], tasks.step)))
        for task in tasks
        for rank in range(3)
    ]
    owned = [unit for place in shares for unit in range(100) if unit % place.count == place.index]
    assert sorted(owned) == list(range(100))


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({}, "nothing in the environment"),
        (BATCH, "nothing in the environment"),
        (in_step(4, 4), "rank 4 of 4"),
        (in_step(0, 4) | {"SLURM_PROCID": "x\x1b[2J"}, r"SLURM_PROCID='x\\x1b\[2J'"),
        (in_array(5, 1, 7, count=3), "not numbered evenly from 1 to 7"),  # --array=1,5,7
        (in_array(4, 1, 7, step=2), "not numbered evenly"),
    ],
)
def test_what_is_no_place_is_refused(environment, what):
    with pytest.raises(UsageError, match=rf"--shard auto: (.|\n)*{what}(.|\n)*--shard I/N"):
        find_place(environment)


@pytest.mark.parametrize(
    ("name", "n_gpus", "local", "device"),
    [
        ("auto", 4, 3, "cuda:3"),
        ("cuda", 2, 3, "cuda:1"),  # more ranks than GPUs
        ("auto", 1, 3, "auto"),  # SLURM shows each task its own
        ("auto", 0, 3, "auto"),
        ("cuda:0", 4, 3, "cuda:0"),
        ("cpu", 4, 3, "cpu"),
        ("auto", 4, None, "auto"),
    ],
)
def test_each_rank_takes_the_gpu_of_its_number_on_the_node(name, n_gpus, local, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert own_device(name, Place(0, 1, local, "")) == device

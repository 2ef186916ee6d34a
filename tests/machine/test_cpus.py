"""CPUs as a job sees them, and the pools of threads that are made of them."""

import os
import subprocess
import sys

import pytest

from loffta.machine import cpus, process
from loffta.pipeline import engine

POOLS_OF = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")


@pytest.fixture
def told(monkeypatch):
    """A machine with an affinity mask of 5 CPUs and nothing else said; called with what there is to say."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_STEP_TASKS_PER_NODE", *POOLS_OF):
        monkeypatch.setenv(name, "")  # so that what is set comes back
        monkeypatch.delenv(name)
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr(cpus, "_found", {})

    def tell(quota=None, **variables):
        monkeypatch.setattr(cpus.cgroups, "whole_cpus", lambda: quota)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return tell


@pytest.mark.parametrize(
    ("slurm", "openmp", "quota", "expected"),
    [
        ("3", "", None, 3),
        ("8", "", None, 5),  # a step that is bound to fewer
        ("0", "", None, 5),
        ("x", "", None, 5),
        ("", "2", None, 2),
        ("", "2,8", None, 2),  # of nested regions the outermost
        ("", "64", None, 5),  # a cap, not a wish
        ("3", "2", None, 2),
        ("3", "4", None, 3),
        ("", "0", None, 5),
        ("", "true", None, 5),
        ("", "", 4, 4),
        ("", "", 64, 5),
        ("3", "", 2, 2),
        ("", "1", 2, 1),
    ],
)
def test_slurm_the_affinity_the_quota_and_openmp_tell_the_cpus(monkeypatch, told, slurm, openmp, quota, expected):
    told(quota, SLURM_CPUS_PER_TASK=slurm, OMP_NUM_THREADS=openmp)
    monkeypatch.setattr(process.torch, "set_num_threads", (set_to := []).append)
    assert cpus.available_cpus() == expected
    assert process.cap_threads() == expected
    assert set_to == [expected]


@pytest.mark.parametrize(
    ("of_node", "tasks", "per_task", "expected"),
    [
        ("3", None, None, 3),  # a batch script without --cpus-per-task
        ("4", "1", None, 4),
        ("4", "2(x3)", None, 2),  # two tasks of `srun` on each of three nodes
        ("4", "4,1", None, 1),
        ("2", "4", None, 1),
        ("4", "2", "3", 3),  # its own word goes before
    ],
)
def test_without_cpus_per_task_a_task_has_its_share_of_what_the_job_has(told, of_node, tasks, per_task, expected):
    words = {"SLURM_CPUS_ON_NODE": of_node, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_CPUS_PER_TASK": per_task}
    told(**{name: word for name, word in words.items() if word})
    assert cpus.available_cpus() == expected


POOLS = """
from loffta.machine.cpus import limit_pools
limit_pools()
import numpy, pyarrow
from threadpoolctl import threadpool_info
print(pyarrow.cpu_count(), *(pool["num_threads"] for pool in threadpool_info()))
"""


def test_pools_of_libraries_are_as_large_as_the_job_allows(monkeypatch):
    """Of Arrow and of numpy's OpenBLAS, by a new process's own word; by themselves they have a thread for each CPU."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    done = subprocess.run([sys.executable, "-c", POOLS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_libraries_are_told_before_they_are_imported(told):
    """Those, too, that were told to take more than there is."""
    told(SLURM_CPUS_PER_TASK="3", OMP_NUM_THREADS="4", OPENBLAS_NUM_THREADS="64")
    cpus.limit_pools()
    assert [os.environ[name] for name in POOLS_OF] == ["3"] * 4


@pytest.mark.parametrize("own", ["4", None])
def test_a_job_that_is_submitted_has_the_users_environment(told, monkeypatch, own):
    """Not the login node's number of CPUs, which sbatch would hand on."""
    told(SLURM_CPUS_PER_TASK="3", OMP_NUM_THREADS="4")
    if own is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    before = dict(os.environ)
    cpus.limit_pools()
    cpus.limit_pools()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert cpus.environment_for_others() == before
    assert engine._run(["sh", "-c", 'echo "${OMP_NUM_THREADS-none}"'])[1].strip() == (own or "none")

"""CPUs, memory and devices as a job sees them."""

import psutil
import pytest

from loffta import machine
from loffta.errors import UsageError


@pytest.fixture(params=["v1", "v2"])
def groups(request, tmp_path):
    """A job's group inside a user's, as SLURM makes them; returns a setter of one level's limit."""
    old = request.param == "v1"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    root = tmp_path / "cgroup" / "memory" if old else tmp_path / "cgroup"
    (tmp_path / "own").write_text("9:cpu:/\n4:hugetlb,memory:/user/job\n0::/\n" if old else "0::/user/job\n")
    (root / "user" / "job").mkdir(parents=True)

    def limit(level, most, used, cached=0):
        for name, text in zip(names, (most, used), strict=True):
            (root / level / name).write_text(f"{text}\n")
        (root / level / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\nactive_file {cached}\n")

    limit.unlimited = 2**63 - 4096 if old else "max"
    limit.measure = lambda: machine.free_memory_bytes(tmp_path / "cgroup", tmp_path / "own")
    return limit


def test_a_jobs_limit_counts_not_the_nodes_memory(groups):
    groups("user/job", 5000, 2000)
    assert groups.measure() == 3000


def test_the_tightest_of_all_levels_counts(groups):
    groups("user/job", 5000, 2000)
    groups("user", 2500, 2100)
    assert groups.measure() == 400


def test_the_page_cache_can_be_had_back(groups):
    groups("user/job", 5000, 4800, cached=1000)
    assert groups.measure() == 2200


def test_no_limit_is_the_machines_memory(groups, monkeypatch):
    groups("user/job", groups.unlimited, 2000)
    available = psutil.virtual_memory()._replace(available=123456)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: available)
    assert groups.measure() == 123456


def test_a_limit_that_is_reached_leaves_nothing(groups):
    groups("user/job", 1000, 1001)
    assert groups.measure() == 0


def test_no_cgroups_at_all(tmp_path):
    assert machine.free_memory_bytes(tmp_path / "none", tmp_path / "neither") > 0


@pytest.mark.parametrize(("told", "expected"), [("3", 3), ("0", None), ("x", None)])
def test_slurm_tells_the_cpus(monkeypatch, told, expected):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", told)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    assert machine.available_cpus() == (expected or 5)


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(UsageError, match=rf"device '{name}' cannot be used(.|\n)*use auto, cpu, cuda or mps"):
        machine.resolve_device(name)

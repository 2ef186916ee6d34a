"""Limits of jobs and containers, in files as the kernel has them."""

import math

import pytest

from loffta.machine import cgroups


class Groups:
    """A job's group inside a user's, as SLURM makes them; without `named`, a container that sees no path of its own."""

    def __init__(self, root, version, *, named=True):
        self.old, self.mounted, self.own = version == "v1", root / "cgroup", root / "own"
        group = "/user/job" if named else "/"
        self.own.write_text(f"4:hugetlb,memory:{group}\n2:cpu,cpuacct:{group}\n0::/\n" if self.old else f"0::{group}\n")
        for controller in ("memory", "cpu") if self.old else ("",):
            (self.mounted / controller / "user" / "job").mkdir(parents=True)

    def limit_memory(self, level, most, used, cached=0):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if self.old else ("memory.max", "memory.current")
        folder = self.mounted / "memory" / level if self.old else self.mounted / level
        for name, text in zip(names, (most, used), strict=True):
            (folder / name).write_text(f"{text}\n")
        (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\nactive_file {cached}\n")

    def limit_cpus(self, level, quota_us, period_us=100_000):
        if self.old:
            (self.mounted / "cpu" / level / "cpu.cfs_quota_us").write_text(f"{quota_us or -1}\n")
            (self.mounted / "cpu" / level / "cpu.cfs_period_us").write_text(f"{period_us}\n")
        else:
            (self.mounted / level / "cpu.max").write_text(f"{quota_us or 'max'} {period_us}\n")

    def free_bytes(self):
        return cgroups.free_bytes(self.mounted, self.own)

    def whole_cpus(self):
        return cgroups.whole_cpus(self.mounted, self.own)


@pytest.fixture(params=["v1", "v2"])
def version(request):
    return request.param


@pytest.fixture
def groups(version, tmp_path):
    return Groups(tmp_path, version)


def test_what_a_limit_leaves(groups):
    groups.limit_memory("user/job", 5000, 2000)
    assert groups.free_bytes() == 3000


def test_the_tightest_of_all_levels_counts(groups):
    groups.limit_memory("user/job", 5000, 2000)
    groups.limit_memory("user", 2500, 2100)
    groups.limit_cpus("user/job", 800_000)
    groups.limit_cpus("user", 300_000)
    assert (groups.free_bytes(), groups.whole_cpus()) == (400, 3)


def test_the_page_cache_can_be_had_back(groups):
    groups.limit_memory("user/job", 5000, 4800, cached=1000)
    assert groups.free_bytes() == 2200


def test_no_limit(groups):
    groups.limit_memory("user/job", 2**63 - 4096 if groups.old else "max", 2000)
    groups.limit_cpus("user/job", None)
    assert groups.whole_cpus() is None
    assert groups.free_bytes() == (2**63 - 4096 - 2000 if groups.old else None)  # v1 has no word for it


def test_a_limit_that_is_reached_leaves_nothing(groups):
    groups.limit_memory("user/job", 1000, 1001)
    assert groups.free_bytes() == 0


@pytest.mark.parametrize(
    ("quota", "period"), [(200_000, 100_000), (299_000, 100_000), (50_000, 25_000), (20_000, 100_000)]
)
def test_a_quota_pays_for_whole_processors(groups, quota, period):
    groups.limit_cpus("user/job", quota, period)
    assert groups.whole_cpus() == max(1, math.floor(quota / period))


def test_a_container_that_sees_no_path_of_its_own(version, tmp_path):
    """`docker run --cpus 3 --memory 5000`, by the kernel's files at the root of its own mount."""
    groups = Groups(tmp_path, version, named=False)
    groups.limit_memory("", 5000, 2000)
    groups.limit_cpus("", 300_000)
    assert (groups.free_bytes(), groups.whole_cpus()) == (3000, 3)


def test_no_groups_at_all(tmp_path):
    assert cgroups.free_bytes(tmp_path / "none", tmp_path / "neither") is None
    assert cgroups.whole_cpus(tmp_path / "none", tmp_path / "neither") is None

"""CPUs, memory and devices as a job sees them."""

import contextlib
import signal

import psutil
import pytest

from loffta import machine
from loffta.errors import LofftaError, Stopped, UsageError
from loffta.machine import StopFlag
from loffta.signals import STOPS


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


@pytest.mark.parametrize(
    ("slurm", "openmp", "expected"),
    [
        ("3", "", 3),
        ("0", "", 5),
        ("x", "", 5),
        ("", "2", 2),
        ("", "2,8", 2),  # of nested regions the outermost
        ("", "64", 5),  # a cap, not a wish
        ("3", "2", 2),
        ("3", "4", 3),
        ("", "0", 5),
        ("", "true", 5),
    ],
)
def test_slurm_the_affinity_and_openmp_tell_the_cpus(monkeypatch, slurm, openmp, expected):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setattr(machine.torch, "set_num_threads", (set_to := []).append)
    assert machine.available_cpus() == expected
    assert machine.cap_threads() == expected
    assert set_to == [expected]


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(UsageError, match=rf"device '{name}' cannot be used(.|\n)*use auto, cpu, cuda or mps"):
        machine.resolve_device(name)


def send(number):
    return signal.raise_signal(number)


@pytest.fixture
def stop():
    return StopFlag().listen()


@pytest.mark.parametrize("number", STOPS)
def test_every_signal_that_asks_to_stop_is_heard(stop, number):
    send(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} while counting"):
        stop.check("counting")


def test_at_once_gives_up_anywhere_inside_and_nowhere_else(stop):
    reached = []

    def load():
        with stop.at_once("loading it"):
            reached.append("before")
            send(signal.SIGUSR1)
            reached.append("after")

    with pytest.raises(Stopped, match="stopped by SIGUSR1 while loading it") as caught:
        load()
    assert reached == ["before"]
    assert caught.value.exit_code == 75
    send(signal.SIGUSR2)  # outside: a flag and no more
    with pytest.raises(Stopped, match="SIGUSR2 while x"), stop.at_once("x"):
        pytest.fail("begun, though a signal had come")


def wrap():
    try:
        send(signal.SIGTERM)
    except Exception as error:
        raise LofftaError("cannot fetch", where="hub", remedy="try later") from error


def swallow():
    with contextlib.suppress(Exception):
        send(signal.SIGTERM)


@pytest.mark.parametrize("library", [wrap, swallow])
def test_at_once_is_not_fooled_by_what_a_library_makes_of_it(stop, library):
    with pytest.raises(Stopped, match="SIGTERM while asking the hub"), stop.at_once("asking the hub"):
        library()


def test_other_errors_pass_through_at_once(stop):
    with pytest.raises(ZeroDivisionError), stop.at_once("x"):
        raise ZeroDivisionError


def test_each_gives_up_the_making_of_an_item(stop):
    def make():
        yield 1
        yield 2
        send(signal.SIGINT)
        pytest.fail("went on")

    used = []
    with pytest.raises(Stopped, match="SIGINT while counting"):
        used.extend(stop.each(make(), "counting"))
    assert used == [1, 2]
    assert list(StopFlag().each([1, 2, 3], "counting")) == [1, 2, 3]


def test_each_lets_the_use_of_an_item_end(stop):
    used = []

    def use():
        for item in stop.each([1, 2], "counting"):
            send(signal.SIGINT)
            used.append(item)

    with pytest.raises(Stopped):
        use()
    assert used == [1]

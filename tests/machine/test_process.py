"""CPUs, memory and devices as a job sees them."""

import contextlib
import signal

import psutil
import pytest
import torch

from loffta.errors import LofftaError, Stopped, UsageError
from loffta.machine import process
from loffta.machine.process import StopFlag
from loffta.machine.signals import STOPS


@pytest.mark.parametrize(("small", "expected"), [(True, 1), (False, 2)])
def test_small_products_get_one_thread_and_give_the_others_back(small, expected):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with contextlib.suppress(ValueError), process.one_thread(small):
            used = torch.get_num_threads()
            raise ValueError("what goes wrong gives them back, too")
        assert used == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("left", "expected"), [(None, 123456), (3000, 3000), (2**63, 123456)])
def test_a_jobs_limit_counts_not_the_nodes_memory(monkeypatch, left, expected):
    available = psutil.virtual_memory()._replace(available=123456)
    monkeypatch.setattr(process.psutil, "virtual_memory", lambda: available)
    monkeypatch.setattr(process.cgroups, "free_bytes", lambda: left)
    assert process.free_memory_bytes() == expected


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(UsageError, match=rf"device '{name}' cannot be used(.|\n)*use auto, cpu, cuda or mps"):
        process.resolve_device(name)


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

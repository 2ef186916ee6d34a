"""Copies to the device: nothing on the CPU, and on CUDA, which is not here, the calls in their order."""

import contextlib

import numpy as np
import pytest
import torch

from loffta.feed.copies import DeviceCopies


def test_on_the_cpu_batches_are_views():
    copies = DeviceCopies(torch.device("cpu"))
    array = np.arange(6)
    buffer = copies.buffer(array)
    (taken,) = copies.take(copies.begin([buffer[2:4]]))
    array[:] += 10
    assert not copies.overlap
    assert taken.tolist() == [12, 13]


class FakeStream:
    """Notes what is asked of it."""

    def __init__(self, calls, name):
        self.calls, self.name = calls, name

    def wait_event(self, event):
        self.calls.append(f"{self.name} waits for the event of {event.stream.name}")


class FakeEvent:
    def record(self, stream):
        self.stream = stream
        stream.calls.append(f"event on {stream.name}")


class FakeTensor(torch.Tensor):
    """Stands for a tensor on its way to the device."""

    @classmethod
    def make(cls, calls):
        tensor = torch.zeros(1).as_subclass(cls)
        tensor.calls = calls
        return tensor

    def to(self, device, *, non_blocking):
        assert (device.type, non_blocking) == ("cuda", True)
        self.calls.append("copy")
        return self

    def record_stream(self, stream):
        self.calls.append(f"used on {stream.name}")


@pytest.fixture
def calls(monkeypatch):
    calls = []

    @contextlib.contextmanager
    def entered(stream):
        calls.append(f"enter {stream.name}")
        yield
        calls.append(f"leave {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: FakeStream(calls, "side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: FakeStream(calls, "main"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    return calls


def test_on_cuda_copies_run_beside_the_main_stream(calls):
    """Begun on a side stream; used on the main one only after it has waited, and not freed under it."""
    copies = DeviceCopies(torch.device("cuda"))
    assert copies.overlap
    copy = copies.begin([FakeTensor.make(calls), FakeTensor.make(calls)])
    assert calls == ["enter side", "copy", "copy", "event on side", "leave side"]
    calls.clear()
    assert len(copies.take(copy)) == 2
    assert calls == ["main waits for the event of side", "used on main", "used on main"]

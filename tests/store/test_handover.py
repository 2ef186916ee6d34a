"""Batches on their way to the threads that write: values as a plain cast gives them, memory used again, and on CUDA,
which is not here, the calls in their order."""

import contextlib

import numpy as np
import pytest
import torch

from loffta.store.handover import HostBuffer, OnDevice, OnHost, Pixels, hand_over
from loffta.store.scales import Scales
from loffta.store.writer import Cast

CPU = torch.device("cpu")
VALUES = np.random.default_rng(0).standard_normal((5, 3, 2, 4)).astype(np.float32) * 100
SCALES = Scales(np.full((3, 4), 0.5, np.float32), np.full((3, 4), 3, np.float32))


def taps(values=VALUES):
    return torch.from_numpy(values).unbind(1)


@pytest.mark.parametrize("part", [slice(0, 5), slice(1, 3), slice(4, 9)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_a_part_is_what_numpy_makes_of_it(dtype, part):
    stored = hand_over(taps(), dtype, SCALES).fetch(part, HostBuffer(CPU))
    expected = VALUES[part].astype(dtype)
    if dtype == "int8":
        codes = np.round(VALUES[part] / 0.5) + 3  # numpy rounds halves to even, too
        expected = codes.clip(-127, 127).astype(np.int8)
        assert stored.saturated.tolist() == (np.abs(codes) > 127).sum((2, 3)).tolist()
        assert stored.saturated.sum() > 0
    assert stored.values.dtype == expected.dtype
    np.testing.assert_array_equal(stored.values, expected)
    np.testing.assert_array_equal(stored.abs_max, np.abs(VALUES[part]).max((2, 3)))
    assert stored.finite.all()


def test_what_does_not_fit_is_told_by_image_and_tap():
    values = VALUES.copy()
    values[1, 2, 0, 0], values[2, 0, 1, 1], values[3, 1, 1, 0] = np.nan, -np.inf, 70_000
    batch, buffer = OnHost(taps(values), "float16", None), HostBuffer(CPU)
    wrong = [np.argwhere(~batch.fetch(slice(i, i + 1), buffer).finite)[:, 1].tolist() for i in range(5)]
    assert wrong == [[], [2], [0], [1], []]


def test_memory_is_used_again():
    buffer, batch = HostBuffer(CPU), OnHost(taps(), "float16", None)
    first = batch.fetch(slice(0, 3), buffer).values
    second = batch.fetch(slice(3, 5), buffer).values
    assert np.shares_memory(first, second)
    np.testing.assert_array_equal(first[:2], second)


def test_pixels_go_as_they_are():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    stored = Pixels(pixels).fetch(slice(1, 2), HostBuffer(CPU))
    assert np.shares_memory(stored.values, pixels)
    np.testing.assert_array_equal(stored.values, pixels[1:])
    assert (stored.finite.shape, stored.abs_max.shape) == ((1, 0), (1, 0))


class Stream:
    def __init__(self, name):
        self.name = name

    def wait_event(self, event):
        OnCuda.calls.append(f"{self.name} waits for {event.stream.name}")


class Event:
    def record(self, stream):
        self.stream = stream
        OnCuda.calls.append(f"event on {stream.name}")


class OnCuda(torch.Tensor):
    """Stands for a tensor of the device: what is copied from it is noted."""

    calls = ()
    is_cuda = True
    device = torch.device("cuda")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.copy_, torch.Tensor.cpu):
            cls.calls.append("copy" if kwargs.get("non_blocking") else "copy and wait")
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs).as_subclass(torch.Tensor)
        return super().__torch_function__(func, types, args, kwargs)


@pytest.fixture
def calls(monkeypatch):
    calls = OnCuda.calls = []

    @contextlib.contextmanager
    def entered(stream):
        calls.append(f"enter {stream.name}")
        yield
        calls.append(f"leave {stream.name}")

    def empty(*size, pin_memory=False, **options):
        calls.append(f"{size} {'pinned' if pin_memory else 'pageable'}")
        return real_empty(*size, **options)

    real_empty = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return calls


def test_on_cuda_a_part_comes_by_a_stream_of_its_own(calls):
    """It waits for the cast, not for the forward pass behind it; pinned memory is taken once; the last copy waits."""
    values = torch.arange(24, dtype=torch.float16).reshape(3, 2, 4)
    audit = torch.ones(3, 2)
    made = Cast(*(tensor.as_subclass(OnCuda) for tensor in (values, audit > 0, audit)))
    batch, buffer = OnDevice(made), HostBuffer(torch.device("cuda"))
    assert calls == ["event on main", "(0,) pageable"]
    for part, memory in ((slice(0, 2), ["(32,) pinned"]), (slice(2, 4), [])):
        calls.clear()
        stored = batch.fetch(part, buffer)
        np.testing.assert_array_equal(stored.values, values[part])
        np.testing.assert_array_equal(stored.finite, audit[part] > 0)
        np.testing.assert_array_equal(stored.abs_max, audit[part])
        copies = ["copy", "copy and wait", "copy and wait"]
        assert calls == ["enter side", "side waits for main", *memory, *copies, "leave side"]

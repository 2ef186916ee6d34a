"""Who reads, when, and into what: the order of copies, waiting, leaving an epoch in its middle, buffers, damage."""

import threading
import time
import tracemalloc
from concurrent.futures import Executor, Future
from itertools import count

import numpy as np
import pytest
import torch

from loffta.dataset.features import choose_features
from loffta.errors import DamageFound
from loffta.feed import batches as module
from loffta.feed import readers
from loffta.feed.batches import Feed
from loffta.feed.copies import Copy, DeviceCopies
from loffta.feed.sources import HostFeature
from loffta.store.reader import ArrayReader
from tests.caches import FakeStore, make_cache, make_table
from tests.feed.arrays import ROWS, WINDOW_OF_2, N, arrays, copies, same


class Inline(Executor):
    """Its work is done when it is submitted."""

    def __init__(self, *_, **__):
        pass

    def submit(self, work, *args):
        future = Future()
        future.set_result(work(*args))
        return future


class LateCopies(DeviceCopies):
    """As on CUDA: copies are begun early, and happen as late as they may, when someone waits for their event."""

    overlap = True

    def __init__(self, device):
        super().__init__(device)
        self.events = []

    def buffer(self, array):
        return torch.from_numpy(array)

    def begin(self, tensors):
        event = LateEvent(self.events, [(tensor, torch.zeros_like(tensor)) for tensor in tensors])
        self.events.append(event)
        return Copy([target for _, target in event.pairs], event)

    def take(self, copy):
        return copy.tensors


class LateEvent:
    def __init__(self, stream, pairs):
        self.stream, self.pairs = stream, pairs

    def synchronize(self):
        """A stream does one thing after the other: what was begun before is done, too."""
        for event in self.stream[: self.stream.index(self) + 1]:
            for source, target in event.pairs:
                target.copy_(source)
            event.pairs = []


@pytest.mark.parametrize("order", ["uniform", "windowed"])
def test_the_next_copy_is_begun_before_this_batch_is_handed_out(made, monkeypatch, order):
    _, features, _ = made
    options = {"batch_size": 2, "mode": "stream", "order": order, "window": WINDOW_OF_2, "n_threads": 1}
    with Feed(features, ROWS, **options) as feed:
        expected = copies(feed.epoch(0)) + copies(feed.epoch(1, 3))
    monkeypatch.setattr(readers, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr(module, "DeviceCopies", LateCopies)
    with Feed(features, ROWS, **options) as feed:
        found, begun = [], []
        for batch in feed.epoch(0):
            found.append(batch)  # kept: on a device a batch is no view
            begun.append(len(feed._copies.events))
        found += feed.epoch(1, 3)
        assert begun == [2, 3, 4, 5, 6, 7, 7]
        feed._copies.events[-1].synchronize()  # those of slots that were not used again
        assert same(copies(found), expected)


def test_waiting_is_counted(made, monkeypatch):
    """By a clock that opens the reads when the waiting begins; what is read when the consumer comes costs no second."""
    _, (feature, *_), _ = made
    gate, clock = threading.Event(), count(100)
    read = ArrayReader.read
    monkeypatch.setattr(ArrayReader, "read", lambda *a, **k: (gate.wait(60), read(*a, **k))[1])
    monkeypatch.setattr(readers.time, "perf_counter", lambda: (gate.set(), float(next(clock)))[1])
    with Feed([feature], ROWS, batch_size=7, mode="stream") as feed:
        batches = feed.in_order()
        next(batches)
        assert feed.waited_s == (next(clock) - 100) / 2 >= 1  # a second for every two looks at the clock
        for part in list(feed._current.parts):
            part.read.result()
        before = feed.waited_s
        next(batches)
        assert feed.waited_s == before


@pytest.mark.parametrize("keep", [False, True])
def test_an_epoch_can_be_left(made, keep):
    """Whether or not someone still holds the old iterator, its reads must not land in the new epoch's buffers."""
    _, features, _ = made
    with Feed(features, ROWS, batch_size=2, mode="stream", n_threads=3) as feed:
        whole = copies(feed.epoch(1))
        for _ in range(20):
            held = feed.epoch(0)
            next(held)
            if not keep:
                held.close()
            assert same(copies(feed.epoch(1)), whole)
            assert next(held, None) is None


def test_leaving_an_epoch_waits_for_its_reads(made, monkeypatch):
    _, features, _ = made
    active = []
    read = ArrayReader.read

    def slow(self, *args, **kwargs):
        active.append(1)
        threading.Event().wait(0.02)
        result = read(self, *args, **kwargs)
        active.pop()
        return result

    monkeypatch.setattr(ArrayReader, "read", slow)
    with Feed(features, ROWS, batch_size=2, mode="stream", n_threads=3) as feed:
        next(feed.epoch(0))
        assert active
        next(iter(feed.in_order()))
        feed.close()
        assert not active


def test_closing_ends_the_epoch_and_the_threads(made):
    _, features, _ = made
    before = threading.active_count()
    with Feed(features, ROWS, batch_size=2, mode="stream", n_threads=3) as feed:
        batches = feed.epoch(0)
        next(batches)
        assert threading.active_count() > before
    assert threading.active_count() == before
    assert next(batches, None) is None


def test_small_batches_in_memory_wake_no_thread(made, monkeypatch):
    """What the copies take counts as waiting; their errors arrive where the batch is asked for."""
    _, (feature, *_), (expected, *_) = made
    clock, before = count(100), threading.active_count()
    monkeypatch.setattr(readers.time, "perf_counter", lambda: float(next(clock)))
    with Feed([feature], ROWS, batch_size=7, mode="host") as feed:
        ((rows, (tensor,)), _) = copies(feed.in_order())
        assert np.array_equal(tensor.numpy(), expected[rows])
        assert (threading.active_count(), feed.waited_s) == (before, 2)
        monkeypatch.setattr(HostFeature, "fill", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(feed.in_order())


@pytest.mark.parametrize("mode", ["host", "stream"])
def test_a_batch_stays_until_the_next_is_asked_for(made, mode):
    """However slow the consumer is; the reads that run ahead go to other buffers."""
    _, features, expected = made
    with Feed(features, np.tile(ROWS, 3), batch_size=3, mode=mode, n_threads=1) as feed:
        for batch in feed.in_order():
            time.sleep(0.005)
            assert all(np.array_equal(t.numpy(), a[batch.rows]) for t, a in zip(batch.features, expected, strict=True))


def test_buffers_are_reused(made):
    _, features, _ = made
    with Feed(features, ROWS, batch_size=1, mode="stream", n_threads=2) as feed:
        addresses = [b.features[0].data_ptr() for _ in range(3) for b in feed.in_order()]
    assert len(set(addresses)) == 4  # n_threads + 2 slots
    assert addresses[:4] == addresses[4:8]


def test_damage_reaches_the_consumer(tmp_path):
    table = make_table(np.zeros(N), ["train"] * N)
    cache = make_cache(tmp_path / "cache", table, [FakeStore("net", {"s.0": arrays()["s.0"]})])
    (feature,) = choose_features(cache, [], ("grid",), default_taps="all")
    shard = feature.array.paths.shard(2, feature.array.layout.ndim)
    data = bytearray(shard.read_bytes())
    data[10] ^= 1  # in row 16, the first of unit 2
    shard.write_bytes(data)
    rows = np.arange(N)
    with Feed([feature], rows, batch_size=4, mode="stream") as feed:
        seen = []
        with pytest.raises(DamageFound, match="row 16"):
            seen.extend(batch.rows.tolist() for batch in feed.in_order())
        assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
        with pytest.raises(DamageFound, match="row 16"):  # and the feed can go on
            list(feed.in_order())
    before = threading.active_count()
    with pytest.raises(DamageFound, match="row 16"):
        Feed([feature], rows, batch_size=4, mode="host")
    assert threading.active_count() == before


def test_stream_mode_holds_the_ring_alone(tmp_path):
    grids = {"x": np.zeros((256, 16, 16, 32), np.float16)}  # 4 MiB
    cache = make_cache(tmp_path / "cache", make_table(np.zeros(256), ["train"] * 256), [FakeStore("net", grids)])
    features = choose_features(cache, [], ("grid",), default_taps="all")

    def peak(mode):
        tracemalloc.start()
        with Feed(features, np.arange(256), batch_size=8, mode=mode) as feed:
            for batch in feed.epoch(0):
                assert not batch.features[0].any()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak("host") > 4 * 2**20
    assert peak("stream") < 2**20

"""Every batch against numpy indexing of the arrays that went in; threads and modes must not show."""

import math
import threading
import time
import tracemalloc
from concurrent.futures import Executor, Future
from itertools import chain, count

import numpy as np
import pytest
import torch
import zarr

from loffta.dataset.features import choose_features
from loffta.errors import DamageFound
from loffta.feed import batches as module
from loffta.feed import order as order_module
from loffta.feed import readers
from loffta.feed.batches import Feed
from loffta.feed.copies import Copy, DeviceCopies
from loffta.feed.modes import Placement, bytes_per_image
from loffta.feed.order import Window, uniform_order, windowed_order
from loffta.feed.sources import HostFeature
from loffta.files.durable import remove_folder
from loffta.store import reader as reader_module
from loffta.store.cache import Cache
from loffta.store.reader import ArrayReader
from loffta.store.scales import Scales, create_scales
from loffta.store.shard import read_into
from tests.caches import FakeStore, make_cache, make_table

N = 43  # units of 8, the last one of 3
ROWS = np.array([40, 3, 4, 5, 21, 9, 42, 0, 17, 30, 12, 11, 8])
SHAPES = {"s.0": (4, 4, 3), "s.1": (2, 3, 5), "s.2": (2, 3, 5), "s.3": (2, 3, 5)}


WINDOW = Window(6, 2)
WINDOW_OF_2 = Window(4, 3)  # of two batches of 2


def arrays(dtype="float16"):
    rng = np.random.default_rng(1)
    return {tap: rng.normal(size=(N, *shape)).astype(dtype) for tap, shape in SHAPES.items()}


@pytest.fixture(scope="module", params=["float16", "float32"])
def made(request, tmp_path_factory):
    """A cache, its features of kind grid, and the same as numpy arrays [N, L, ...]."""
    first, dtype = arrays(request.param), request.param
    other = np.random.default_rng(2).normal(size=(N, 1, 1, 8)).astype(dtype)
    stores = [FakeStore("net", first, dtype=dtype), FakeStore("other", {"x": other}, dtype=dtype)]
    table = make_table(np.zeros(N), ["train"] * N)
    cache = make_cache(tmp_path_factory.mktemp(dtype) / "cache", table, stores, bad=(1,))
    features = choose_features(cache, ["net:s.0,s.1,s.3", "other"], ("grid",), default_taps="all")
    expected = [first["s.0"][:, None], np.stack([first["s.1"], first["s.3"]], axis=1), other[:, None]]
    return cache, features, expected


def on_the_device(monkeypatch):
    """Places features as on an accelerator; the CPU stands in for it."""
    monkeypatch.setattr(module, "choose_placements", lambda f, *_: [Placement("device", "")] * len(f))


def record_reads(monkeypatch):
    """(taps, rows) of every call of a reader from now on."""
    calls, read = [], ArrayReader.read

    def recorded(self, rows, taps=None, *args, **kwargs):
        calls.append((taps, rows.tolist()))
        return read(self, rows, taps, *args, **kwargs)

    monkeypatch.setattr(ArrayReader, "read", recorded)
    return calls


def copies(batches):
    return [(b.rows.clone(), [t.clone() for t in b.features]) for b in batches]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) and all(torch.equal(x, y) for x, y in zip(s, t, strict=True))
        for (a, s), (b, t) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("mode", ["host", "stream"])
def test_batches_are_the_arrays(made, mode, n_threads):
    _, features, expected = made
    with Feed(features, ROWS, batch_size=5, mode=mode, n_threads=n_threads) as feed:
        assert len(feed) == 3
        batches = copies(feed.in_order())
        assert [b[0].tolist() for b in batches] == [ROWS[:5].tolist(), ROWS[5:10].tolist(), ROWS[10:].tolist()]
        batches += copies(feed.epoch(0)) + copies(feed.epoch(1))
    for epoch in (3, 6):
        assert sorted(row for b in batches[epoch : epoch + 3] for row in b[0].tolist()) == sorted(ROWS)
    for rows, tensors in batches:
        for tensor, array in zip(tensors, expected, strict=True):
            assert tensor.numpy().dtype == array.dtype
            assert np.array_equal(tensor.numpy(), array[rows])


@pytest.mark.parametrize("mode", ["host", "stream"])
@pytest.mark.parametrize("stored", [False, True])
def test_means(tmp_path, mode, stored):
    grids = arrays()
    means = {tap: g.astype(np.float64).mean(axis=(1, 2)) + 1 for tap, g in grids.items()}  # not what pooling gives
    store = FakeStore("net", grids, kinds=("grid", "mean") if stored else ("grid",), means=means)
    cache = make_cache(tmp_path / "cache", make_table(np.zeros(N), ["train"] * N), [store])
    features = choose_features(cache, ["net:s.0,s.1,s.3"], ("mean",), default_taps="all")
    with Feed(features, ROWS, batch_size=5, mode=mode) as feed:
        for rows, (first, second) in copies(feed.epoch(3)):
            offset = 0 if stored else 1
            expected = np.stack([means["s.1"], means["s.3"]], axis=1)[rows] - offset
            np.testing.assert_allclose(second.numpy(), expected, atol=2e-3)
            np.testing.assert_allclose(first[:, 0].numpy(), means["s.0"][rows] - offset, atol=2e-3)


@pytest.mark.parametrize("order", ["uniform", "windowed"])
def test_threads_and_mode_do_not_show(made, monkeypatch, order):
    _, features, _ = made
    seen = []
    options = {"batch_size": 3, "order": order, "window": WINDOW, "seed": 7}
    for mode, n_threads in [("host", 1), ("host", 5), ("stream", 1), ("stream", 2), ("stream", 5), ("stream", 9)]:
        with Feed(features, ROWS, mode=mode, n_threads=n_threads, **options) as feed:
            seen.append(copies(feed.epoch(0)) + copies(feed.epoch(1)))
    monkeypatch.setattr(module, "IN_PLACE_BYTES", 0)  # what is in memory, too, is copied by threads
    with Feed(features, ROWS, mode="host", **options) as feed:
        seen.append(copies(feed.epoch(0)) + copies(feed.epoch(1)))
    on_the_device(monkeypatch)
    with Feed(features, ROWS, **options) as feed:
        assert feed.modes == ("device",) * len(features)
        seen.append(copies(feed.epoch(0)) + copies(feed.epoch(1)))
    assert all(same(seen[0], other) for other in seen[1:])
    found = np.concatenate([rows for rows, _ in seen[0]])
    draw = {"uniform": lambda e: uniform_order(13, 7, e), "windowed": lambda e: windowed_order(ROWS, WINDOW, 7, e)}
    assert found.tolist() == ROWS[np.concatenate([draw[order](0), draw[order](1)])].tolist()


@pytest.mark.parametrize("order", ["uniform", "windowed"])
@pytest.mark.parametrize("mode", ["host", "stream", "device"])
def test_an_epoch_is_resumed_in_its_middle(made, monkeypatch, mode, order):
    """What follows is the same bit for bit, and what was left out is not read."""
    _, features, _ = made
    if mode == "device":
        on_the_device(monkeypatch)
    read = record_reads(monkeypatch)
    with Feed(
        features, ROWS, batch_size=2, mode="auto" if mode == "device" else mode, order=order, window=WINDOW_OF_2
    ) as feed:
        whole = copies(feed.epoch(4))
        for start in range(len(feed) + 1):
            read.clear()
            assert same(copies(feed.epoch(4, start)), whole[start:])
            rows = sorted(row for _, rows in read for row in rows)
            left = [row for batch in whole[start:] for row in batch[0].tolist()]
            assert rows == (sorted(left * 3) if mode == "stream" else [])  # of three arrays
        with pytest.raises(AssertionError, match="an epoch has 7 batches, none with number 8"):
            feed.epoch(4, 8)


@pytest.mark.parametrize("order", ["uniform", "windowed"])
@pytest.mark.parametrize("mode", ["host", "stream"])
def test_the_next_epoch_is_begun_while_this_one_ends(made, monkeypatch, mode, order):
    _, features, _ = made
    options = {"batch_size": 2, "mode": mode, "order": order, "window": WINDOW_OF_2, "seed": 7}
    with Feed(features, ROWS, **options) as feed:
        expected = [copies(feed.epoch(epoch)) for epoch in range(4)]
        given = copies(feed.in_order())
    calls = record_reads(monkeypatch)
    with Feed(features, ROWS, **options) as feed:
        calls.clear()  # those of host mode
        found = [copies(feed.epoch(0, more=True))]
        end = time.monotonic() + 60
        while mode == "stream" and sum(len(rows) for _, rows in calls) <= 3 * len(ROWS) and time.monotonic() < end:
            time.sleep(0.001)  # the three arrays of these features: what comes behind is of the next epoch
        ahead = sum(len(rows) for _, rows in calls) > 3 * len(ROWS)
        found += [copies(feed.epoch(epoch, more=epoch < 3)) for epoch in range(1, 4)]
    assert ahead == (mode == "stream")
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert sum(len(rows) for _, rows in calls) == (4 * 3 * len(ROWS) if mode == "stream" else 0), "none is read twice"
    with Feed(features, ROWS, **options) as feed:  # what was begun, and not asked for then, leaves no trace
        for leave in (copies, lambda batches: copies([next(batches)])):
            for ask, batches in [
                (lambda: feed.epoch(2), expected[2]),
                (lambda: feed.epoch(1, 1), expected[1][1:]),
                (lambda: (feed.epoch(1), feed.epoch(1))[1], expected[1]),
                (feed.in_order, given),
            ]:
                leave(feed.epoch(0, more=True))
                assert same(copies(ask()), batches)
        copies(feed.epoch(0, more=True))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loffta-feed")]


def test_a_window_is_read_at_once_and_in_runs(made, monkeypatch):
    """Neighbours on disk come with one system call, though they go to different batches."""
    _, (feature, *_), _ = made
    rows, window = np.arange(2, 38), Window(12, 6)
    read = record_reads(monkeypatch)
    calls = []
    monkeypatch.setattr(
        reader_module,
        "read_into",
        lambda fd, buffers, *a, **k: (calls.append(len(buffers)), read_into(fd, buffers, *a, **k)),
    )
    with Feed([feature], rows, batch_size=4, mode="stream", order="windowed", window=window, n_threads=3) as feed:
        list(feed.epoch(0))
        calls.clear(), read.clear()
        batches = [batch.rows.tolist() for batch in feed.epoch(1)]
    assert [sorted(found) for _, found in read] == [sorted(chain(*batches[i : i + 3])) for i in (0, 3, 6)]
    assert sorted(chain(*batches)) == rows.tolist()
    assert len(calls) <= 18  # at most: 6 or 7 runs, cut at 2 window and 4 unit borders; 36 images at random: about 34


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


def test_features_of_one_array_share_a_read(tmp_path, monkeypatch):
    """Grids and the means of grids, also where a mean of one tap is stored: one read of the union of taps a batch."""
    grids = {tap: grid for tap, grid in arrays("float32").items() if tap != "s.0"}
    cache = make_cache(
        tmp_path / "cache", make_table(np.zeros(N), ["train"] * N), [FakeStore("net", grids, dtype="float32")]
    )
    both = choose_features(cache, ["net:s.1,s.3"], ("grid", "mean"), default_taps="all")
    both += choose_features(cache, ["net:s.2,s.3"], ("grid",), default_taps="all")
    both += choose_features(cache, ["net:s.1,s.3"], ("mean",), default_taps="all")
    expected = [np.stack([grids[tap] for tap in f.spec.taps], axis=1) for f in both]
    for feature, mode in zip(both, ("stream", "stream", "stream", "host"), strict=True):
        assert feature.array.paths == both[0].array.paths, mode
    placed = [Placement(mode, "") for mode in ("stream", "stream", "stream", "host")]
    monkeypatch.setattr(module, "choose_placements", lambda *_: placed)
    read = record_reads(monkeypatch)
    with Feed(both, ROWS, batch_size=5) as feed:
        assert read == [([0, 2], ROWS.tolist())]  # the mean that is held
        read.clear()
        for rows, tensors in copies(feed.in_order()):
            for feature, tensor, grid in zip(both, tensors, expected, strict=True):
                values = grid[rows].mean(axis=(2, 3)) if feature.is_pooled else grid[rows]
                np.testing.assert_allclose(tensor.numpy(), values, atol=1e-6)
    assert read == [([0, 1, 2], ROWS[i : i + 5].tolist()) for i in (0, 5, 10)]


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


def test_order_and_threads_follow_the_page_cache(made, monkeypatch):
    """What is streamed and does not fit the memory comes from the disk in every epoch."""
    _, features, _ = made
    need = bytes_per_image(features) * len(ROWS)
    for free, order, n_parts in [(need, "uniform", 1), (need - 1, "windowed", 16)]:
        monkeypatch.setattr("loffta.machine.process.free_memory_bytes", lambda free=free: free)
        with Feed(features, ROWS, batch_size=4) as feed:
            assert set(feed.modes) >= {"stream"}
        with Feed(features, ROWS, batch_size=4, mode="stream") as feed:
            assert (feed.order, feed._readers.n_parts) == (order, n_parts)
            assert ("; uniform order" in feed.describe()) == (order == "uniform")
        with Feed(features, ROWS, batch_size=4, mode="stream", order="uniform") as feed:
            assert feed.order == "uniform"
    largest = max(math.prod(feature.array.layout.item_shape) for feature in features)
    itemsize = features[0].array.layout.dtype.itemsize
    for limit, order in [(largest * itemsize + 1, "windowed"), (1, "uniform")]:  # large images are runs by themselves
        monkeypatch.setattr(order_module, "RUNS_HELP_BELOW", limit)
        with Feed(features, ROWS, batch_size=4, mode="stream") as feed:
            assert feed.order == order


def test_describe_says_what_a_window_is_worth(made):
    _, (feature, *_), _ = made
    rows = np.arange(2, 42)
    with Feed([feature], rows, batch_size=4, mode="stream", order="windowed", window=Window(8, 4)) as feed:
        text = feed.describe()
        on_disk = {row: i for i, batch in enumerate(feed.epoch(0)) for row in batch.rows.tolist()}
    together = [any(on_disk.get(row + d) == on_disk[row] for d in (-1, 1)) for row in rows]
    assert text.startswith(f"stream: {feature.array.paths.name} (")
    assert "windowed order: 8 images (20.0% of all) are mixed at a time, " in text
    assert f", {np.mean(together):.1%} of a batch's images have a neighbour on disk in it (uniform: " in text


def test_order_is_seed_and_epoch(made):
    _, features, _ = made

    def order(seed, epoch, batch_size=4):
        with Feed(features, ROWS, batch_size=batch_size, seed=seed) as feed:
            return torch.cat([batch.rows for batch in feed.epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0) == order(0, 0, batch_size=64)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


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


# -- int8


def int8_cache(root, kinds=("grid",)):
    cache = make_cache(
        root, make_table(np.zeros(N), ["train"] * N), [FakeStore("net", arrays(), dtype="int8", kinds=kinds)]
    )
    return cache, choose_features(cache, ["net:s.0,s.1,s.3"], (kinds[0],), default_taps="all")


def decoded(feature):
    """[N, L, ...] of the feature's taps through zarr-python and the formula of the documentation."""
    paths = feature.array.paths
    codes, scale, zero = (
        np.asarray(zarr.open_array(store=folder, mode="r")[...])
        for folder in (paths.folder, paths.scales / "scale", paths.scales / "zero")
    )
    values = (codes.astype(np.float32) - zero[None, :, None, None]) * scale[None, :, None, None]
    return np.where(codes == -128, np.float32(np.nan), values)[
        :, [feature.array.taps.index(t) for t in feature.spec.taps]
    ]


@pytest.mark.parametrize("mode", ["host", "stream"])
def test_int8_is_decoded_to_the_same_bits_that_others_read(tmp_path, mode):
    _, features = int8_cache(tmp_path / "cache")
    expected = [decoded(feature) for feature in features]
    with Feed(features, ROWS, batch_size=5, mode=mode, seed=3) as feed:
        for rows, tensors in copies(feed.epoch(0)) + copies(feed.in_order()):
            for tensor, values in zip(tensors, expected, strict=True):
                assert tensor.dtype == torch.float32
                assert np.array_equal(tensor.numpy(), values[rows])
        if mode == "host":
            assert [source.held.dtype for source in feed._sources] == [np.int8] * len(features)
        assert all(buffer.dtype == torch.int8 for slot in feed._slots for buffer in slot.buffers)
    truth = np.stack([arrays()["s.1"], arrays()["s.3"]], axis=1).astype(np.float32)
    assert np.abs(expected[1] - truth).max() < 0.05
    assert bytes_per_image(features) == 4 * 4 * 3 + 2 * 2 * 3 * 5


@pytest.mark.parametrize("mode", ["host", "stream"])
def test_the_mean_of_an_int8_grid_is_the_mean_of_what_it_stands_for(tmp_path, mode):
    cache, grids = int8_cache(tmp_path / "cache")
    features = choose_features(cache, ["net:s.0,s.1,s.3"], ("mean",), default_taps="all")
    expected = [decoded(feature).astype(np.float64).mean(axis=(2, 3)) for feature in grids]
    with Feed(features, ROWS, batch_size=5, mode=mode) as feed:
        for rows, tensors in copies(feed.epoch(0)):
            for tensor, values in zip(tensors, expected, strict=True):
                assert tensor.dtype == torch.float32
                np.testing.assert_allclose(tensor.numpy(), values[rows], rtol=1e-5, atol=1e-6)
    assert bytes_per_image(features) == 4 * (3 + 2 * 5)


def test_a_mean_stored_beside_int8_grids_is_float16(tmp_path):
    _, features = int8_cache(tmp_path / "cache", ("mean", "grid"))
    with Feed(features, ROWS, batch_size=5) as feed:
        for rows, (first, _) in copies(feed.epoch(0)):
            assert first.dtype == torch.float16
            expected = arrays()["s.0"].mean(axis=(1, 2), dtype=np.float32).astype(np.float16)
            np.testing.assert_allclose(first[:, 0].numpy(), expected[rows], atol=1e-3)
    assert bytes_per_image(features) == 2 * (3 + 2 * 5)


def test_a_code_that_says_missing_is_nan(tmp_path):
    """A quarantined row is never asked for; should its chunk be there and empty, it poisons the loss visibly."""
    _, (feature, *_) = int8_cache(tmp_path / "cache")
    raw = torch.full((2, 1, 4, 4, 3), -128, dtype=torch.int8)
    raw[0] = 5
    assert feature.finish(raw).isnan().flatten(1).all(dim=1).tolist() == [False, True]


def test_scales_that_the_units_do_not_know_are_refused(tmp_path):
    cache, (feature, *_) = int8_cache(tmp_path / "cache")
    ones = np.ones((1, 3), np.float32)
    remove_folder(feature.array.paths.scales)
    create_scales(feature.array.paths, feature.array.layout, Scales(ones, ones), {})
    fresh = choose_features(Cache.open(cache.paths.root), ["net:s.0"], ("grid",), default_taps="all")
    with (
        Feed(fresh, ROWS, batch_size=5, mode="stream") as feed,
        pytest.raises(DamageFound, match=r"not those that its units were written with(.|\n)*--repair"),
    ):
        next(feed.in_order())

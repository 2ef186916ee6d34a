"""Every batch against numpy indexing of the arrays that went in; threads and modes must not show."""

import math
import threading
import time
from itertools import chain

import numpy as np
import pytest
import torch

from loffta.dataset.features import choose_features
from loffta.feed import batches as module
from loffta.feed import order as order_module
from loffta.feed.batches import Feed
from loffta.feed.modes import Placement, bytes_per_image
from loffta.feed.order import Window, uniform_order, windowed_order
from loffta.store import reader as reader_module
from loffta.store.reader import ArrayReader
from loffta.store.shard import read_into
from tests.caches import FakeStore, make_cache, make_table
from tests.feed.arrays import ROWS, WINDOW_OF_2, N, arrays, copies, same

WINDOW = Window(6, 2)


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

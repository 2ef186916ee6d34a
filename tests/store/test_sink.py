"""Writing behind the computation: order kept, too much waits, an error surfaces, nothing half-written stays."""

import os
import queue
import threading
import time

import google_crc32c
import numpy as np
import pytest
import torch

from loffta.errors import LofftaError
from loffta.store import sink as sink_module
from loffta.store.cache import CachedArray
from loffta.store.handover import OnHost
from loffta.store.ledger import OK, ImageStatus, count_done
from loffta.store.paths import CachePaths
from loffta.store.sink import UnitSink
from loffta.store.writer import UnitWriter
from loffta.store.zarr_reader import open_array

from .conftest import U, make_layout, make_values, names

LAYOUT = make_layout("grid")
VALUES = make_values(LAYOUT.shape, "float16")
DUE_S = 60  # after which a thread counts as stuck


@pytest.fixture
def array(tmp_path):
    paths = CachePaths(tmp_path).array("store-0", "grid-0")
    paths.folder.mkdir(parents=True)
    paths.metadata.write_bytes(LAYOUT.to_json())
    return CachedArray(paths, LAYOUT)


@pytest.fixture(autouse=True)
def four_writers(monkeypatch):
    monkeypatch.setattr(sink_module, "count_writers", lambda: 4)


def open_sink():
    return UnitSink(torch.device("cpu"))


def give(sink, writer, rows):
    tokens = torch.from_numpy(VALUES[list(rows)].astype(np.float32))
    batch = OnHost(tokens.unbind(1), "float16", None)
    sink.append([(writer, batch)], list(rows), [str(row) for row in rows])


def statuses(rows):
    return [ImageStatus(row, OK) for row in rows]


def test_units_arrive_whole_and_in_order(array, monkeypatch):
    order = []
    commit = UnitWriter.commit

    def noted(self, images, run):
        order.append(images[0].row // U)
        return commit(self, images, run)

    monkeypatch.setattr(UnitWriter, "commit", noted)
    with open_sink() as sink:
        for unit in range(2):
            rows = range(U * unit, U * unit + U)
            writer = sink.open(array, unit)
            give(sink, writer, rows[:5])
            give(sink, writer, rows[5:])
            sink.commit([(writer, {})], statuses(rows))
    assert order == [0, 1]
    np.testing.assert_array_equal(open_array(array.paths).read(np.arange(2 * U)), VALUES[: 2 * U])
    assert names(array.paths.folder) == ["c.0.0.0.0.0", "c.1.0.0.0.0", "zarr.json"]


def hold_writes(monkeypatch):
    """Every write waits for `release`; gives that event, and the rows whose writing was begun."""
    release, begun, write = threading.Event(), queue.Queue(), UnitWriter.write

    def slow(self, rows, *rest):
        begun.put(rows)
        assert release.wait(DUE_S)
        write(self, rows, *rest)

    monkeypatch.setattr(UnitWriter, "write", slow)
    return release, begun


def test_the_caller_computes_while_batches_are_written_and_waits_when_too_many_bytes_wait(array, monkeypatch):
    release, begun = hold_writes(monkeypatch)
    monkeypatch.setattr(sink_module, "MAX_WAITING", 3 * VALUES[0].nbytes)
    given = []

    def produce():
        with open_sink() as sink:
            writer = sink.open(array, 0)
            for row in range(U):
                give(sink, writer, [row])
                given.append(row)
            sink.commit([(writer, {})], statuses(range(U)))

    producer = threading.Thread(target=produce)
    producer.start()
    assert sorted(begun.get(timeout=DUE_S) for _ in range(3)) == [[0], [1], [2]]  # at once
    producer.join(0.2)  # time for a sink that never waits to take all eight
    assert given == [0, 1, 2]
    release.set()
    producer.join(DUE_S)
    assert count_done(array.paths, 0) == U


def test_a_batch_is_written_in_parts_by_all_threads_and_lies_in_order(array, monkeypatch):
    """Whoever comes first: the bytes are those of one thread."""
    release, begun = hold_writes(monkeypatch)
    monkeypatch.setattr(sink_module, "PART_BYTES", 2 * VALUES[0].nbytes)
    with open_sink() as sink:
        writer = sink.open(array, 0)
        give(sink, writer, range(U))
        parts = [begun.get(timeout=DUE_S) for _ in range(4)]
        release.set()
        sink.commit([(writer, {})], statuses(range(U)))
    assert sorted(parts) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    chunks = [VALUES[row, tap].tobytes() for row in range(U) for tap in range(VALUES.shape[1])]
    together = b"".join(chunk + google_crc32c.value(chunk).to_bytes(4, "little") for chunk in chunks)
    assert array.paths.shard(0, 5).read_bytes().startswith(together)


def test_the_next_unit_is_written_while_one_is_made_durable(array, monkeypatch):
    syncing, go, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(fd):
        syncing.set()
        assert go.wait(DUE_S)
        fsync(fd)

    with open_sink() as sink:
        first, second = sink.open(array, 0), sink.open(array, 1)
        give(sink, first, range(U))
        monkeypatch.setattr(os, "fsync", slow)
        sink.commit([(first, {})], statuses(range(U)))
        assert syncing.wait(DUE_S)
        give(sink, second, range(U, 2 * U))
        deadline = time.monotonic() + DUE_S
        while sink.n_bytes < 2 * VALUES[:U].nbytes:
            assert time.monotonic() < deadline, "the next unit waits for the fsync"
            time.sleep(0.001)
        assert count_done(array.paths, 0) == 0
        go.set()
        sink.commit([(second, {})], statuses(range(U, 2 * U)))
    assert [count_done(array.paths, unit) for unit in range(2)] == [U, U]


def test_the_number_of_torch_threads_is_as_before(array):
    """New threads begin with what was set last, in whichever thread."""
    n_threads = torch.get_num_threads() + 1
    seen = []
    torch.set_num_threads(n_threads)
    try:
        with open_sink() as sink:
            writer = sink.open(array, 0)
            give(sink, writer, range(U))
            sink.commit([(writer, {})], statuses(range(U)))
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert [torch.get_num_threads(), *seen] == [n_threads, n_threads]
    finally:
        torch.set_num_threads(n_threads - 1)


def test_an_error_of_the_thread_reaches_the_caller_and_leaves_nothing(array, monkeypatch):
    def full(self, *_):
        raise LofftaError("no space left", where="disk", remedy="free some")

    monkeypatch.setattr(UnitWriter, "write", full)
    with pytest.raises(LofftaError, match="no space left"), open_sink() as sink:  # noqa: PT012  the body is the case
        writer = sink.open(array, 0)
        for row in range(U):
            give(sink, writer, [row])
    assert names(array.paths.folder) == ["zarr.json"]
    assert not array.paths.done_folder.exists()


def test_a_whole_unit_is_kept_when_the_next_one_fails(array, monkeypatch):
    """It waits for its fsync while the disk is full for the next."""
    failed, fsync, write = threading.Event(), os.fsync, UnitWriter.write

    def full(self, rows, *rest):
        if rows[0] >= U:
            failed.set()
            raise LofftaError("no space left", where="disk", remedy="free some")
        write(self, rows, *rest)

    def slow(fd):
        assert failed.wait(DUE_S)
        fsync(fd)

    monkeypatch.setattr(UnitWriter, "write", full)
    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(LofftaError, match="no space left"), open_sink() as sink:  # noqa: PT012  the body is the case
        first, second = sink.open(array, 0), sink.open(array, 1)
        give(sink, first, range(U))
        sink.commit([(first, {})], statuses(range(U)))
        give(sink, second, range(U, 2 * U))
    assert count_done(array.paths, 0) == U
    assert names(array.paths.folder) == ["c.0.0.0.0.0", "zarr.json"]


def test_an_error_in_the_last_call_is_raised_on_leaving(array, monkeypatch):
    def broken(self, images, run):
        raise OSError("Input/output error")

    monkeypatch.setattr(UnitWriter, "commit", broken)
    with pytest.raises(OSError, match="Input/output error"), open_sink() as sink:  # noqa: PT012  the body is the case
        writer = sink.open(array, 0)
        give(sink, writer, range(U))
        sink.commit([(writer, {})], statuses(range(U)))
    assert names(array.paths.folder) == ["zarr.json"]


def test_an_error_of_the_caller_keeps_whole_units_and_drops_the_open_one(array):
    with pytest.raises(KeyboardInterrupt), open_sink() as sink:  # noqa: PT012  the body is the case
        writer = sink.open(array, 0)
        give(sink, writer, range(U))
        sink.commit([(writer, {})], statuses(range(U)))
        give(sink, sink.open(array, 1), range(U, U + 3))
        raise KeyboardInterrupt
    assert names(array.paths.folder) == ["c.0.0.0.0.0", "zarr.json"]
    assert count_done(array.paths, 0) == U
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("loffta-")]

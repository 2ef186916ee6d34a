"""Writing behind the computation: order kept, a full queue waits, an error surfaces, nothing half-written stays."""

import threading

import numpy as np
import pytest

from loffta.errors import LofftaError
from loffta.store.cache import CachedArray
from loffta.store.ledger import OK, ImageStatus, count_done
from loffta.store.paths import CachePaths
from loffta.store.sink import MAX_WAITING, UnitSink
from loffta.store.writer import UnitWriter
from loffta.store.zarr_reader import open_array

from .conftest import U, as_stored, make_layout, make_values, names

LAYOUT = make_layout("grid")
VALUES = make_values(LAYOUT.shape, "float16")
DUE_S = 60  # after which a thread counts as stuck


@pytest.fixture
def array(tmp_path):
    paths = CachePaths(tmp_path).array("store-0", "grid-0")
    paths.folder.mkdir(parents=True)
    paths.metadata.write_bytes(LAYOUT.to_json())
    return CachedArray(paths, LAYOUT)


def give(sink, writer, rows):
    sink.append([(writer, lambda: as_stored(VALUES[list(rows)]))], list(rows), [str(row) for row in rows])


def statuses(rows):
    return [ImageStatus(row, OK) for row in rows]


def test_units_arrive_whole_and_in_order(array, monkeypatch):
    order = []
    commit = UnitWriter.commit

    def noted(self, images, run):
        order.append(images[0].row // U)
        return commit(self, images, run)

    monkeypatch.setattr(UnitWriter, "commit", noted)
    with UnitSink() as sink:
        for unit in range(2):
            rows = range(U * unit, U * unit + U)
            writer = sink.open(array, unit)
            give(sink, writer, rows[:5])
            give(sink, writer, rows[5:])
            sink.commit([(writer, {})], statuses(rows))
    assert order == [0, 1]
    np.testing.assert_array_equal(open_array(array.paths).read(np.arange(2 * U)), VALUES[: 2 * U])
    assert names(array.paths.folder) == ["c.0.0.0.0.0", "c.1.0.0.0.0", "zarr.json"]


def test_the_caller_computes_while_a_batch_is_written_and_waits_when_the_queue_is_full(array, monkeypatch):
    release, writing, given = threading.Event(), threading.Event(), []
    append = UnitWriter.append

    def slow(self, rows, stored, keys):
        writing.set()
        assert release.wait(DUE_S)
        append(self, rows, stored, keys)

    monkeypatch.setattr(UnitWriter, "append", slow)

    def produce():
        with UnitSink() as sink:
            writer = sink.open(array, 0)
            for row in range(U):
                give(sink, writer, [row])
                given.append(row)
            sink.commit([(writer, {})], statuses(range(U)))

    producer = threading.Thread(target=produce)
    producer.start()
    assert writing.wait(DUE_S)
    producer.join(0.2)  # time for a sink that never waits to take all eight
    assert 1 <= len(given) <= 1 + MAX_WAITING
    release.set()
    producer.join(DUE_S)
    assert count_done(array.paths, 0) == U


def test_an_error_of_the_thread_reaches_the_caller_and_leaves_nothing(array, monkeypatch):
    def full(self, rows, stored, keys):
        raise LofftaError("no space left", where="disk", remedy="free some")

    monkeypatch.setattr(UnitWriter, "append", full)
    with pytest.raises(LofftaError, match="no space left"), UnitSink() as sink:  # noqa: PT012  the body is the case
        writer = sink.open(array, 0)
        for row in range(U):
            give(sink, writer, [row])
    assert names(array.paths.folder) == ["zarr.json"]
    assert not array.paths.done_folder.exists()


def test_an_error_in_the_last_call_is_raised_on_leaving(array, monkeypatch):
    def broken(self, images, run):
        raise OSError("Input/output error")

    monkeypatch.setattr(UnitWriter, "commit", broken)
    with pytest.raises(OSError, match="Input/output error"), UnitSink() as sink:  # noqa: PT012  the body is the case
        writer = sink.open(array, 0)
        give(sink, writer, range(U))
        sink.commit([(writer, {})], statuses(range(U)))
    assert names(array.paths.folder) == ["zarr.json"]


def test_an_error_of_the_caller_keeps_whole_units_and_drops_the_open_one(array):
    with pytest.raises(KeyboardInterrupt), UnitSink() as sink:  # noqa: PT012  the body is the case
        writer = sink.open(array, 0)
        give(sink, writer, range(U))
        sink.commit([(writer, {})], statuses(range(U)))
        give(sink, sink.open(array, 1), range(U, U + 3))
        raise KeyboardInterrupt
    assert names(array.paths.folder) == ["c.0.0.0.0.0", "zarr.json"]
    assert count_done(array.paths, 0) == U
    assert threading.active_count() == 1 or all(t.name != "loffta-sink" for t in threading.enumerate())

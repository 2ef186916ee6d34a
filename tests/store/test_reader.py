import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loffta.errors import DamageFound, LofftaError
from loffta.store import reader as reader_module
from loffta.store import shard as shard_module
from loffta.store.metadata import ArrayLayout
from loffta.store.paths import ArrayPaths
from loffta.store.reader import ArrayReader
from loffta.store.shard import ShardWriter

from .conftest import BAD_ROW, U, Written, append, assert_same, flip_bit, make_values, names, write_array, write_unit

CHUNK = 2 * 4 * 5 * 2 + 4  # bytes of one tap of one image in the shard


@pytest.mark.parametrize("kind", ["grid", "prefix", "mean", "thumb"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_all_rows_of_every_kind(tmp_path: Path, kind: str, dtype: str) -> None:
    made = write_array(tmp_path, kind, dtype)
    rows = np.random.default_rng(1).permutation(made.good)
    assert_same(ArrayReader(made.paths).read(rows), made.values[rows])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_layout_rows_and_taps_are_numpy_indexing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    n_rows, n_taps = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4))
    unit_images = data.draw(st.sampled_from([1, 2, 4, 8]))
    whole, item = data.draw(st.booleans()), data.draw(st.sampled_from([(3,), (2, 2), (2, 1, 3)]))
    dtype = np.dtype(data.draw(st.sampled_from(["float16", "float32", "uint8"])))
    values = make_values((n_rows, n_taps, *item), dtype)
    layout = ArrayLayout(values.shape, dtype, unit_images, (1, n_taps if whole else 1, *item))
    folder = tmp_path_factory.mktemp("array")
    paths = ArrayPaths("a", folder, folder / "done")
    paths.metadata.write_bytes(layout.to_json())
    for unit in range(-(-n_rows // unit_images)):
        part = values[unit * unit_images : (unit + 1) * unit_images]
        writer = ShardWriter(paths.shard(unit, layout.ndim), unit_images * layout.chunks_per_image)
        flat = part.reshape(-1, 1 if not whole else n_taps, *item)
        order = data.draw(st.permutations(range(len(flat))))  # chunks may lie in any order
        append(writer, order, np.ascontiguousarray(flat[order]))
        writer.commit()
    rows = np.asarray(data.draw(st.lists(st.integers(0, n_rows - 1), max_size=30)), dtype=np.int64)
    taps = None if whole else data.draw(st.none() | st.lists(st.integers(0, n_taps - 1), min_size=1, max_size=6))
    with ThreadPoolExecutor(2) as pool:
        got = ArrayReader(paths).read(rows, taps, pool=pool, n_parts=data.draw(st.integers(1, 4)))
    assert_same(got, values[rows] if taps is None else values[rows][:, taps])


def test_into_a_ready_buffer_from_a_pool(full: Written) -> None:
    reader, rows = ArrayReader(full.paths), np.array([18, 0, 7, 8, 0, 3, 15, 16])
    out = np.full((8, 2, 2, 4, 5), -1, np.float16)
    with ThreadPoolExecutor(3) as pool:
        assert reader.read(rows, [2, 0], out, pool=pool, n_parts=3) is out
    assert_same(out, full.values[rows][:, [2, 0]])


@pytest.mark.parametrize("out", [np.empty((2, 3, 2, 4, 4), np.float16), np.empty((2, 3, 2, 4, 5), np.float32)])
def test_a_wrong_buffer_is_refused(full: Written, out: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="out must be"):
        ArrayReader(full.paths).read(np.array([0, 1]), None, out)


def test_rows_and_taps_that_are_not_there(full: Written) -> None:
    reader = ArrayReader(full.paths)
    for rows in ([-1], [19], [0, 400]):
        with pytest.raises(IndexError, match=r"row outside 0..18 of store-0/grid-0"):
            reader.read(np.array(rows))
    for taps in ([], [3], [-1]):
        with pytest.raises(IndexError, match=r"outside 0..2 of store-0/grid-0"):
            reader.read(np.array([0]), taps)


def test_taps_of_an_array_that_keeps_them_together(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="keeps all taps of an image in one chunk; read it whole"):
        ArrayReader(write_array(tmp_path, "mean").paths).read(np.array([0]), [0])


def test_no_rows(full: Written) -> None:
    assert ArrayReader(full.paths).read(np.empty(0, np.int64), [1]).shape == (0, 1, 2, 4, 5)


def test_a_quarantined_row_is_an_error_not_zeros(grid: Written) -> None:
    with pytest.raises(
        DamageFound, match=rf"row {BAD_ROW} is missing from its shard\n  where:  .*c.0.0.0.0.0\n.*verify CACHE"
    ):
        ArrayReader(grid.paths).read(np.array([4, BAD_ROW, 6]))


def test_a_missing_shard_is_an_error_not_zeros(full: Written) -> None:
    full.shard(1).unlink()
    reader = ArrayReader(full.paths)
    with pytest.raises(DamageFound, match=r"a shard of a finished unit is gone\n  where:  .*c.1.0.0.0.0\n.*purged"):
        reader.read(np.array([0, 9]))
    assert_same(reader.read(np.array([0, 17])), full.values[[0, 17]])


def test_a_flipped_data_bit(full: Written) -> None:
    flip_bit(full.shard(1), CHUNK * (3 * 2 + 1) + 17)  # row 10, tap 1
    reader = ArrayReader(full.paths)
    rows = np.array([10, 11])
    assert_same(reader.read(rows, [0, 2]), full.values[rows][:, [0, 2]])
    message = r"row 10, blocks.1: the bytes do not match their crc32c\n  where:  .*c.1.0.0.0.0\n.*verify CACHE --deep"
    for _ in range(2):  # a damaged chunk is never taken for a checked one
        with pytest.raises(DamageFound, match=message):
            reader.read(rows, [2, 1])
    damaged = ArrayReader(full.paths, check="never").read(rows, [1])
    assert (damaged != full.values[rows][:, [1]]).sum() == 1


def test_a_flipped_crc(full: Written) -> None:
    flip_bit(full.shard(0), CHUNK - 1)
    with pytest.raises(DamageFound, match=r"row 0, blocks.0: the bytes"):
        ArrayReader(full.paths).read(np.array([0]))


def test_a_flipped_bit_of_an_array_without_chunks_per_tap(tmp_path: Path) -> None:
    made = write_array(tmp_path, "mean")
    flip_bit(made.shard(0), 1)
    with pytest.raises(DamageFound, match=r"row 0, all taps: the bytes do not match"):
        ArrayReader(made.paths).read(np.array([0]))


def test_checked_once_then_trusted(full: Written) -> None:
    reader, rows = ArrayReader(full.paths), np.array([10])
    reader.read(rows, [1])
    flip_bit(full.shard(1), CHUNK * (3 * 2 + 1) + 17)  # the checked chunk
    flip_bit(full.shard(1), CHUNK * (3 * 2 + 2) + 17)  # its neighbour, not read before
    assert (reader.read(rows, [1]) != full.values[rows][:, [1]]).sum() == 1
    with pytest.raises(DamageFound, match=r"row 10, blocks.2"):
        reader.read(rows, [1, 2])


def test_a_flipped_index_bit(full: Written) -> None:
    flip_bit(full.shard(0), full.shard(0).stat().st_size - 100)
    with pytest.raises(DamageFound, match="shard index does not match its crc32c"):
        ArrayReader(full.paths).read(np.array([0]))


@pytest.mark.parametrize(
    ("keep", "message"), [(0, "truncated: 0 bytes"), (-1, "index does not match"), (-400, "index does not")]
)
def test_a_truncated_shard(full: Written, keep: int, message: str) -> None:
    data = full.shard(0).read_bytes()
    full.shard(0).write_bytes(data[:keep])
    with pytest.raises(DamageFound, match=message):
        ArrayReader(full.paths).read(np.array([0]))


def test_a_shard_of_an_array_of_another_shape(tmp_path: Path) -> None:
    made, other = (
        write_array(tmp_path / "a", "grid", "float16", bad=()),
        write_array(tmp_path / "b", "grid", "float32", bad=()),
    )
    made.shard(0).write_bytes(other.shard(0).read_bytes())
    with pytest.raises(DamageFound, match="row 0 has a chunk of another length than its array says"):
        ArrayReader(made.paths).read(np.array([0]))


def test_a_shard_that_is_replaced_while_a_reader_lives(full: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last unit of a grown set is written anew; a reader that opens it again must not use the old offsets."""
    monkeypatch.setattr(reader_module.resource, "getrlimit", lambda _: (0, 0))  # two open shards at most
    reader = ArrayReader(full.paths)
    reader.read(np.arange(19))
    values = make_values(full.values.shape, np.float16, seed=9)
    full.paths.done(0).unlink()
    write_unit(full.paths, full.layout, 0, values, bad=(1,))  # without row 1 all later chunks move
    assert_same(reader.read(np.array([2, 7, 9])), np.stack([values[2], values[7], full.values[9]]))
    with pytest.raises(DamageFound, match="row 1 is missing"):
        reader.read(np.array([1]))


def test_short_reads_are_continued(full: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][:7]], offset)

    monkeypatch.setattr(shard_module.os, "preadv", short)
    assert_same(ArrayReader(full.paths).read(np.arange(19), [2, 1]), full.values[:, [2, 1]])


def test_adjacent_chunks_are_one_call(full: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, calls, real = ArrayReader(full.paths), [], os.preadv
    reader.read(np.arange(19))
    monkeypatch.setattr(shard_module.os, "preadv", lambda *args: calls.append(args[2]) or real(*args))
    reader.read(np.arange(19))
    assert calls == [0, 0, 0]  # one run per shard
    calls.clear()
    reader.read(np.array([3, 1]), [2, 0, 1])
    assert calls == [CHUNK * 3, CHUNK * 9]


def test_longer_runs_than_one_preadv_takes(full: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_IOV", 5)
    assert_same(ArrayReader(full.paths).read(np.arange(19)), full.values)


def test_several_threads_at_once(full: Written) -> None:
    reader = ArrayReader(full.paths)

    def read(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(0, 19, 11)
        return bool((reader.read(rows, [2, 0]) == full.values[rows][:, [2, 0]]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


def test_nobody_writes_to_the_buffer_after_an_error(full: Written) -> None:
    flip_bit(full.shard(0), 3)
    out = np.zeros(full.values.shape, np.float16)
    reader = ArrayReader(full.paths)
    with ThreadPoolExecutor(2) as pool:
        for rows in (np.arange(19), np.arange(19)[::-1].copy()):  # in another thread, in this one
            with pytest.raises(DamageFound, match=r"row 0, blocks.0"):
                reader.read(rows, None, out, pool=pool, n_parts=2)
            before = out.copy()
            pool.submit(int).result()
            assert (out == before).all()


FEW_FILES = """
import resource, sys
import numpy as np
from pathlib import Path
from loffta.store.paths import ArrayPaths
from loffta.store.reader import ArrayReader
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
folder = Path(sys.argv[1])
paths = ArrayPaths("a", folder, folder)
readers = [ArrayReader(paths) for _ in range(4)]
rows = np.random.default_rng(0).permutation(100)
for reader in readers:
    assert (reader.read(rows)[:, 0, 0] == rows).all()
print("all read")
"""


def test_more_shards_and_readers_than_descriptors(tmp_path: Path) -> None:
    layout = ArrayLayout((100, 1, 1), np.dtype(np.float32), 1, (1, 1, 1))
    paths = ArrayPaths("a", tmp_path, tmp_path)
    paths.metadata.write_bytes(layout.to_json())
    for unit in range(100):
        writer = ShardWriter(paths.shard(unit, 3), 1)
        append(writer, [0], np.full((1, 1), unit, np.float32))
        writer.commit()
    done = subprocess.run([sys.executable, "-c", FEW_FILES, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "all read\n", done.stderr


def test_descriptors_are_closed_with_the_reader(full: Written) -> None:
    gc.collect()
    before = len(names(Path("/proc/self/fd")))
    reader = ArrayReader(full.paths)
    reader.read(np.arange(19))
    assert len(names(Path("/proc/self/fd"))) == before + 3
    del reader
    gc.collect()
    assert len(names(Path("/proc/self/fd"))) == before


def test_shard_index_is_the_files_own(grid: Written) -> None:
    data = grid.shard(2).read_bytes()
    expected = np.frombuffer(data[-U * 3 * 16 - 4 : -4], "<u8").reshape(-1, 2)
    np.testing.assert_array_equal(ArrayReader(grid.paths).shard_index(2), expected)


def test_an_array_for_the_slow_road_is_refused_with_its_name(full: Written) -> None:
    text = full.paths.metadata.read_text().replace('"separator": "."', '"separator": "/"')
    full.paths.metadata.write_text(text)
    with pytest.raises(LofftaError, match=r"(?s)direct reader does not take.*store.zarr_reader.open_array"):
        ArrayReader(full.paths)

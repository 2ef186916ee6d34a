import json
import resource
import signal
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from loffta.errors import DamageFound, LofftaError
from loffta.store import writer as writer_module
from loffta.store.ledger import OK, ImageStatus, read_ledger
from loffta.store.metadata import ArrayLayout, grid_layout
from loffta.store.paths import ArrayPaths, CachePaths
from loffta.store.quantise import fit_scales
from loffta.store.scales import Scales, create_scales
from loffta.store.units import count_units, rows_of
from loffta.store.writer import Stored, UnitWriter, to_storage
from tests.forked import Forked

from .conftest import BAD_ROW, U, Written, as_stored, make_layout, make_values, names, parse_shard, write_unit


@pytest.fixture
def paths(tmp_path: Path) -> ArrayPaths:
    paths = CachePaths(tmp_path).array("store-0", "grid-0")
    paths.folder.mkdir(parents=True)
    return paths


LAYOUT = make_layout("grid")
VALUES = make_values(LAYOUT.shape, "float16")
STATUSES = [ImageStatus(row, OK) for row in range(U)]


def open_writer(paths: ArrayPaths, layout: ArrayLayout = LAYOUT) -> UnitWriter:
    return UnitWriter(paths, layout, 0)


# -- the cast


def test_the_cast_and_its_audit() -> None:
    tokens = torch.tensor(
        [[[1.0, -3.0], [0.1, 2.0]], [[7e4, 0.0], [float("nan"), 1.0]], [[65504.0, 1.0], [-float("inf"), 1.0]]]
    )
    stored = to_storage(tokens, "float16")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(stored.values, tokens.numpy().astype(np.float16))
    assert stored.finite.tolist() == [[True, True], [False, False], [True, False]]
    np.testing.assert_array_equal(stored.abs_max, np.array([[3, 2], [7e4, np.nan], [65504, np.inf]], np.float32))
    assert to_storage(tokens, "float32").finite.tolist() == [[True, True], [True, False], [True, False]]


def test_the_cast_rounds_as_numpy_does() -> None:
    tokens = torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    stored = to_storage(tokens.permute(0, 1, 3, 2, 4), "float16")
    np.testing.assert_array_equal(stored.values, tokens.permute(0, 1, 3, 2, 4).numpy().astype(np.float16))
    np.testing.assert_array_equal(stored.abs_max, np.abs(tokens.numpy()).max((2, 3, 4)))
    assert stored.values.flags.c_contiguous


# -- one unit


def test_the_done_file_tells_what_the_shard_holds(grid: Written) -> None:
    for unit in range(3):
        with pq.ParquetFile(grid.paths.done(unit)) as file:
            done = file.read().to_pydict()
        chunks = parse_shard(grid.shard(unit).read_bytes(), U * 3)
        assert done["row"] == list(range(unit * U, min(unit * U + U, 19)))
        for i, row in enumerate(done["row"]):
            mine = chunks[i * 3 : i * 3 + 3]
            if row == BAD_ROW:
                assert (done["status"][i], done["reason"][i]) == ("bad", "truncated")
                assert mine == [None] * 3
                assert done["crc32c"][i] == done["finite"][i] == done["abs_max"][i] == []
                continue
            assert done["crc32c"][i] == [google_crc32c.value(chunk) for chunk in mine]
            assert done["finite"][i] == [True] * 3
            expected = np.abs(grid.values[row].astype(np.float32)).max((1, 2, 3))
            np.testing.assert_array_equal(np.float32(done["abs_max"][i]), expected)


@pytest.mark.parametrize(
    ("value", "dtype", "message", "remedy"),
    [
        (7e4, "float16", "tap blocks.1 reaches 7e+04, over float16's 65504 for image cat.png", "--dtype float32"),
        (float("nan"), "float16", "tap blocks.1 is NaN or infinite for image cat.png", "look at this image"),
        (float("inf"), "float32", "tap blocks.1 is NaN or infinite for image cat.png", "look at this image"),
    ],
)
def test_values_that_cannot_be_stored_are_refused(
    paths: ArrayPaths, value: float, dtype: str, message: str, remedy: str
) -> None:
    layout = make_layout("grid", dtype)
    tokens = torch.zeros(2, *layout.item_shape)
    tokens[1, 1, 0, 3, 2] = value
    writer = open_writer(paths, layout)
    with pytest.raises(LofftaError) as caught:
        writer.append([0, 1], to_storage(tokens, dtype), ["dog.png", "cat.png"])
    writer.abort()
    assert caught.value.what == message
    assert caught.value.where == "store-0/grid-0"
    assert remedy in caught.value.remedy
    assert names(paths.folder) == []


def test_nothing_is_visible_before_commit_and_abort_leaves_nothing(paths: ArrayPaths) -> None:
    writer = open_writer(paths)
    writer.append(range(4), as_stored(VALUES[:4]), ["x"] * 4)
    assert [name[-5:] for name in names(paths.folder)] == [".part"]
    writer.abort()
    assert names(paths.folder) == []
    assert not paths.done_folder.exists()


@pytest.mark.parametrize("order", [[*range(8)], [7, 2, 0, 1, 5, 6, 4, 3]])
def test_rows_may_come_in_any_order(paths: ArrayPaths, order: list[int]) -> None:
    writer = open_writer(paths)
    for rows in (order[:5], order[5:]):
        writer.append(rows, as_stored(VALUES[rows]), ["x"] * len(rows))
    assert writer.commit(STATUSES, {})
    chunks = parse_shard(paths.shard(0, 5).read_bytes(), U * 3)
    assert chunks == [VALUES[i // 3, i % 3].tobytes() for i in range(U * 3)]


def test_every_good_image_is_written(paths: ArrayPaths) -> None:
    writer = open_writer(paths)
    writer.append(range(7), as_stored(VALUES[:7]), ["x"] * 7)
    with pytest.raises(AssertionError, match="every good image is written once, and no bad one is"):
        writer.commit(STATUSES, {})
    writer.abort()
    assert names(paths.folder) == []


def test_a_row_of_another_unit_is_refused(paths: ArrayPaths) -> None:
    writer = UnitWriter(paths, LAYOUT, 1)
    for row in (7, 16):
        with pytest.raises(AssertionError, match="outside unit 1"):
            writer.append([row], as_stored(VALUES[[row]]), ["x"])
    writer.abort()
    assert names(paths.folder) == []


def test_another_shape_or_dtype_is_refused(paths: ArrayPaths) -> None:
    writer = open_writer(paths)
    for rows, values in (([0, 1], VALUES[:2, :2]), ([2, 3], VALUES[:2].astype(np.float32))):
        with pytest.raises(AssertionError, match="is due"):
            writer.append(rows, as_stored(values), ["x", "y"])
    writer.abort()


def test_where_another_owner_was_first_its_bytes_stay(paths: ArrayPaths) -> None:
    mine = open_writer(paths)
    mine.append(range(8), as_stored(VALUES[:8]), ["x"] * 8)
    theirs = make_values(LAYOUT.shape, "float16", seed=5)
    assert write_unit(paths, LAYOUT, 0, theirs)
    before = paths.shard(0, 5).read_bytes(), paths.done(0).read_bytes()
    assert not mine.commit(STATUSES, {})
    assert (paths.shard(0, 5).read_bytes(), paths.done(0).read_bytes()) == before
    assert names(paths.folder) == ["c.0.0.0.0.0"]


def test_two_that_commit_in_the_same_moment_leave_one_unit(paths: ArrayPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours puts its shard in place, theirs comes whole, then ours writes its done file: it vouches for our shard."""
    ours = open_writer(paths)
    ours.append(range(8), as_stored(VALUES[:8]), ["x"] * 8)
    real = writer_module.write_done

    def in_between(*arguments: object) -> None:
        monkeypatch.setattr(writer_module, "write_done", real)
        assert write_unit(paths, LAYOUT, 0, make_values(LAYOUT.shape, "float16", seed=5))
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(writer_module, "write_done", in_between)
    assert ours.commit(STATUSES, {})
    chunks = parse_shard(paths.shard(0, LAYOUT.ndim).read_bytes(), U * LAYOUT.chunks_per_image)
    said = [crc for crcs in pq.read_table(paths.done(0))["crc32c"].to_pylist() for crc in crcs]
    assert said == [google_crc32c.value(chunk) for chunk in chunks if chunk is not None]
    assert names(paths.folder) == ["c.0.0.0.0.0"]


def test_a_part_filled_unit_is_replaced_after_growth(paths: ArrayPaths) -> None:
    short = make_layout("grid", n_rows=3)
    assert write_unit(paths, short, 0, VALUES[:3])
    assert write_unit(paths, LAYOUT, 0, VALUES)
    assert read_ledger(paths, LAYOUT).ready[:8].all()
    assert None not in parse_shard(paths.shard(0, 5).read_bytes(), U * 3)


def test_no_done_file_before_the_shard_is_in_place(paths: ArrayPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(*_: object) -> None:
        seen.append(names(paths.folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(writer_module, "write_done", look)
    writer = open_writer(paths)
    writer.append(range(8), as_stored(VALUES[:8]), ["x"] * 8)
    with pytest.raises(KeyboardInterrupt):
        writer.commit(STATUSES, {})
    writer.abort()
    assert seen == [["c.0.0.0.0.0"]]
    assert not read_ledger(paths, LAYOUT).ready.any()  # a file on disk proves nothing
    monkeypatch.undo()
    assert write_unit(paths, LAYOUT, 0, VALUES)
    assert read_ledger(paths, LAYOUT).ready[:8].all()


def test_no_done_file_when_the_shard_cannot_be_put_in_place(paths: ArrayPaths) -> None:
    (paths.shard(0, 5) / "in-the-way").mkdir(parents=True)
    writer = open_writer(paths)
    writer.append(range(8), as_stored(VALUES[:8]), ["x"] * 8)
    with pytest.raises(LofftaError, match="a folder is where"):
        writer.commit(STATUSES, {})
    writer.abort()
    assert names(paths.folder) == ["c.0.0.0.0.0"]
    assert not paths.done_folder.exists()


def write_on_a_full_disk(root: Path, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    writer = UnitWriter(
        CachePaths(root).array("s", "grid-0"), grid_layout(8, (1, 2, 2, 4), "float16", 8, taps=["a"]), 0
    )
    try:
        writer.append(range(8), as_stored(np.ones((8, 1, 2, 2, 4), np.float16)), ["x"] * 8)
        writer.commit([ImageStatus(row, OK) for row in range(8)], {})
    except LofftaError as error:
        writer.abort()
        print(error.exit_code, error)


@pytest.mark.parametrize(
    "limit", [100, 350, 500]
)  # amid the data (8 * 36), amid the index (+ 8 * 16 + 4), amid the done file
def test_a_full_disk(tmp_path: Path, limit: int) -> None:
    paths = CachePaths(tmp_path).array("s", "grid-0")
    paths.folder.mkdir(parents=True)
    process = Forked(write_on_a_full_disk, tmp_path, limit)
    said, error = process.communicate()
    assert process.returncode == 0, error
    assert said.startswith("1 no space left to write a file (File too large; `ulimit -f` says how large one")
    remedy = "remedy: free space or raise the quota, then run the same command again: what is finished is kept"
    assert remedy in said
    assert names(paths.folder) == (
        [] if limit < 420 else ["c.0.0.0.0.0"]
    )  # a whole shard without a done file is no harm
    assert not paths.done(0).exists()
    assert not paths.done_folder.exists() or names(paths.done_folder) == []


# -- units


def test_units_cover_every_row_once() -> None:
    for n_rows in (0, 1, 8, 9, 19):
        units = [list(rows_of(unit, n_rows, 8)) for unit in range(count_units(n_rows, 8))]
        assert [row for rows in units for row in rows] == list(range(n_rows))


def test_a_stored_tuple_is_plain_numpy() -> None:
    stored = to_storage(torch.zeros(1, 1, 2), "float16")
    assert isinstance(stored, Stored)
    assert json.dumps(stored.finite.tolist()) == "[[true]]"


# -- int8


def int8_scales() -> Scales:
    """Range -1.1 .. 1.1 but for the last channel, 0 .. 11."""
    low, high = torch.full((3, 5), -1.0), torch.full((3, 5), 1.0)
    low[:, 4], high[:, 4] = 0, 10
    return fit_scales(low * 11 / 12, high * 11 / 12)


def test_int8_is_audited_as_floats_and_counts_what_does_not_fit(paths: ArrayPaths) -> None:
    layout, scales = make_layout("grid", "int8"), int8_scales()
    create_scales(paths, layout, scales, {})
    tokens = torch.zeros(U, *layout.item_shape)
    tokens[2, 1, 0, 0] = torch.tensor([0.5, -2.0, 7.0, 1.0, -1.0])
    tokens[4, 0, 1, 3, 4] = 1e9
    writer = UnitWriter(paths, layout, 0)
    assert writer.scales is not None
    stored = to_storage(tokens, "int8", writer.scales)
    assert stored.values.dtype == np.int8
    assert stored.values.flags.c_contiguous
    assert (stored.values[2, 1, 0, 0] == [58, -127, 127, 115, -127]).all()
    writer.append(range(U), stored, ["x"] * U)
    assert writer.commit(STATUSES, {"device": "cpu"})
    with pq.ParquetFile(paths.done(0)) as file:
        done = file.read()
    expected = np.zeros((U, 3), int)
    expected[2, 1], expected[4, 0] = 3, 1
    assert done["saturated"].to_pylist() == expected.tolist()
    assert done["abs_max"].to_pylist()[2] == [0, 7, 0]
    assert done["abs_max"].to_pylist()[4] == [1e9, 0, 0]
    assert json.loads(done.schema.metadata[b"loffta"]) == {
        "device": "cpu",
        "scales": scales.digest,
        "array": {
            **layout.attributes,
            "dtype": "int8",
            "shape": [3, 2, 4, 5],
            "chunk": [1, 1, 2, 4, 5],
            "unit_images": U,
        },
    }
    chunks = parse_shard(paths.shard(0, 5).read_bytes(), U * 3)
    assert chunks == [stored.values[i // 3, i % 3].tobytes() for i in range(U * 3)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_int8_refuses_what_is_not_finite(paths: ArrayPaths, value: float) -> None:
    layout = make_layout("grid", "int8")
    create_scales(paths, layout, int8_scales(), {})
    tokens = torch.zeros(2, *layout.item_shape)
    tokens[1, 2, 0, 0, 0] = value
    writer = UnitWriter(paths, layout, 0)
    with pytest.raises(LofftaError, match=r"tap blocks.2 is NaN or infinite for image cat.png"):
        writer.append([0, 1], to_storage(tokens, "int8", writer.scales), ["dog.png", "cat.png"])
    writer.abort()


def test_int8_needs_its_scales(paths: ArrayPaths) -> None:
    with pytest.raises(DamageFound, match="the scales of this int8 array are gone"):
        UnitWriter(paths, make_layout("grid", "int8"), 0)
    assert names(paths.folder) == []

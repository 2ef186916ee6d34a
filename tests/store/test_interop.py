"""Our bytes through zarr-python and tensorstore, theirs through ours: both read the same values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from loffta.store.ledger import BAD, OK, ImageStatus
from loffta.store.metadata import read_layout
from loffta.store.paths import ArrayPaths, CachePaths
from loffta.store.quantise import dequantise, fit_scales
from loffta.store.reader import ArrayReader
from loffta.store.scales import create_scales, read_scales
from loffta.store.units import rows_of
from loffta.store.writer import UnitWriter, to_storage
from loffta.store.zarr_reader import ZarrReader, open_array

from .conftest import (
    BAD_ROW,
    N_ROWS,
    TAPS,
    U,
    Written,
    assert_same,
    flip_bit,
    make_layout,
    make_values,
    parse_shard,
    write_array,
)


def open_zarr(folder: Path) -> Any:
    return zarr.open_array(store=folder, mode="r")


def open_tensorstore(folder: Path) -> Any:
    opened = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{folder}/"}, read=True).result()

    class Reader:
        shape, dtype = opened.shape, opened.dtype.numpy_dtype

        def __getitem__(self, key: Any) -> np.ndarray:
            return np.asarray(opened[key].read().result())

    return Reader()


OTHERS = {"zarr-python": open_zarr, "tensorstore": open_tensorstore}


@pytest.fixture(params=OTHERS)
def other(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    return OTHERS[request.param]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("grid", "float16"), ("grid", "float32"), ("prefix", "float16"), ("mean", "float32"), ("thumb", "uint8")],
)
def test_others_read_ours(tmp_path: Path, other: Callable[[Path], Any], kind: str, dtype: str) -> None:
    """Row 5 is quarantined: NaN in floats. The last unit holds 3 of 8 rows."""
    made = write_array(tmp_path, kind, dtype)
    array = other(made.paths.folder)
    assert_same(array[...], made.values)
    assert_same(array[3:17], made.values[3:17])
    assert_same(array[18, 1:3], made.values[18, 1:3])
    if kind != "thumb":
        assert np.isnan(np.asarray(array[BAD_ROW])).all()


def test_others_see_a_missing_shard_as_nan(full: Written, other: Callable[[Path], Any]) -> None:
    full.shard(1).unlink()
    full.values[U : 2 * U] = np.nan
    assert_same(other(full.paths.folder)[...], full.values)


def test_others_find_a_flipped_bit(full: Written, other: Callable[[Path], Any]) -> None:
    flip_bit(full.shard(0), 5)
    with pytest.raises(ValueError, match=r"(?i)checksum|digest mismatch"):
        other(full.paths.folder)[0]


def test_a_grown_array(grid: Written, other: Callable[[Path], Any]) -> None:
    grid.paths.metadata.write_bytes(grid.layout.resized(30).to_json())
    grown = np.concatenate([grid.values, np.full((11, 3, 2, 4, 5), np.nan, np.float16)])
    assert_same(other(grid.paths.folder)[...], grown)
    rows = np.array([18, 0, 7, 8])
    assert_same(ArrayReader(grid.paths).read(rows), grid.values[rows])


def test_the_group_opens_by_name(tmp_path: Path) -> None:
    made = write_array(tmp_path, "grid")
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    (made.paths.folder.parent / "zarr.json").write_text(json.dumps(metadata))
    group = zarr.open_group(store=made.paths.folder.parent, mode="r")
    assert list(group.array_keys()) == ["grid-0"]
    assert group["grid-0"].attrs["taps"] == TAPS


def test_others_decode_int8_as_we_do(tmp_path: Path, other: Callable[[Path], Any]) -> None:
    """Codes, scale and zero by another library and the formula by hand, against our reader and dequantise."""
    layout = make_layout("grid", "int8")
    paths = CachePaths(tmp_path).array("store-0", "grid-0")
    paths.folder.mkdir(parents=True)
    paths.metadata.write_bytes(layout.to_json())
    tokens = torch.randn(layout.shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 6.0)
    cells = tokens[:16].flatten(2, -2)
    create_scales(paths, layout, fit_scales(cells.amin((0, 2)), cells.amax((0, 2))), {})
    for unit in range(3):
        writer = UnitWriter(paths, layout, unit)
        rows = [row for row in rows_of(unit, N_ROWS, U) if row != BAD_ROW]
        writer.append(rows, to_storage(tokens[rows], "int8", writer.scales), ["x"] * len(rows))
        statuses = [ImageStatus(row, BAD if row == BAD_ROW else OK) for row in rows_of(unit, N_ROWS, U)]
        assert writer.commit(statuses, {})
    folders = (paths.folder, paths.scales / "scale", paths.scales / "zero")
    codes, scale, zero = (np.asarray(other(folder)[...]) for folder in folders)
    assert (codes.dtype, scale.dtype, zero.dtype) == (np.int8, np.float32, np.float32)
    assert (codes[BAD_ROW] == -128).all()
    good = np.setdiff1d(np.arange(N_ROWS), [BAD_ROW])
    assert codes[good].min() >= -127
    values = (codes[good].astype(np.float32) - zero[None, :, None, None]) * scale[None, :, None, None]
    read = torch.from_numpy(ArrayReader(paths).read(good))
    assert_same(dequantise(read, read_scales(paths, layout)).numpy(), values)
    relative = np.linalg.norm(values - tokens[good].numpy()) / np.linalg.norm(tokens[good].numpy())
    assert relative < 0.02


# -- theirs through ours


def write_zarr(
    folder: Path, values: np.ndarray, *, codecs: list[Any], location: str = "end", chunk_taps: int = 1
) -> None:
    item = values.shape[2:]
    sharding = ShardingCodec(
        chunk_shape=(1, chunk_taps, *item),
        codecs=codecs,
        index_codecs=[BytesCodec(endian="little"), Crc32cCodec()],
        index_location=location,
    )
    array: Any = zarr.create_array(
        store=folder,
        shape=values.shape,
        chunks=(U, *values.shape[1:]),
        dtype=values.dtype,
        serializer=sharding,
        compressors=None,
        filters=None,
        fill_value=np.nan if values.dtype.kind == "f" else 0,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    array[...] = values


def write_tensorstore(folder: Path, values: np.ndarray, *, location: str = "end") -> None:
    document = json.loads(make_layout("grid", values.dtype.name, len(values)).to_json())
    document["codecs"][0]["configuration"]["index_location"] = location
    folder.mkdir()
    (folder / "zarr.json").write_text(json.dumps(document))
    opened = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{folder}/"}, write=True).result()
    for row in np.random.default_rng(3).permutation(len(values)):  # one at a time: in no particular order
        opened[int(row)].write(values[row]).result()


PLAIN = [BytesCodec(endian="little"), Crc32cCodec()]
WRITERS: dict[str, Callable[[Path, np.ndarray], None]] = {
    "zarr": lambda folder, values: write_zarr(folder, values, codecs=PLAIN),
    "zarr, index first": lambda folder, values: write_zarr(folder, values, codecs=PLAIN, location="start"),
    "zarr, no crc": lambda folder, values: write_zarr(folder, values, codecs=PLAIN[:1]),
    "zarr, taps together": lambda folder, values: write_zarr(folder, values, codecs=PLAIN, chunk_taps=3),
    "tensorstore": lambda folder, values: write_tensorstore(folder, values),
    "tensorstore, index first": lambda folder, values: write_tensorstore(folder, values, location="start"),
}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", WRITERS)
def test_ours_reads_theirs(tmp_path: Path, name: str, dtype: str) -> None:
    values = make_values((19, 3, 2, 4, 5), dtype)
    WRITERS[name](tmp_path / "a", values)
    reader = open_array(ArrayPaths("a", tmp_path / "a", tmp_path))
    assert isinstance(reader, ArrayReader)
    rows = np.array([18, 3, 3, 0, 11, 9, 16, 8, 7])
    assert_same(reader.read(rows), values[rows])
    if reader.layout.chunks_per_image > 1:
        assert_same(reader.read(rows, [2, 0]), values[rows][:, [2, 0]])
    reader.read(np.arange(19))
    assert_same(reader.read(np.arange(19)), values)


def test_zarr_puts_chunks_in_another_order(tmp_path: Path) -> None:
    """Else the test above would prove less than it says."""
    write_zarr(tmp_path / "a", make_values((8, 3, 2, 4, 5), "float16"), codecs=PLAIN)
    data = (tmp_path / "a" / "c.0.0.0.0.0").read_bytes()
    assert len(parse_shard(data, 24)) == 24
    offsets = np.frombuffer(data[-24 * 16 - 4 : -4], "<u8").reshape(-1, 2)[:, 0]
    assert (np.diff(offsets.astype(np.int64)) < 0).any()


def test_arrays_packed_without_checksums_take_the_slow_road(tmp_path: Path) -> None:
    values = make_values((19, 3, 2, 4, 5), "float16")
    write_zarr(tmp_path / "a", values, codecs=[PLAIN[0], ZstdCodec(level=1)])
    paths = ArrayPaths("a", tmp_path / "a", tmp_path)
    assert read_layout(paths.metadata) is None
    reader = open_array(paths)
    assert isinstance(reader, ZarrReader)
    rows = np.array([18, 3, 3, 0, 11])
    assert_same(reader.read(rows), values[rows])
    out = reader.empty(5, [2, 0])
    assert reader.read(rows, [2, 0], out) is out
    assert_same(out, values[rows][:, [2, 0]])
    with pytest.raises(IndexError, match=r"row 19 outside 0..18 of a"):
        reader.read(np.array([19]))
    with pytest.raises(IndexError, match=r"taps \[-1\] outside 0..2 of a"):
        reader.read(np.array([0]), [-1])


def test_the_slow_road_equals_ours(full: Written) -> None:
    rows = np.array([18, 3, 3, 0, 11])
    assert_same(ZarrReader(full.paths).read(rows, [1]), ArrayReader(full.paths).read(rows, [1]))

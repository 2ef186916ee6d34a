"""Small arrays with known values, written by loffta; each test reads them by another road."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from loffta.store.ledger import BAD, OK, ImageStatus
from loffta.store.metadata import ArrayLayout, grid_layout, image_layout
from loffta.store.paths import ArrayPaths, CachePaths
from loffta.store.shard import ShardWriter
from loffta.store.units import count_units, rows_of
from loffta.store.writer import Stored, UnitWriter

U = 8
N_ROWS = 19  # three units, the last one with 3 of 8 rows
BAD_ROW = 5
MISSING = 2**64 - 1
TAPS = ["blocks.0", "blocks.1", "blocks.2"]


@dataclass
class Written:
    """An array on disk and what it holds."""

    paths: ArrayPaths
    layout: ArrayLayout
    values: np.ndarray  # [n, ...]; the fill value where there are no data
    bad: tuple[int, ...]

    @property
    def good(self) -> np.ndarray:
        """Rows that have data."""
        return np.setdiff1d(np.arange(len(self.values)), self.bad)

    def shard(self, unit: int) -> Path:
        return self.paths.shard(unit, self.layout.ndim)


def make_layout(kind: str, dtype: str = "float16", n_rows: int = N_ROWS) -> ArrayLayout:
    if kind == "grid":
        return grid_layout(n_rows, (3, 2, 4, 5), dtype, U, kind=kind, taps=TAPS)
    if kind == "prefix":
        return image_layout(n_rows, (3, 2, 5), dtype, U, kind=kind, taps=TAPS)
    if kind == "mean":
        return image_layout(n_rows, (3, 5), dtype, U, kind=kind, taps=TAPS)
    return image_layout(n_rows, (6, 6, 3), "uint8", U, kind="thumb")


def make_values(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 100, shape).astype(dtype)


def as_stored(values: np.ndarray) -> Stored:
    """Audits in numpy what to_storage audits in torch."""
    flat = values.reshape(*values.shape[:2], -1).astype(np.float32)
    return Stored(values, np.isfinite(flat).all(2), np.abs(flat).max(2))


def append(writer: ShardWriter, positions: Sequence[int], chunks: np.ndarray) -> list[int]:
    """Gives chunks their places and writes them; their checksums."""
    places = writer.reserve(positions, chunks[0].nbytes)
    return writer.write(places[0], chunks)


def write_unit(
    paths: ArrayPaths, layout: ArrayLayout, unit: int, values: np.ndarray, bad: tuple[int, ...] = ()
) -> bool:
    """Writes one unit in batches of 3, as extraction would: bad rows are left out before batching."""
    rows = rows_of(unit, layout.shape[0], layout.unit_images)
    writer = UnitWriter(paths, layout, unit)
    good = [row for row in rows if row not in bad]
    for i in range(0, len(good), 3):
        batch = good[i : i + 3]
        writer.append(batch, as_stored(values[batch]), [f"image-{row}" for row in batch])
    statuses = [
        ImageStatus(row, BAD, "truncated") if row in bad else ImageStatus(row, OK, "", 6, 6, "ab") for row in rows
    ]
    return writer.commit(statuses, {"batch_size": 3, "device": "cpu"})


def write_array(
    root: Path, kind: str, dtype: str = "float16", *, n_rows: int = N_ROWS, bad: tuple[int, ...] = (BAD_ROW,)
) -> Written:
    layout = make_layout(kind, dtype, n_rows)
    paths = CachePaths(root).array("store-0", f"{kind}-0")
    paths.folder.mkdir(parents=True)
    paths.metadata.write_bytes(layout.to_json())
    values = make_values(layout.shape, layout.dtype)
    for unit in range(count_units(n_rows, U)):
        write_unit(paths, layout, unit, values, bad)
    values[list(bad)] = np.nan if layout.dtype.kind == "f" else 0
    return Written(paths, layout, values, bad)


@pytest.fixture(scope="module")
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the module's own `fill` has made; nobody changes it."""
    root = tmp_path_factory.mktemp("sound") / "cache"
    request.module.fill(root)
    return root


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(sound, tmp_path / "cache")


@pytest.fixture
def grid(tmp_path: Path) -> Written:
    """19 rows of 3 taps, float16, row 5 quarantined."""
    return write_array(tmp_path, "grid")


@pytest.fixture
def full(tmp_path: Path) -> Written:
    """19 rows of 3 taps, float16, none missing."""
    return write_array(tmp_path, "grid", bad=())


def parse_shard(data: bytes, n_chunks: int) -> list[bytes | None]:
    """The chunks of a shard, by hand, from the zarr v3 specification; None where there is none."""
    index, crc = data[-16 * n_chunks - 4 : -4], data[-4:]
    assert struct.unpack("<I", crc)[0] == google_crc32c.value(index)
    chunks: list[bytes | None] = []
    for offset, length in struct.iter_unpack("<QQ", index):
        if offset == MISSING:
            assert length == MISSING
            chunks.append(None)
            continue
        chunk, stored = data[offset : offset + length - 4], data[offset + length - 4 : offset + length]
        assert struct.unpack("<I", stored)[0] == google_crc32c.value(chunk)
        chunks.append(chunk)
    return chunks


def flip_bit(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    with path.open("r+b") as file:  # in place: an open descriptor sees it
        file.write(data)


def names(folder: Path) -> list[str]:
    """What lies in a folder, temporary files included."""
    return sorted(path.name for path in folder.iterdir())


def assert_same(got: Any, expected: np.ndarray) -> None:
    """Bit for bit, NaN included."""
    got = np.asarray(got)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    np.testing.assert_array_equal(got, expected)

"""Packed arrays read in any order: the numbers that zarr-python finds, and every kind of damage by its name."""

import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numcodecs import Zstd
from zarr.codecs import BloscCodec, ZstdCodec

from loffta.errors import DamageFound, LofftaError
from loffta.machine.progress import silenced
from loffta.store import zarr_reader
from loffta.store.codecs import ChunkCodec, find_codec
from loffta.store.packed_reader import PackedReader
from loffta.store.paths import ArrayPaths
from loffta.store.shard import ShardWriter
from loffta.store.zarr_reader import ZarrReader, open_array

from .conftest import BAD_ROW, N_ROWS, U, assert_same, flip_bit, make_values, write_array
from .test_interop import PLAIN, write_zarr


def pack_by_hand(tmp_path, kind="grid", codec="zstd", bad=()):
    """A plain array whose shards are then written anew, chunk by chunk."""
    made = write_array(tmp_path, kind, bad=bad)
    layout = replace(made.layout, codec=find_codec(codec, made.layout.dtype))
    made.paths.metadata.write_bytes(layout.to_json())
    per_image = layout.chunks_per_image
    for unit in range(3):
        writer = ShardWriter(made.shard(unit), U * per_image)
        for row in range(unit * U, min(unit * U + U, N_ROWS)):
            for i, chunk in enumerate(made.values[row].reshape(per_image, -1) if row not in bad else ()):
                encoded = ChunkCodec(layout, where=made.paths.metadata).encode(chunk)
                writer.append((row - unit * U) * per_image + i, encoded)
        writer.commit()
    return made


@pytest.fixture
def packed(tmp_path):
    return pack_by_hand(tmp_path)


@pytest.mark.parametrize("codec", ["zstd", "blosc", "pcodec"])
@pytest.mark.parametrize("kind", ["grid", "prefix", "mean"])
def test_rows_in_any_order(tmp_path, kind, codec):
    if codec == "pcodec":
        pytest.importorskip("pcodec")
    made = pack_by_hand(tmp_path, kind, codec)
    reader, rows = open_array(made.paths), np.array([18, 0, 7, 8, 0, 3, 15, 16])
    assert isinstance(reader, PackedReader)
    assert_same(reader.read(rows), made.values[rows])
    out = reader.empty(8)
    with ThreadPoolExecutor(3) as pool:
        assert reader.read(rows, None, out, pool=pool, n_parts=3) is out
    assert_same(out, made.values[rows])
    assert reader.read(np.empty(0, np.int64)).shape == (0, *made.values.shape[1:])


def test_taps_in_any_order(packed):
    rows = np.array([18, 3, 3, 0])
    assert_same(PackedReader(packed.paths).read(rows, [2, 0]), packed.values[rows][:, [2, 0]])


def test_zarr_python_finds_the_same(packed):
    rows = np.array([18, 3, 3, 0, 11])
    assert_same(PackedReader(packed.paths).read(rows), ZarrReader(packed.paths).read(rows))


@pytest.mark.parametrize("codec", [ZstdCodec(level=1), BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=2)])
def test_ours_reads_what_zarr_python_packs(tmp_path, codec):
    values = make_values((19, 3, 2, 4, 5), "float16")
    write_zarr(tmp_path / "a", values, codecs=[PLAIN[0], codec, PLAIN[1]])
    reader = open_array(ArrayPaths("a", tmp_path / "a", tmp_path))
    assert isinstance(reader, PackedReader)
    rows = np.array([18, 3, 3, 0, 11])
    assert_same(reader.read(rows, [2, 0]), values[rows][:, [2, 0]])


def test_what_the_array_does_not_have(packed, tmp_path):
    reader = PackedReader(packed.paths)
    for row in (-1, 19):
        with pytest.raises(IndexError, match=r"row outside 0..18 of store-0/grid-0"):
            reader.read(np.array([0, row]))
    with pytest.raises(IndexError, match=r"taps \[3\] outside 0..2"):
        reader.read(np.array([0]), [3])
    with pytest.raises(IndexError, match="read it whole"):
        PackedReader(pack_by_hand(tmp_path / "other", "mean").paths).read(np.array([0]), [0])


def test_a_flipped_bit(packed):
    reader = PackedReader(packed.paths)
    offset, length = reader.shard_index(1)[3 * 3 + 1].tolist()
    flip_bit(packed.shard(1), offset + length // 2)
    reader.read(np.array([10, 12]))
    with pytest.raises(DamageFound, match=r"row 11, blocks.1: the bytes do not match their crc32c\n.*c\.1\.0"):
        reader.read(np.array([10, 11]))


def test_a_quarantined_image_and_a_shard_that_is_gone(tmp_path):
    made = pack_by_hand(tmp_path, bad=(BAD_ROW,))
    reader = PackedReader(made.paths)
    with pytest.raises(DamageFound, match=r"row 5, blocks.0: it is missing from its shard"):
        reader.read(np.array([4, BAD_ROW]))
    made.shard(2).unlink()
    with pytest.raises(DamageFound, match=r"a shard of a finished unit is gone"):
        reader.read(np.array([17]))


def test_a_shard_that_is_exchanged_while_it_is_open(packed):
    reader = PackedReader(packed.paths)
    reader.read(np.array([0, 9]))
    packed.shard(0).replace(packed.shard(1))
    with pytest.raises(DamageFound, match=r"row 9, blocks.0: another chunk than the one that was packed"):
        reader.read(np.array([9]))


def test_a_shard_that_was_packed_anew_meanwhile(packed):
    """The same chunks in another order: its index is read again."""
    reader = PackedReader(packed.paths)
    reader.read(np.array([0]))
    codec = ChunkCodec(reader.layout, where=packed.paths.metadata)
    writer = ShardWriter(packed.shard(0), U * 3)
    for position in reversed(range(U * 3)):
        writer.append(position, codec.encode(packed.values[position // 3, position % 3]))
    writer.commit()
    assert_same(reader.read(np.arange(U)), packed.values[:U])


def frame(n_bytes, said=None):
    """A zstd frame of zeros, by hand (RFC 8878): `said` is the length that its header claims, None for none."""
    blocks = b""
    while n_bytes:
        size = min(n_bytes, 1 << 17)
        n_bytes -= size
        blocks += struct.pack("<I", size << 3 | 1 << 1 | (n_bytes == 0))[:3] + b"\0"
    head = b"\x00\x58" if said is None else b"\xc0\x58" + struct.pack("<Q", said)
    return struct.pack("<I", 0xFD2FB528) + head + blocks


def exchange(packed, chunk):
    """One chunk of the first image, whole in itself."""
    writer = ShardWriter(packed.shard(0), U * 3)
    writer.append(0, chunk)
    writer.commit()


def test_a_strangers_chunk_grows_no_larger_than_the_array_says(packed):
    assert Zstd().decode(frame(80)) == bytes(80)  # the frame is one
    for chunk in (frame(1 << 30), frame(80, 1 << 50), frame(78), b"", b"no frame at all"):
        exchange(packed, chunk)
        expected = r"row 0, blocks.0: (the bytes cannot be unpacked|the bytes do not match|another chunk)"
        with pytest.raises(DamageFound, match=expected):
            PackedReader(packed.paths).read(np.array([0]), [0])


@pytest.mark.parametrize("settings", [{}, {"level": "high"}, {"level": None}])
def test_settings_that_are_none(packed, settings):
    layout = replace(packed.layout, codec={"name": "zstd", "configuration": settings})
    packed.paths.metadata.write_bytes(layout.to_json())
    with pytest.raises(LofftaError, match=r"(?s)the settings of its codec cannot be used.*Pack the original again"):
        open_array(packed.paths)


def test_it_is_said_once_of_each_store(packed, capsys, monkeypatch):
    monkeypatch.setattr(zarr_reader, "_told", set())
    with silenced():
        open_array(packed.paths)
    monkeypatch.setattr(zarr_reader, "_told", set())
    open_array(packed.paths)
    open_array(packed.paths)
    said = capsys.readouterr().err
    root = packed.paths.folder.parents[2]
    assert said == (
        "store-0 is packed (zstd) and read as it is, which is slow; "
        f"`loffta unpack {root} --out DIR` gives the fast form\n"
    )

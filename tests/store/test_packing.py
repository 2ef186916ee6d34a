"""Packed copies: the same numbers for every reader, the same files when unpacked, and nothing that lies in between."""

import errno
import os
import shutil
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

import loffta
from loffta.errors import DamageFound, LofftaError, Stopped, UsageError
from loffta.extraction.repair import repair
from loffta.machine.process import StopFlag
from loffta.machine.quota import Room
from loffta.store import array_copy, packing
from loffta.store.cache import Cache
from loffta.store.codecs import find_codec
from loffta.store.drop import drop, find_target
from loffta.store.ledger import OK, ImageStatus
from loffta.store.packing import copy_cache
from loffta.store.shard import ShardWriter
from loffta.store.verify import verify
from loffta.store.writer import Stored, UnitWriter
from loffta.store.zarr_reader import open_array
from tests.caches import FakeStore, make_cache, make_table, values_of, write_units
from tests.forked import Forked

from .conftest import assert_same, flip_bit

N, BAD = 19, 5  # units of 8, 8 and 3
CODECS = ["zstd", "blosc", "pcodec"]


def smooth(*shape, seed=0):
    """Numbers that codecs make smaller: few values, as after a ReLU."""
    return np.random.default_rng(seed).integers(0, 6, (N, *shape)).astype(np.float32) / 4


def stores(**options):
    grids = {"a.0": smooth(5, 5, 40), "a.1": smooth(5, 5, 40, seed=1)}
    prefixes = {"a.0": smooth(3, 40, seed=2), "a.1": smooth(3, 40, seed=3)}
    kinds = ("grid", "prefix", "mean")
    coded = FakeStore("coded", {"b.0": smooth(5, 5, 40, seed=4)}, dtype="int8", kinds=("grid", "mean"))
    return [FakeStore("good", grids, prefixes=prefixes, kinds=kinds, **options), coded]


def fill(root, **options):
    """All kinds, int8, a quarantined image, thumbnails, labels."""
    labels = np.arange(N) % 3
    cache = make_cache(root, make_table(labels, ["train"] * 12 + ["test"] * 7), stores(**options), bad=(BAD,))
    thumbs = cache.thumbs(create=True)
    thumbs.paths.folder.mkdir(parents=True, exist_ok=True)
    for unit in range(cache.n_units):
        rows = list(cache.rows_of_unit(unit))
        writer = UnitWriter(thumbs.paths, thumbs.layout, unit)
        pixels = np.full((len(rows), 8, 8, 3), 7 * unit, np.uint8)
        writer.append(rows, Stored(pixels, np.ones((len(rows), 1), bool), np.ones((len(rows), 1), np.float32)), ["k"])
        writer.commit([ImageStatus(row, OK) for row in rows], {})
    mine = root.parent / "mine.csv"
    mine.write_text("image,label\n" + "".join(f"{key},{'xy'[i % 2]}\n" for i, key in enumerate(cache.table.keys)))
    loffta.label(root, mine, progress=False)
    return cache


def pack(root, out, codec="zstd", store=None):
    return copy_cache(Cache.open(root), Path(out), codec=codec, store=store, stop=StopFlag())


def unpack(root, out):
    return copy_cache(Cache.open(root), Path(out), codec=None, stop=StopFlag())


def tree(root):
    """Every file below a folder, temporary ones included."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def array(root, kind="grid", backbone="good"):
    store = next(s for s in Cache.open(root).stores() if s.name.startswith(backbone))
    return next(a for a in store.arrays if a.kind == kind)


def shard(root, unit=0, **which):
    found = array(root, **which)
    return found.paths.shard(unit, found.layout.ndim)


@pytest.fixture(scope="module")
def packed_once(sound, tmp_path_factory):
    """The same cache, packed with zstd; nobody changes it."""
    out = tmp_path_factory.mktemp("packed") / "packed"
    pack(sound, out)
    return out


@pytest.fixture
def packed(packed_once, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(packed_once, tmp_path / "packed")


@pytest.mark.parametrize("codec", CODECS)
def test_unpacked_it_is_the_same_files_byte_for_byte(sound, tmp_path, codec):
    if codec == "pcodec":
        pytest.importorskip("pcodec")
    done = pack(sound, tmp_path / "packed", codec)
    codecs = {
        entry.array.partition("-")[0] + "/" + entry.array.rpartition("/")[2]: entry.codec for entry in done.arrays
    }
    assert codecs["good/grid-0"] == codecs["good/prefix-0"] == codec
    assert codecs["coded/grid-0"] == ("zstd" if codec == "pcodec" else codec)  # pcodec takes no 8 bits
    assert done.units == 5 * 3
    assert done.bytes < 0.7 * done.plain_bytes
    before, between = tree(sound), tree(tmp_path / "packed")
    assert before.keys() == between.keys()
    changed = {name for name in before if before[name] != between[name]}
    assert all(name.startswith("stores/") and "/" in name[7:] for name in changed)  # done files, labels, thumbnails: no
    back = unpack(tmp_path / "packed", tmp_path / "back")
    assert (back.bytes, {entry.codec for entry in back.arrays}) == (done.plain_bytes, {None})
    assert tree(tmp_path / "back") == before


def test_vectors_that_would_grow_stay_plain(tmp_path):
    noise = np.random.default_rng(0).normal(size=(N, 1, 1, 6)).astype(np.float32)
    make_cache(tmp_path / "cache", make_table([0] * N, ["train"] * N), [FakeStore("noise", {"a.0": noise})])
    (entry,) = pack(tmp_path / "cache", tmp_path / "packed").arrays
    assert (entry.codec, entry.bytes) == (None, entry.plain_bytes)


@pytest.mark.parametrize("codec", CODECS)
def test_other_libraries_read_it(sound, tmp_path, codec):
    if codec == "pcodec":
        pytest.importorskip("pcodec")
    pack(sound, tmp_path / "packed", codec)
    for kind, name in (("grid", "good"), ("prefix", "good"), ("mean", "good"), ("grid", "coded")):
        expected = zarr.open_array(store=array(sound, kind, name).paths.folder, mode="r")[...]
        assert np.isnan(expected[BAD].astype(np.float32)).all() or (expected[BAD] == -128).all()
        folder = array(tmp_path / "packed", kind, name).paths.folder
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numcodecs' names are in no specification
            assert_same(zarr.open_array(store=folder, mode="r")[...], expected)
        if codec != "pcodec":
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
            assert_same(tensorstore.open(spec).result().read().result(), expected)


def test_a_sound_copy_has_no_damage(packed):
    assert list(verify(Cache.open(packed))) == []


@pytest.mark.parametrize("deep", [False, True])
def test_verify_finds_a_flipped_bit(packed, deep):
    flip_bit(shard(packed, 1), 100)
    (found,) = verify(Cache.open(packed), deep=deep)
    assert (found.unit, found.path) == (1, shard(packed, 1))
    assert found.what == "row 8, a.0: the bytes do not match their crc32c"


def test_verify_finds_an_exchanged_shard(packed):
    """It is whole in itself: the done file alone knows better."""
    shutil.copy(shard(packed, 0), shard(packed, 1))
    (found,) = verify(Cache.open(packed))
    assert found.what == "row 8, a.0: another chunk than the one that was packed"


def test_verify_finds_a_missing_chunk_and_a_missing_shard(packed):
    found = array(packed)
    writer = ShardWriter(shard(packed, 2), found.layout.unit_images * found.layout.chunks_per_image)
    writer.commit()
    shard(packed, 1).unlink()
    assert [damage.what for damage in verify(Cache.open(packed))] == [
        "the shard of a finished unit is gone",
        "row 16, a.0: a chunk is missing",
    ]


def test_repair_and_extraction_leave_it_alone(packed):
    flip_bit(shard(packed, 1), 100)
    before = tree(packed)
    cache = Cache.open(packed)
    with pytest.raises(LofftaError, match=r"(?s)a packed cache is not repaired.*run the `loffta pack`"):
        repair(cache, list(verify(cache)), [], StopFlag())
    found = array(packed)
    with pytest.raises(LofftaError, match=r"(?s)this array is packed: nothing can be added.*loffta unpack"):
        UnitWriter(found.paths, found.layout, 1)
    assert tree(packed) == before


def test_a_damaged_unit_is_packed_anew(root, packed):
    """What the message of the repair says."""
    sound = tree(packed)
    flip_bit(shard(packed, 1), 100)
    array(packed).paths.done(1).unlink()
    assert pack(root, packed).units == 1
    assert tree(packed) == sound


def die(root, out, n_units):
    """Packs, and is killed with a shard that is written and has no name yet."""
    real, count = ShardWriter.commit, [0]

    def commit(writer):
        count[0] += 1
        if count[0] == n_units:
            os.kill(os.getpid(), signal.SIGKILL)
        real(writer)

    ShardWriter.commit = commit
    pack(root, out)


def test_killed_it_is_no_cache_and_goes_on(root, packed_once, tmp_path):
    out = tmp_path / "begun"
    process = Forked(die, root, out, 5)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list(out.rglob("*.part"))) == 1
    with pytest.raises(LofftaError, match=r"(?s)no cache here yet: a copy was begun.*goes on where it was stopped"):
        Cache.open(out)
    left = {path: path.stat().st_ino for path in out.glob("done/*/*/u*.parquet")}
    assert len(left) == 4
    assert pack(root, out).units == 15 - 4
    assert {path: path.stat().st_ino for path in left} == left
    assert tree(out) == tree(packed_once)


def test_a_signal_stops_it_between_units(root, tmp_path, monkeypatch):
    stop, real = StopFlag(), array_copy.replace_file
    monkeypatch.setattr(array_copy, "replace_file", lambda *a: (real(*a), setattr(stop, "signal", signal.SIGTERM)))
    with pytest.raises(Stopped, match="stopped by SIGTERM while copying"):
        copy_cache(Cache.open(root), tmp_path / "packed", codec="zstd", stop=stop)
    monkeypatch.undo()
    assert pack(root, tmp_path / "packed").units == 14
    assert pack(root, tmp_path / "packed").units == 0


def test_a_full_disk_leaves_finished_units_alone(root, packed_once, tmp_path, monkeypatch):
    real, written = os.pwritev, [0]

    def full(fd, buffers, place):
        written[0] += 1
        if written[0] > 70:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, buffers, place)

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(LofftaError, match=r"(?i)no space|full") as caught:
        pack(root, tmp_path / "packed")
    assert caught.value.__notes__ == ["units that are finished stay: the same command goes on with the others"]
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    assert 0 < pack(root, tmp_path / "packed").units < 15
    assert tree(tmp_path / "packed") == tree(packed_once)


def test_unpacking_asks_for_room_first(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "free_room", lambda path: Room(10_000, 10))
    monkeypatch.setattr(packing, "user_quota", lambda path: None)
    with pytest.raises(LofftaError, match=r"are needed, 0.000 GB are free.*; 30 files are needed, 10 are free"):
        unpack(packed, tmp_path / "back")
    assert not list(tmp_path.rglob("c.0*.part"))


def test_a_full_folder_is_refused(root, tmp_path):
    with pytest.raises(UsageError, match="a copy inside the cache itself"):
        pack(root, root / "packed")
    with pytest.raises(UsageError, match="a copy inside the cache itself"):
        pack(root, root.parent / "x" / ".." / root.name)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for place in (tmp_path / "other", tmp_path / "other" / "thesis.txt", tmp_path):
        with pytest.raises(LofftaError, match="this folder holds something else"):
            pack(root, place)
    make_cache(tmp_path / "alien", make_table([0, 1], ["train"] * 2), [])
    with pytest.raises(LofftaError, match="a cache of other images"):
        pack(root, tmp_path / "alien")
    assert tree(tmp_path / "other") == {"thesis.txt": b"mine"}


def test_another_codec_is_another_copy(root, packed):
    before = tree(packed)
    with pytest.raises(LofftaError, match=r"(?s)there already, and is another or packed with another codec.*--out"):
        pack(root, packed, "blosc")
    assert tree(packed) == before


def test_codecs_that_are_not_there(root, packed, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"unknown codec 'zst'\n.*--codec\n.*did you mean zstd"):
        pack(root, tmp_path / "a", "zst")
    assert not (tmp_path / "a").exists()
    monkeypatch.setitem(sys.modules, "numcodecs.pcodec", None)
    with pytest.raises(LofftaError, match=r"(?s)'pcodec' is not installed.*pip install 'loffta\[pcodec\]'"):
        pack(root, tmp_path / "b", "pcodec")
    assert not (tmp_path / "b").exists()
    found = array(packed)
    theirs = replace(found.layout, codec=find_codec("pcodec", found.layout.dtype))
    found.paths.metadata.write_bytes(theirs.to_json())
    for reading in (lambda: open_array(found.paths), lambda: list(verify(Cache.open(packed)))):
        with pytest.raises(LofftaError, match="'pcodec' is not installed"):
            reading()


def test_a_store_that_is_not_finished(tmp_path):
    cache = fill(tmp_path / "cache", missing=(1,))
    done = pack(tmp_path / "cache", tmp_path / "packed")
    assert [entry.images for entry in done.arrays] == [19, 19, 11, 11, 11]
    assert done.units == 2 * 3 + 3 * 2
    for found in next(s for s in cache.stores() if s.name.startswith("good")).arrays:
        values = np.stack([values_of(stores()[0], found.kind, tap) for tap in found.taps], axis=1)
        write_units(cache, found, values, bad=(BAD,))  # what is there stays
    assert pack(tmp_path / "cache", tmp_path / "packed").units == 3
    assert list(verify(Cache.open(tmp_path / "packed"))) == []
    unpack(tmp_path / "packed", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(tmp_path / "cache")


def test_damage_of_the_original_is_not_packed(root, tmp_path):
    flip_bit(shard(root, 1), 200)
    with pytest.raises(DamageFound, match=r"row 8: not the bytes that were extracted\n.*c\.1\.0"):
        pack(root, tmp_path / "packed")
    shard(root, 1).unlink()
    with pytest.raises(DamageFound, match=r"grid-0: units 1"):
        pack(root, tmp_path / "other")


def test_labels_follow_the_original_and_stay_where_it_came_from(root, packed, tmp_path):
    mine = root.parent / "mine.csv"
    said = [f"{key},z" for key in Cache.open(root).table.keys]
    mine.write_text("\n".join(["image,label", *said]) + "\n")
    before = (root / "labels/mine.parquet").read_bytes()
    loffta.label(packed, mine, progress=False)
    native = "targets/native/mask/u000000.parquet"
    (packed / native).parent.mkdir(parents=True)
    (packed / native).write_bytes(b"a mask")
    unpack(packed, root)
    assert (root / native).read_bytes() == b"a mask"
    assert (root / "labels/mine.parquet").read_bytes() == before
    pack(root, packed)
    assert (packed / "labels/mine.parquet").read_bytes() == before


def test_one_store_goes_and_comes_back(root, tmp_path):
    before, name = tree(root), array(root).paths.name.partition("/")[0]
    with pytest.raises(UsageError, match="unknown store 'good'"):
        pack(root, tmp_path / "packed", store="good")
    pack(root, tmp_path / "packed", store=name)
    assert Cache.open(tmp_path / "packed").paths.store_names() == [name]
    drop(find_target(Cache.open(root), name))
    assert unpack(tmp_path / "packed", root).units == 9
    assert tree(root) == before

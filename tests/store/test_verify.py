"""Every kind of damage, done to a copy of a sound cache; the remedy that is printed brings the bytes back."""

import os
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import zarr
from loffta_cli.main import main

from loffta.extract import extract
from loffta.machine import StopFlag
from loffta.store.cache import Cache
from loffta.store.verify import verify
from tests.fakes import FakeBackbone, PngSource, cache_files, fake_config

N, BAD = 20, 3  # two and a half units; one quarantined image


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def fill(root, n_images=N, seed=0, **options):
    """The same source and, but for another seed, the same bytes."""
    backbone = FakeBackbone(seed=seed)
    backbone.weights = FakeBackbone().weights  # another run that claims the same recipe
    source = PngSource(n_images, {BAD: b"no image"})
    options = {"max_bad_frac": 0.5, "kinds": ("grid", "prefix"), **options}
    return extract(fake_config(root, **options), source, lambda _: backbone, StopFlag())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound") / "cache"
    fill(root)
    return root


@pytest.fixture
def cache(sound, tmp_path):
    root = tmp_path / "a cache with spaces"
    shutil.copytree(sound, root)
    return root


def shard(root, array="grid-0", unit=1):
    (path,) = root.glob(f"**/{array}/c.{unit}.*")
    return path


def done_file(root, array="grid-0", unit=1):
    (path,) = root.glob(f"done/**/{array}/u{unit:06d}.parquet")
    return path


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def found(root, deep=False):
    """(array, unit, what) of all damage."""
    cache = Cache.open(root)
    return [(d.array.split("/")[1], d.unit, d.what) for d in verify(cache, deep=deep)]


def other_run(tmp_path):
    root = tmp_path / "other"
    fill(root, seed=1)
    return root


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_cache_has_no_damage(sound, deep):
    before = {p: p.stat().st_mtime_ns for p in sound.rglob("*")}
    assert found(sound, deep) == []
    assert {p: p.stat().st_mtime_ns for p in sound.rglob("*")} == before


@pytest.mark.parametrize("array", ["grid-0", "grid-1", "prefix-0", "thumb"])
def test_a_flipped_bit_of_data_is_found_by_deep(cache, array):
    flip(shard(cache, array), 10)
    assert found(cache) == []
    row = {"grid-0": "row 8, blocks.0", "grid-1": "row 8"}.get(array, "row 8")
    assert found(cache, deep=True) == [(array, 1, f"{row}: the bytes do not match their crc32c")]


def test_every_flipped_byte_is_found(cache):
    """Each byte of a small shard that means something: data, crc32c, index, the index's crc32c."""
    path = shard(cache, "prefix-0", 2)
    sound = path.read_bytes()
    for place in range(0, len(sound), 7):
        flip(path, place)
        assert len(found(cache, deep=True)) == 1, place
        path.write_bytes(sound)


def test_a_replaced_shard_is_found_without_reading_data(cache, tmp_path):
    theirs = shard(other_run(tmp_path), "grid-1")
    shutil.copyfile(theirs, shard(cache, "grid-1"))
    zarr.open_array(store=theirs.parent, mode="r")[:]  # it is valid in itself
    assert found(cache) == [("grid-1", 1, "row 8: another chunk than the one that was written")]


def test_a_swapped_unit_is_found(cache):
    shutil.copyfile(shard(cache, unit=0), shard(cache, unit=1))
    assert [(array, unit) for array, unit, _ in found(cache)] == [("grid-0", 1)]


@pytest.mark.parametrize(
    ("keep", "what"),
    [
        (0, "shard is truncated: 0 bytes cannot hold its index"),
        (50, "shard is truncated: 50 bytes cannot hold its index"),
        (-1, "shard index does not match its crc32c"),
        (-300, "shard index does not match its crc32c"),
    ],
)
def test_a_truncated_shard(cache, keep, what):
    path = shard(cache)
    path.write_bytes(path.read_bytes()[:keep])
    assert found(cache) == [("grid-0", 1, what)]


def test_a_shard_with_its_middle_cut_out(cache):
    path = shard(cache)
    data = path.read_bytes()
    path.write_bytes(data[:100] + data[500:])
    assert found(cache) == [("grid-0", 1, "shard is truncated: its index points behind its end")]


def test_a_missing_shard(cache):
    shard(cache, "thumb", 2).unlink()
    assert found(cache) == [("thumb", 2, "the shard of a finished unit is gone")]


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), lambda p: flip(p, 40), lambda p: flip(p, -10)])
def test_an_unreadable_done_file(cache, damage):
    damage(done_file(cache))
    ((array, unit, what),) = found(cache)
    assert (array, unit) == ("grid-0", 1)
    assert "done file cannot be read" in what


def test_the_done_file_of_another_unit(cache):
    shutil.copyfile(done_file(cache, unit=0), done_file(cache, unit=1))
    assert found(cache) == [("grid-0", 1, "done file lists rows of another unit")]


def test_a_quarantined_row_must_have_no_data(cache, tmp_path):
    root = tmp_path / "clean"
    extract(fake_config(root, kinds=("grid",)), PngSource(N), lambda _: FakeBackbone(), StopFlag())
    shutil.copyfile(shard(root, unit=0), shard(cache, unit=0))
    (damage,) = found(cache)
    assert damage[:2] == ("grid-0", 0)
    assert damage[2] == f"row {BAD} is quarantined and yet has data"


def test_all_damage_is_listed(cache):
    shard(cache, "grid-0", 0).unlink()
    shard(cache, "grid-1", 2).unlink()
    flip(shard(cache, "thumb", 1), 5)
    assert [(array, unit) for array, unit, _ in found(cache, deep=True)] == [("thumb", 1), ("grid-0", 0), ("grid-1", 2)]


@pytest.mark.parametrize("deep", [False, True])
def test_a_part_filled_unit_is_checked_but_need_not_be_the_newest(cache, tmp_path, deep):
    grown = tmp_path / "grown"
    shutil.copytree(cache, grown)
    fill(grown, 30)
    assert found(grown, deep) == []
    old_done = done_file(cache, unit=2).read_bytes()
    done_file(grown, unit=2).write_bytes(old_done)  # killed between the new shard and its done file
    shutil.copyfile(shard(other_run(tmp_path), unit=2), shard(grown, unit=2))  # and other bits of the same rows
    assert found(grown, deep) == []
    flip(shard(grown, unit=2), 3)
    assert len(found(grown, deep)) == deep
    shard(grown, unit=2).unlink()
    assert found(grown, deep) == [("grid-0", 2, "the shard of a finished unit is gone")]


def test_a_unit_cut_by_limit_is_checked(tmp_path):
    fill(tmp_path, limit=12)
    assert found(tmp_path, deep=True) == []
    flip(shard(tmp_path), 3)
    assert len(found(tmp_path, deep=True)) == 1


DAMAGES = {
    "bit": lambda root, tmp: flip(shard(root), 10),
    "index": lambda root, tmp: flip(shard(root, "grid-1"), -10),
    "gone": lambda root, tmp: (shard(root).unlink(), shard(root, "thumb", 0).unlink()),
    "truncated": lambda root, tmp: os.truncate(shard(root, "prefix-0", 2), 30),
    "replaced": lambda root, tmp: shutil.copyfile(shard(other_run(tmp), "grid-1"), shard(root, "grid-1")),
    "done": lambda root, tmp: done_file(root).write_bytes(b"PAR1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_remedy_of_the_command_brings_the_bytes_back(cache, sound, tmp_path, capsys, damage):
    DAMAGES[damage](cache, tmp_path)
    capsys.readouterr()  # of the run that "replaced" takes its shard from
    assert cache_files_but_damaged(cache) != cache_files_but_damaged(sound)
    assert main(["verify", str(cache), "--deep"]) == 4
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert "Traceback" not in err
    remedy = re.search(r"same `loffta extract` later,\n    (rm .*)", err).group(1)
    n_damaged = 2 if damage == "gone" else 1
    assert len(shlex.split(remedy)) == 1 + n_damaged
    assert out.count(", unit ") == n_damaged
    subprocess.run(remedy, shell=True, check=True)
    assert 0 < fill(cache).units <= 2
    assert cache_files(cache) == cache_files(sound)
    assert main(["verify", str(cache), "--deep"]) == 0
    assert capsys.readouterr().out == "no damage found\n"


def cache_files_but_damaged(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_values_after_repair_are_read_by_zarr(cache, sound):
    done_file(cache).unlink()
    flip(shard(cache), 10)
    fill(cache)
    arrays = [zarr.open_array(store=shard(root).parent, mode="r")[:] for root in (cache, sound)]
    np.testing.assert_array_equal(*arrays)

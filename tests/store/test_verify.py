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

from loffta.errors import DamageFound
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.verify import verify
from tests.fakes import FakeBackbone, PngSource, cache_files, fake_config

N, BAD = 20, 3  # two and a half units; one quarantined image


def fill(root, n_images=N, seed=0, **options):
    """The same source and, but for another seed, the same bytes."""
    backbone = FakeBackbone(seed=seed)
    backbone.weights = FakeBackbone().weights  # another run that claims the same recipe
    source = PngSource(n_images, {BAD: b"no image"})
    options = {"max_bad_frac": 0.5, "kinds": ("grid", "prefix"), **options}
    return extract(fake_config(root, **options), source, lambda _: backbone, StopFlag())


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
    capsys.readouterr()
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


# -- int8


@pytest.fixture(scope="module")
def sound_int8(tmp_path_factory):
    root = tmp_path_factory.mktemp("int8") / "cache"
    fill(root, dtype="int8")
    return root


@pytest.fixture
def int8(sound_int8, tmp_path):
    root = tmp_path / "int8 cache"
    shutil.copytree(sound_int8, root)
    return root


def scales_folder(root, array="grid-0"):
    (folder,) = root.glob(f"stores/*/{array}-int8")
    return folder


def exchange(root, tmp, array="grid-0"):
    """Sound scales of the same taps, from a run with other features."""
    other = tmp / "other int8"
    fill(other, seed=1, dtype="int8")
    mine = scales_folder(root, array)
    shutil.rmtree(mine)
    shutil.copytree(scales_folder(other, array), mine)


SCALE_DAMAGES = {
    "gone": (lambda root, tmp: shutil.rmtree(scales_folder(root)), "the scales of this int8 array are gone"),
    "half": (lambda root, tmp: shutil.rmtree(scales_folder(root) / "zero"), "the scales of this int8 array are gone"),
    "bit": (
        lambda root, tmp: flip(scales_folder(root) / "scale" / "c.0.0", 5),
        "the scales of this int8 array are damaged: the bytes of 'scale' do not match their crc32c",
    ),
    "exchanged": (exchange, "it was written with other scales than its array has now"),
}


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_int8_cache_has_no_damage(sound_int8, deep):
    assert found(sound_int8, deep) == []


@pytest.mark.parametrize("damage", SCALE_DAMAGES)
def test_scales_are_checked(int8, tmp_path, damage):
    harm, what = SCALE_DAMAGES[damage]
    harm(int8, tmp_path)
    assert found(int8) == [("grid-0", unit, what) for unit in range(3)]
    (array,) = [a for a in Cache.open(int8).stores()[0].arrays if a.paths.folder.name == "grid-0"]
    with pytest.raises(DamageFound, match=r"the scales of this int8 array are(.|\n)*--repair"):
        _ = array.scales


@pytest.mark.parametrize("damage", SCALE_DAMAGES)
def test_scales_come_back(int8, sound_int8, tmp_path, capsys, damage):
    """The sample and the seed are the same, so the bytes are."""
    SCALE_DAMAGES[damage][0](int8, tmp_path)
    capsys.readouterr()
    assert main(["verify", str(int8)]) == 4
    remedy = re.search(r"same `loffta extract` later,\n    (rm .*)", capsys.readouterr().err).group(1)
    subprocess.run(remedy, shell=True, check=True)
    assert not scales_folder_exists(int8)
    assert fill(int8, dtype="int8").units == 3
    assert cache_files(int8) == cache_files(sound_int8)
    assert main(["verify", str(int8), "--deep"]) == 0


def scales_folder_exists(root):
    return any(root.glob("stores/*/grid-0-int8"))


def test_one_unit_written_with_other_scales_does_not_condemn_them(int8, tmp_path):
    other = tmp_path / "other int8"
    fill(other, seed=1, dtype="int8")
    for find in (shard, done_file):
        shutil.copyfile(find(other), find(int8))
    assert found(int8) == [("grid-0", 1, "it was written with other scales than its array has now")]
    (damage,) = verify(Cache.open(int8))
    assert damage.scales is None


def test_scales_without_a_unit(int8):
    """Killed after calibration: sound ones are no damage, broken ones are, and none at all is no news."""
    for unit in range(3):
        done_file(int8, unit=unit).unlink()
    assert found(int8) == []
    flip(scales_folder(int8) / "zero" / "c.0.0", 1)
    ((array, unit, what),) = found(int8)
    assert (array, unit) == ("grid-0", 0)
    assert what.endswith("the bytes of 'zero' do not match their crc32c")
    shutil.rmtree(scales_folder(int8))
    assert found(int8) == []


def test_an_unreadable_done_file_of_int8_is_named_once(int8):
    flip(done_file(int8), 40)
    ((array, unit, what),) = found(int8)
    assert (array, unit) == ("grid-0", 1)
    assert "done file cannot be read" in what

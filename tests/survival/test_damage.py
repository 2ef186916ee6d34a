"""`loffta verify` names every damage, `--repair` writes these units anew and no others, and so does `extract`."""

import json
import re
import shutil

import pytest

from loffta.files import processes
from tests.fakes import cache_files
from tests.survival.commands import Command, assert_one_error, loffta


@pytest.fixture
def cache(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "cache")


def only(root, pattern):
    (path,) = root.glob(pattern)
    return path


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def stamps(root):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def hurt(cache):
    """One damage of each kind; what `verify --deep` is to say of it, by array and unit."""
    grid, prefix, thumb = "stores/*/grid-0/c.{}.*", "stores/*/prefix-0/c.{}.*", "targets/thumb/c.{}.*"
    flip(only(cache, grid.format(0)), 100)
    flip(only(cache, grid.format(1)), -20)
    swap(only(cache, grid.format(2)), only(cache, grid.format(3)))
    path = only(cache, prefix.format(0))
    path.write_bytes(path.read_bytes()[:200])
    only(cache, prefix.format(4)).unlink()
    only(cache, "done/*/prefix-0/u000005.parquet").write_bytes(b"garbage")
    flip(only(cache, thumb.format(2)), 5)
    shutil.copyfile(only(cache, "done/targets/thumb/u000000.parquet"), cache / "done/targets/thumb/u000001.parquet")
    return {
        ("grid-0", 0): "the bytes do not match their crc32c",
        ("grid-0", 1): "shard index does not match its crc32c",
        ("grid-0", 2): "another chunk than the one that was written",
        ("grid-0", 3): "another chunk than the one that was written",
        ("prefix-0", 0): "shard index does not match its crc32c",
        ("prefix-0", 4): "the shard of a finished unit is gone",
        ("prefix-0", 5): "done file cannot be read",
        ("thumb", 1): "done file lists rows of another unit",
        ("thumb", 2): "the bytes do not match their crc32c",
    }


def test_every_damage_is_named_and_repaired_and_nothing_else(cache, whole, tmp_path):
    expected = hurt(cache)
    before = stamps(cache)
    found = loffta(tmp_path, "verify", cache, "--deep", "--json", code=4)
    assert_one_error(found, "9 units are damaged", "add --repair")
    damaged = json.loads(found.out.splitlines()[-1])["damaged"]
    named = {(d["array"].split("/")[1], d["unit"]): d["what"] for d in damaged}
    assert named.keys() == expected.keys()
    assert all(part in named[place] for place, part in expected.items()), named
    assert stamps(cache) == before
    repaired = loffta(tmp_path, "verify", cache, "--deep", "--repair")
    assert repaired.out.endswith("no damage found\n")
    assert cache_files(cache) == cache_files(whole)
    changed = {path for path, stamp in stamps(cache).items() if before.get(path) != stamp}
    places = {(path.parent.name, int(re.findall(r"\d+", path.name)[0])) for path in changed}
    assert places == expected.keys()


def test_what_the_remedy_of_verify_deletes_extract_writes_anew(cache, whole, tmp_path, extract_words):
    hurt(cache)
    for damage in json.loads(loffta(tmp_path, "verify", cache, "--deep", "--json", code=4).out.splitlines()[-1])[
        "damaged"
    ]:
        (cache / damage["done"]).unlink(missing_ok=True)
    loffta(tmp_path, *extract_words, cache)
    assert cache_files(cache) == cache_files(whole)


def test_deleted_done_files_are_units_not_done(cache, whole, tmp_path, extract_words):
    for unit in (1, 4):
        only(cache, f"done/*/grid-0/u00000{unit}.parquet").unlink()
    before = stamps(cache)
    assert "no damage found\n" in loffta(tmp_path, "verify", cache, "--deep").out
    assert "2 units, 8 images" in loffta(tmp_path, *extract_words, cache).out
    changed = {path.name for path, stamp in stamps(cache).items() if before.get(path) != stamp}
    assert changed == {"c.1.0.0.0.0", "c.4.0.0.0.0", "u000001.parquet", "u000004.parquet"}
    assert cache_files(cache) == cache_files(whole)


def test_parts_of_the_dead_are_swept_and_of_the_living_kept(cache, whole, tmp_path, extract_words):
    living = Command(
        tmp_path, *extract_words, tmp_path / "other", hold="loffta.extraction.extract:open_source"
    ).wait_held()
    dead = Command(tmp_path, "--version")
    dead.finish()
    folder = only(cache, "stores/*/grid-0")
    parts = [
        folder / f".c.0.0.0.0.0.{processes.host()}.{writer.process.pid}.{processes.UNKNOWN}abcd.part"
        for writer in (living, dead)
    ]
    for part in parts:
        part.write_bytes(b"half")
    loffta(tmp_path, "verify", cache)
    assert all(part.exists() for part in parts)  # verify only looks
    assert "nothing to do" in loffta(tmp_path, *extract_words, cache).out
    assert [part.exists() for part in parts] == [True, False]
    living.process.kill()
    living.process.join()
    loffta(tmp_path, *extract_words, cache)
    assert cache_files(cache) == cache_files(whole)

"""Sizes foretold against the sizes of files that were written; and extractions that have no room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loffta_cli.main import main

from loffta.errors import LofftaError
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.machine.quota import Quota, Room
from loffta.store.asked import asked_rows
from loffta.store.cache import Cache
from loffta.store.space import check_space, missing_work, shard_bytes, shortages
from tests.fakes import FakeBackbone, PngSource, fake_config

N = 20  # two and a half units of 8


def fill(root, n_images=N, only=None, **options):
    return extract(fake_config(root, **options), PngSource(n_images), lambda _: FakeBackbone(), StopFlag(), only=only)


def rooms(monkeypatch, room, quota=None):
    monkeypatch.setattr("loffta.store.space.free_room", lambda path: room)
    monkeypatch.setattr("loffta.store.space.user_quota", lambda path: quota)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_shard_to_the_byte(tmp_path, dtype):
    fill(tmp_path, dtype=dtype)
    cache = Cache.open(tmp_path)
    for array in cache.arrays():
        for unit, n_images in enumerate((8, 8, 4)):
            path = array.paths.shard(unit, array.layout.ndim)
            assert shard_bytes(array.layout, n_images) == path.stat().st_size, path


def test_what_is_missing_is_what_comes(tmp_path):
    """The sum of what a second run adds, foretold from the first one's layouts."""
    fill(tmp_path, only=[0])
    cache = Cache.open(tmp_path)
    arrays, everything = cache.arrays(), asked_rows(cache, None, None)
    work = missing_work([*arrays, *arrays], everything)  # named twice, counted once
    assert [w.units for w in work] == [(1, 2)] * len(arrays)
    assert [w.images for w in work] == [12] * len(arrays)
    before = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    fill(tmp_path)
    added = [path for path in tmp_path.rglob("*") if path.is_file() and path not in before]
    assert len(added) == sum(w.files for w in work)
    assert sum(w.shard_bytes for w in work) == sum(p.stat().st_size for p in added if p.name.startswith("c."))
    done = sum(p.stat().st_size for p in added if p.suffix == ".parquet")
    assert sum(w.done_bytes for w in work) == pytest.approx(done, rel=0.1)  # tiny files: the versions stand out
    assert sum(w.bytes for w in missing_work(Cache.open(tmp_path).arrays(), everything)) == 0


def test_a_limit_and_a_share_count_no_more_than_they_write(tmp_path):
    fill(tmp_path, limit=4)  # rows 0, 1, 7 and 14
    cache = Cache.open(tmp_path)
    (thumbs, *_) = cache.arrays()
    (work,) = missing_work([thumbs], {0: [0, 7], 1: [8, 14], 2: [16, 17]})
    assert (work.units, work.images) == ((1, 2), 2 + 2)
    (work,) = missing_work([thumbs], {0: [2], 1: [15]})
    assert work.images == 4 + 2  # what is there is written again


@given(
    st.integers(0, 100), st.integers(0, 100), st.integers(0, 100), st.none() | st.integers(0, 100),
    st.none() | st.integers(0, 100), st.none() | st.integers(0, 100), st.booleans(),
)  # fmt: skip
def test_it_fits_where_no_limit_is_passed(n_bytes, n_files, free, inodes, left, left_files, with_quota):
    quota = Quota("quota", left, left_files) if with_quota else None
    limits = [(n_bytes, free), (n_files, inodes)] + ([(n_bytes, left), (n_files, left_files)] if with_quota else [])
    over = [limit for need, limit in limits if limit is not None and need > limit]
    assert len(shortages(n_bytes, n_files, Room(free, inodes), quota)) == len(over)


def test_the_refusal_says_what_is_needed_and_the_ways_out(tmp_path, monkeypatch):
    rooms(monkeypatch, Room(10**9, 50), Quota("lfs quota", 5 * 10**8, None))
    with pytest.raises(LofftaError) as caught:
        check_space(tmp_path / "a b", 2 * 10**9, 51)
    assert str(caught.value) == (
        "2.000 GB are needed, 1.000 GB are free on this file system; 51 files are needed, 50 are free on this file "
        "system; 2.000 GB are needed, 0.500 GB are left of your quota (lfs quota)\n"
        f"  where:  {tmp_path}/a b\n"
        "  remedy: see what takes the room and what it would cost with less: `loffta plan` with the same options.\n"
        "    Less: --dtype int8, --kinds mean,prefix, fewer --taps. More room: "
        f"`loffta drop '{tmp_path}/a b' STORE`.\n    Or go on all the same with --ignore-space"
    )
    check_space(tmp_path, 5 * 10**8, 50)
    check_space(tmp_path, 0, 0)


def test_extract_writes_no_unit_that_cannot_fit(tmp_path, monkeypatch):
    rooms(monkeypatch, Room(2000))
    with pytest.raises(LofftaError, match="are free on this file system"):
        fill(tmp_path)
    assert list(tmp_path.rglob("c.*")) == []
    assert fill(tmp_path, ignore_space=True).units == 3
    assert fill(tmp_path).units == 0  # nothing is missing, so nothing has to fit


def test_the_command(tmp_path, monkeypatch, capsys):
    words = [
        "extract",
        "demo:digits",
        "--cache",
        str(tmp_path / "c"),
        "--backbone",
        "test_vit",
        "--weights",
        "random:0",
    ]
    words += ["--image-px", "32", "--limit", "4", "--unit-images", "4", "--device", "cpu"]
    monkeypatch.setattr("loffta.machine.process.StopFlag.listen", lambda self: self)
    rooms(monkeypatch, Room(10**12, 3))
    assert main(words) == 1
    assert "24 files are needed, 3 are free" in capsys.readouterr().err
    assert main([*words, "--ignore-space"]) == 0

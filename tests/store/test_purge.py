"""Shards deleted behind the cache's back: noticed at once, all of them listed, and written anew by `extract` alone."""

import pytest
from loffta_cli.main import main

from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.purge import all_missing_shards, describe_missing, forget_missing, lost_metadata, missing_shards
from tests.caches import toy_cache
from tests.fakes import FakeBackbone, PngSource, cache_files, fake_config

N = 36  # five units of 8


def fill(root, backbone=None):
    return extract(fake_config(root), PngSource(N), lambda _: backbone or FakeBackbone(), StopFlag())


def purge(root, array, *units):
    for unit in units:
        (path,) = root.glob(f"**/{array}/c.{unit}.*")
        path.unlink()


def test_nothing_is_missing(root):
    cache = Cache.open(root)
    assert len(cache.arrays()) == 6  # thumbnails; grid, prefix and mean, grid and mean of another shape
    assert all_missing_shards(cache.arrays()) == {}
    assert forget_missing(cache) == ([], {})


def test_what_was_never_extracted_is_not_missing(tmp_path):
    cache = toy_cache(tmp_path)
    array = cache.stores()[0].arrays[0]
    array.paths.done(1).unlink()
    array.paths.shard(1, array.layout.ndim).unlink()
    array.paths.shard(3, array.layout.ndim).unlink()
    assert missing_shards(array) == [3]


def test_all_of_it_is_described(root):
    purge(root, "thumb", 0, 1, 2, 4)
    purge(root, "mean-0", 3)
    cache = Cache.open(root)
    name = cache.stores()[0].name
    assert describe_missing(all_missing_shards(cache.arrays())) == (
        f"5 shards of finished units are gone:\n    targets/thumb: units 0-2, 4\n    {name}/mean-0: units 3"
    )


def test_extract_lists_all_and_writes_exactly_these_anew(root, sound, capsys):
    purge(root, "grid-0", 1, 2)
    purge(root, "prefix-0", 2)
    purge(root, "thumb", 4)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("u*.parquet")}
    backbone = FakeBackbone()
    assert fill(root, backbone).units == 3
    err = capsys.readouterr().err
    assert "4 shards of finished units are gone" in err
    assert all(
        text in err for text in ("targets/thumb: units 4", "/grid-0: units 1-2", "/prefix-0: units 2", "purged?")
    )
    assert sum(backbone.batches) == 16  # the thumbnails of unit 4 need no network
    assert cache_files(root) == cache_files(sound)
    written = {path for path in root.rglob("u*.parquet") if path.stat().st_mtime_ns != before[path]}
    assert len(written) == 4
    assert fill(root).units == 0
    assert capsys.readouterr().err == ""


def test_a_shard_that_another_process_has_just_written_keeps_its_done_file(root, monkeypatch):
    purge(root, "grid-0", 1)
    cache = Cache.open(root)
    array = next(a for a in cache.arrays() if a.paths.name.endswith("grid-0"))
    missing = {array.paths.name: [1]}

    def list_then_write(arrays):
        array.paths.shard(1, array.layout.ndim).write_bytes(b"theirs")
        return missing

    monkeypatch.setattr("loffta.store.purge.all_missing_shards", list_then_write)
    assert forget_missing(cache) == ([], missing)
    assert array.paths.done(1).exists()


def test_metadata_that_is_lost_is_listed_and_made_anew(root, sound, capsys):
    cache = Cache.open(root)
    store = cache.stores()[0].name
    assert lost_metadata(cache) == []
    for path in (f"stores/{store}/grid-0", f"stores/{store}/mean-1", "targets/thumb"):
        (root / path / "zarr.json").unlink()
    lost = [f"{store}/grid-0", f"{store}/mean-1", "targets/thumb"]
    assert sorted(lost_metadata(Cache.open(root))) == sorted(lost)
    strange = root / "done" / "strange\x1b[2J" / "grid-0" / "u000000.parquet"
    strange.parent.mkdir(parents=True)
    strange.write_bytes(b"")
    assert fill(root).units == 5
    err = capsys.readouterr().err
    assert "\n    strange\N{REPLACEMENT CHARACTER}[2J" in err
    assert "\x1b" not in err
    assert all(f"\n    {name}\n" in err for name in lost)
    assert cache_files(root) == cache_files(sound)
    assert lost_metadata(Cache.open(root)) == []


def test_named_taps_are_trained_on_whatever_else_is_lost(tmp_path, capsys):
    cache = toy_cache(tmp_path / "cache")
    next(cache.paths.root.glob("stores/*/grid-1/zarr.json")).unlink()
    words = ["train", str(cache.paths.root), "--head", "combo", "--set", "epochs=1", "--set", "width=8"]
    for choice in ([], ["--features", "good"], ["--features", "good:all"]):
        assert main([*words, *choice, "--out", str(tmp_path / "run")]) == 4
        assert "the zarr.json is gone of\n    good-" in capsys.readouterr().err
    assert main([*words, "--features", "good:a.0", "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("partial", [[], ["--partial"]])
def test_train_stops_before_it_starts(tmp_path, capsys, partial):
    cache = toy_cache(tmp_path / "cache")
    purge(cache.paths.root, "grid-0", 0, 7)
    purge(cache.paths.root, "grid-1", 1)
    command = [
        "train",
        str(cache.paths.root),
        "--head",
        "combo",
        "--features",
        "good:all",
        "--out",
        str(tmp_path / "r"),
    ]
    assert main([*command, *partial]) == 4
    err = capsys.readouterr().err
    assert "3 shards of finished units are gone" in err
    assert "grid-0: units 0, 7" in err
    assert "grid-1: units 1\n" in err
    assert f"loffta verify {cache.paths.root} --repair" in err
    assert not (tmp_path / "r").exists()


def test_train_does_not_mind_what_it_does_not_read(tmp_path):
    cache = toy_cache(tmp_path / "cache")
    purge(cache.paths.root, "grid-1", 1)
    command = ["train", str(cache.paths.root), "--head", "linear", "--features", "good:a.0", "--set", "epochs=1"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0

"""What happens to a cache on a scratch disk: it is purged in part, copied, moved, repaired under a reader."""

import json
import os
import random
import shutil

import pytest

from tests.fakes import cache_files
from tests.survival.commands import VIT, Command, assert_one_error, loffta

TRAIN = ["--head", "linear", "--set", "epochs=2", "--device", "cpu"]


@pytest.fixture
def cache(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "cache")


def test_a_purge_is_listed_whole_by_every_command(cache, whole, tmp_path, extract_words):
    """A random third of the shards, some done files, and the metadata of one array."""
    rng = random.Random(20261122)
    shards = sorted(cache.glob("stores/*/grid-0/c.*")) + sorted(cache.glob("targets/thumb/c.*"))
    gone = rng.sample(shards, len(shards) // 3)
    for path in gone + rng.sample(sorted(cache.rglob("u*.parquet")), 3):
        path.unlink()
    (lost,) = cache.glob("stores/*/prefix-0/zarr.json")
    lost.unlink()
    finished = [
        path for path in gone if list(cache.glob(f"done/**/{path.parent.name}/u{int(path.name.split('.')[1]):06d}.*"))
    ]
    array = f"{lost.parent.parent.name}/prefix-0"

    info = loffta(tmp_path, "info", cache, "--json")
    assert f"{len(finished)} shards of finished units are gone" in info.out
    held = json.loads(info.out.splitlines()[-1])
    assert held["lost_metadata"] == [array]
    assert sum(map(len, held["missing_shards"].values())) == len(finished)

    verified = loffta(tmp_path, "verify", cache, code=4)
    assert verified.out.count("the shard of a finished unit is gone") == len(finished)
    assert_one_error(verified, f"{len(finished)} units are damaged", array, "loffta extract")

    words = ["train", cache, *TRAIN, "--out", tmp_path / "run"]
    assert_one_error(loffta(tmp_path, *words, code=4), "zarr.json is gone of", array, "loffta extract")
    assert not (tmp_path / "run").exists()

    extracted = loffta(tmp_path, *extract_words, cache)
    assert f"the zarr.json is gone of\n    {array}\n{len(finished)} shards of finished units are gone" in extracted.err
    assert cache_files(cache) == cache_files(whole)
    loffta(tmp_path, *words)


def test_a_store_without_its_metadata_is_not_left_out_silently(cache, whole, tmp_path, extract_words):
    (lost,) = cache.glob("stores/*/zarr.json")
    text = lost.read_bytes()
    lost.unlink()
    words = ["train", cache, *TRAIN, "--out", tmp_path / "run"]
    assert_one_error(loffta(tmp_path, *words, code=4), "zarr.json is gone of", lost.parent.name)
    assert lost.parent.name in loffta(tmp_path, "info", cache).out
    assert "nothing to do" in loffta(tmp_path, *extract_words, cache).out
    assert lost.read_bytes() == text
    assert cache_files(cache) == cache_files(whole)


def test_repair_after_a_purge_of_data_alone(cache, whole, tmp_path):
    for path in (*cache.glob("stores/*/grid-0/c.[135].*"), *cache.glob("targets/thumb/c.0.*")):
        path.unlink()
    assert "no damage found" in loffta(tmp_path, "verify", cache, "--repair").out
    assert cache_files(cache) == cache_files(whole)


def test_thumbnails_purged_to_the_last_file(cache, whole, tmp_path, extract_words):
    shutil.rmtree(cache / "targets")
    assert "the zarr.json is gone of\n    targets/thumb\n" in loffta(tmp_path, "info", cache).out
    loffta(tmp_path, "train", cache, *TRAIN, "--out", tmp_path / "run")
    loffta(tmp_path, "report", tmp_path / "run", "--out", tmp_path / "report.html")
    loffta(tmp_path, *extract_words, cache)
    assert cache_files(cache) == cache_files(whole)


def test_a_copy_and_a_move_work_whatever_their_clocks_say(cache, whole, tmp_path, extract_words, pictures):
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    cache.rename(moved)
    for i, path in enumerate(sorted(moved.rglob("*"))):
        os.utime(path, (i, i) if i % 2 else (4e9, 4e9))  # 1970, and the year 2096
    assert "nothing to do" in loffta(tmp_path, *extract_words, moved).out
    assert "no damage found\n" in loffta(tmp_path, "verify", moved, "--deep").out
    loffta(tmp_path, "train", moved, *TRAIN, "--out", tmp_path / "run")

    other = shutil.copytree(pictures, tmp_path / "pictures")  # the same images at another place: the same image set
    words = [other if word == pictures else word for word in extract_words]
    assert "nothing to do" in loffta(tmp_path, *words, moved).out
    assert cache_files(moved) == cache_files(whole)


def test_a_source_that_has_moved_is_named(tmp_path, pictures, extract_words, whole):
    """verify --repair reads the images where extract read them."""
    there = shutil.copytree(pictures, tmp_path / "pictures")
    cache = tmp_path / "cache"
    words = [there if word == pictures else word for word in extract_words]
    loffta(tmp_path, *words, cache)
    there.rename(tmp_path / "moved")
    (shard,) = cache.glob("stores/*/grid-0/c.2.*")
    shard.unlink()
    failed = loffta(tmp_path, "verify", cache, "--repair", code=2)
    assert_one_error(failed, f"there is no folder '{there}'", "SOURCE", "loffta extract")
    words = [tmp_path / "moved" if word == there else word for word in words]
    loffta(tmp_path, *words, cache)
    files = ("stores/**/*", "targets/**/*", "done/**/*")
    assert cache_files(cache, *files) == cache_files(whole, *files)


def test_a_unit_is_repaired_under_a_training(cache, whole, tmp_path):
    """The reader holds the old file or opens the new one, each whole in itself."""
    words = ["train", cache, *TRAIN, "--feed", "stream", "--set", "batch_size=4", "--out"]
    held = Command(tmp_path, *words, tmp_path / "run", hold="loffta.training.fit:lr_at", n_hold=3).wait_held()
    for shard in cache.glob("stores/*/*/c.*"):
        done = (
            cache
            / "done"
            / shard.relative_to(cache / "stores").parent
            / f"u{int(shard.name.split('.')[1]):06d}.parquet"
        )
        done.write_bytes(b"garbage")
        part = shard.with_name("new")
        part.write_bytes(shard.read_bytes())
        part.replace(shard)
    assert "no damage found" in loffta(tmp_path, "verify", cache, "--repair").out
    ended = held.go().finish()
    assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
    expected = loffta(tmp_path, "train", whole, *words[2:], tmp_path / "two")
    assert ended.figures == expected.figures
    heads = [(tmp_path / name / "seed-0" / "head.safetensors").read_bytes() for name in ("run", "two")]
    assert heads[0] == heads[1]


def test_few_file_descriptors_are_enough(cache, tmp_path, pictures):
    """One image a unit: 48 shards and as many done files, and 64 descriptors."""
    many = tmp_path / "many"
    words = ["extract", pictures, *VIT]
    few = {"limits": {"RLIMIT_NOFILE": 64}}
    loffta(tmp_path, *words, "--taps", "all", "--unit-images", "1", "--cache", many, **few)
    assert len(list(many.rglob("c.*"))) == 72
    assert "no damage found" in loffta(tmp_path, "verify", many, "--deep", **few).out
    training = ["--feed", "stream", "--head", "combo", "--set", "width=8", "--set", "depth=1", "--set", "epochs=2"]
    runs = [
        loffta(tmp_path, "train", root, *training, "--device", "cpu", "--out", tmp_path / f"run-{root.name}", **options)
        for root, options in ((many, few), (cache, {}))
    ]
    assert runs[0].out.split()[:2] == runs[1].out.split()[:2]
    loffta(tmp_path, "evaluate", tmp_path / "run-many", "--split", "train", **few)

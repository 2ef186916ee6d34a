"""A disk, quota or limit that is full at any place: a message, no torn unit, and the same command goes on."""

import errno
import os
import re
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from loffta.errors import LofftaError
from loffta.extraction.extract import extract
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.verify import verify
from tests.fakes import FakeBackbone, PngSource, cache_files, fake_config
from tests.survival.commands import assert_one_error, loffta

TRAIN = ["--head", "linear", "--set", "epochs=2", "--device", "cpu"]
FULL = "no space left to write a file"


@contextmanager
def small_disk(folder, options):
    """A file system of its own, with room for as much as `options` says."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mount.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def assert_nothing_torn(cache):
    assert list(cache.rglob("*.part")) == []
    if (cache / "cache.json").exists():
        assert list(verify(Cache.open(cache), deep=True)) == []


def named(done):
    """Which kind of file the message names."""
    (path,) = re.findall(r"  where:  (.+)\n", done.err)
    return re.sub(r"[.\d]+", "#", path.rsplit("/", 1)[1])


def climb(folder, *words, limits):
    """Raises the limit on file sizes until the command is through; gives the kinds of files that it stopped at."""
    stopped_at = []
    for limit in limits:
        done = loffta(folder, *words, code=None, limits={"RLIMIT_FSIZE": limit})
        if done.code == 0:
            return stopped_at
        assert done.code == 1
        assert_one_error(done, f"{FULL} (File too large; `ulimit -f`", "same command again")
        stopped_at.append(named(done))
        assert list(words[-1].rglob("*.part")) == []
    raise AssertionError(f"never through: {stopped_at}")


def test_every_file_of_an_extraction_may_be_the_one_too_long(tmp_path, extract_words, whole):
    cache = tmp_path / "cache"
    sizes = sorted({path.stat().st_size for path in whole.rglob("*") if path.is_file()})
    limits = [size - 1 for size in sizes[:: max(1, len(sizes) // 7)]] + [sizes[-1] - 1, sizes[-1]]
    stopped_at = climb(tmp_path, *extract_words, cache, limits=limits)
    assert {"images#parquet", "zarr#json"} < set(stopped_at)
    assert any(name.startswith("c#") for name in stopped_at), stopped_at
    assert_nothing_torn(cache)
    assert cache_files(cache) == cache_files(whole)
    means = [*extract_words, cache, "--kinds", "mean"]
    (size,) = (path.stat().st_size for path in whole.glob("stores/*/prefix-0/c.0.*"))  # theirs; done files are larger
    done = loffta(tmp_path, *means, code=1, limits={"RLIMIT_FSIZE": size})
    assert named(done) == "u#parquet"
    assert_nothing_torn(cache)
    assert "6 units" in loffta(tmp_path, *means).out


def test_every_file_of_a_training_may_be_the_one_too_long(tmp_path, whole):
    words = ["train", whole, *TRAIN, "--out"]
    for name, options, files in (  # only a file that is larger than all before it can be the first one too long
        ("small", [], {"config#yaml", "stores#json"}),
        ("large", ["--head", "combo", "--set", "width=64", "--set", "depth=1"], {"head#safetensors"}),
    ):
        undisturbed = tmp_path / name.upper()  # as long a name: what is printed wraps at the same words
        expected = loffta(tmp_path, *words, undisturbed, *options).out.replace(str(undisturbed), str(tmp_path / name))
        sizes = sorted(p.stat().st_size for p in undisturbed.rglob("*") if p.is_file())
        stopped_at = climb(
            tmp_path, *words[:-1], *options, "--out", tmp_path / name, limits=[*(size - 1 for size in sizes), 1 << 20]
        )
        assert files <= set(stopped_at), stopped_at
        assert loffta(tmp_path, *words, tmp_path / name, *options).out == expected


@pytest.mark.parametrize("options", ["size=440k", "size=8m,nr_inodes=66"])
def test_a_small_disk_is_full_in_the_middle(tmp_path, extract_words, whole, options):
    with small_disk(tmp_path / "disk", options) as disk:
        cache = disk / "cache"
        ballast = disk / "ballast"
        ballast.mkdir()
        if "inodes" in options:
            for i in range(25):
                (ballast / str(i)).touch()
        else:
            (ballast / "file").write_bytes(bytes(240 << 10))
        refused = loffta(tmp_path, *extract_words, cache, code=1)
        assert_one_error(refused, "are needed, ", "free on this file system", "--ignore-space")
        assert list(cache.rglob("c.*")) == []
        full = loffta(tmp_path, *extract_words, cache, "--ignore-space", code=1)
        assert_one_error(full, f"{FULL} (No space left on device)", str(cache), "free space")
        assert_nothing_torn(cache)
        done = {path.name for path in cache.rglob("thumb/u*.parquet")}
        assert 1 <= len(done) < 6
        for path in ballast.iterdir():
            path.unlink()
        loffta(tmp_path, *extract_words, cache, "--ignore-space")
        assert cache_files(cache) == cache_files(whole)


def test_a_full_disk_under_a_training_and_a_report(tmp_path, whole):
    with small_disk(tmp_path / "disk", "size=96k") as disk:
        words = ["train", whole, *TRAIN, "--out", disk / "run"]
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(88 << 10))
        assert_one_error(loffta(tmp_path, *words, code=1), f"{FULL} (No space left on device)", str(disk / "run"))
        ballast.unlink()
        loffta(tmp_path, *words)
        report = ["report", disk / "run", "--out", disk / "report.html"]
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - (8 << 10)))
        assert_one_error(loffta(tmp_path, *report, code=1), FULL, "report.html")
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", "run"]


@pytest.mark.parametrize("n_writes", [1, 7, 20])
def test_a_quota_in_the_thread_that_writes(tmp_path, monkeypatch, n_writes):
    """What a quota server says, at the n-th write of a shard."""
    real, calls = os.pwritev, iter(range(1, 1 << 30))

    def pwritev(fd, buffers, place):
        if next(calls) >= n_writes:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return real(fd, buffers, place)

    monkeypatch.setattr(os, "fsync", lambda _: None)
    config = fake_config(tmp_path / "cache")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", pwritev)
        with pytest.raises(
            LofftaError, match=r"Disk quota exceeded\)\n  where:  .*/cache/.*/c\.\d[^ ]*\n  remedy: free space or"
        ):
            extract(config, PngSource(20), lambda _: FakeBackbone(), StopFlag())
    assert_nothing_torn(tmp_path / "cache")
    for root in ("cache", "whole"):
        extract(fake_config(tmp_path / root), PngSource(20), lambda _: FakeBackbone(), StopFlag())
    assert cache_files(tmp_path / "cache") == cache_files(tmp_path / "whole")

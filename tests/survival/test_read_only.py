"""A cache that may only be read: what reads works and writes nothing there, what must write says so."""

import os
import shutil
import subprocess

import pytest

from tests.survival.commands import assert_one_error, loffta

TRAIN = ["--head", "linear", "--set", "epochs=2", "--device", "cpu"]


@pytest.fixture
def read_only(whole, tmp_path):
    """A copy of a finished cache on a file system that is mounted read-only; or without write permission."""
    disk = tmp_path / "disk"
    shutil.copytree(whole, disk / "cache")
    if os.geteuid():
        for path in [disk, *disk.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
        yield disk / "cache"
        for path in [disk, *disk.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
        return
    for words in (["--bind", disk, disk], ["-o", "remount,bind,ro", disk]):
        mount = subprocess.run(["mount", *words], capture_output=True, check=False)
        if mount.returncode:
            pytest.skip(f"root may not mount here: {mount.stderr.decode().strip()}")
    yield disk / "cache"
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_reading_commands_work(read_only, tmp_path, extract_words):
    before = {path: path.stat().st_mtime_ns for path in read_only.rglob("*")}
    run = tmp_path / "run"
    assert "24 images" in loffta(tmp_path, "info", read_only).out
    assert "no damage found" in loffta(tmp_path, "verify", read_only, "--deep").out
    loffta(tmp_path, "train", read_only, *TRAIN, "--out", run)
    loffta(tmp_path, "evaluate", run, "--split", "train")
    loffta(tmp_path, "report", run, "--out", tmp_path / "report.html")
    assert "nothing to do" in loffta(tmp_path, *extract_words, read_only).out
    assert {path: path.stat().st_mtime_ns for path in read_only.rglob("*")} == before


def test_writing_commands_say_so(read_only, tmp_path, extract_words, pictures):
    (store,) = (path.name for path in (read_only / "stores").iterdir())
    commands = [
        [*extract_words, read_only, "--kinds", "mean"],
        [*extract_words, read_only, "--resize", "crop"],
        [*extract_words, read_only.parent / "new"],
        ["drop", read_only, store, "--yes"],
        ["train", read_only, *TRAIN, "--out", read_only / "run"],
        ["report", tmp_path / "run", "--out", read_only / "report.html"],
        ["predict", tmp_path / "run", pictures, "--out", read_only / "p.parquet", "--device", "cpu"],
    ]
    loffta(tmp_path, "train", read_only, *TRAIN, "--out", tmp_path / "run")
    for words in commands:
        assert_one_error(loffta(tmp_path, *words, code=1), "nothing can be written here (", str(read_only.parent))


def test_damage_is_named_and_repair_says_why_it_cannot(read_only, whole, tmp_path):
    """A file system that was sound when it became read-only: the damage is mounted over it."""
    if os.geteuid():
        pytest.skip("only root mounts")
    (shard,) = read_only.glob("stores/*/grid-0/c.2.*")
    broken = tmp_path / "broken"
    broken.write_bytes(shard.read_bytes()[:-1])
    subprocess.run(["mount", "--bind", broken, shard], check=True)
    try:
        assert_one_error(loffta(tmp_path, "verify", read_only, code=4), "1 unit is damaged")
        failed = loffta(tmp_path, "verify", read_only, "--repair", code=1)
        assert_one_error(failed, "nothing can be written here (Read-only file system)", "damaged")
    finally:
        subprocess.run(["umount", "--lazy", shard], check=True)

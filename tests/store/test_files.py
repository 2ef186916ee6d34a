import errno
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loffta.errors import LofftaError
from loffta.store import files
from loffta.store.files import (
    STALE_AFTER_S,
    create_file,
    create_folder,
    part_name,
    remove_folder,
    replace_file,
    sweep_parts,
    sweep_tree,
)

from .conftest import names


def test_replace_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["file"]


def test_create_file_keeps_what_is_there(tmp_path: Path) -> None:
    assert create_file(tmp_path / "file", b"one")
    assert not create_file(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert names(tmp_path) == ["file"]


def race(path: Path, barrier: object, results: object) -> None:
    data = str(os.getpid()).encode() * 1000
    barrier.wait()  # type: ignore[attr-defined]
    results.put((os.getpid(), create_file(path, data)))  # type: ignore[attr-defined]


def test_one_of_many_racing_processes_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=race, args=(tmp_path / "file", barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    winners = [pid for pid, won in outcomes if won]
    assert len(winners) == 1
    assert (tmp_path / "file").read_bytes() == str(winners[0]).encode() * 1000
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [replace_file, create_file])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(LofftaError, match=r"no space left to write a file .*\n  where:  .*file\n  remedy: free space"):
        write(tmp_path / "file", b"data")  # type: ignore[operator]
    assert names(tmp_path) == []


def test_a_part_that_cannot_be_swept_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = part(tmp_path, files._host(), dead_pid())

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert sweep_parts(tmp_path) == []
    assert stale.exists()


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(LofftaError, match=r"a folder is where this file should be(.|\n)*/file\n"):
        replace_file(tmp_path / "file", b"data")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("inside", ["x", "deep/x"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(LofftaError, match=r"a file is where this folder should be(.|\n)*file(.|\n)*another place"):
        replace_file(tmp_path / "file" / inside, b"data")
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert names(tmp_path) == ["file"]


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def part(folder: Path, host: str, pid: int, age_s: float = 0) -> Path:
    path = folder / f".c.0.0.{host}.{pid}.0123abcd.part"
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_only_parts_of_dead_writers_are_swept(tmp_path: Path) -> None:
    host = files._host()
    stale = [part(tmp_path, host, dead_pid()), part(tmp_path, "elsewhere", 1, STALE_AFTER_S + 60)]
    alive = [part(tmp_path, host, os.getpid()), part(tmp_path, host, os.getppid()), part(tmp_path, "elsewhere", 2)]
    strange = [tmp_path / name for name in (".notes.part", "c.0.0", ".c.0.part")]
    for path in strange:
        path.touch()
    assert sorted(sweep_parts(tmp_path)) == sorted(stale)
    assert names(tmp_path) == sorted(path.name for path in [*alive, *strange])


def test_part_names_are_recognised_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node_7.cluster.example")
    first, second = part_name(tmp_path / "c.0.0"), part_name(tmp_path / "c.0.0")
    assert first != second
    assert first.parent == tmp_path
    assert first.name.startswith(f".c.0.0.node-7-cluster-example.{os.getpid()}.")
    assert files._PART.fullmatch(first.name)


def test_sweeping_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert sweep_parts(tmp_path / "none") == []


def test_a_folder_comes_whole_and_the_first_wins(tmp_path: Path) -> None:
    target = tmp_path / "stores" / "group"
    assert create_folder(target, {target / "zarr.json": b"{}", target / "a" / "c.0": b"one"})
    assert not create_folder(target, {target / "zarr.json": b"[]", target / "b": b"two"})
    assert (target / "a" / "c.0").read_bytes() == b"one"
    assert names(target) == ["a", "zarr.json"]
    assert names(tmp_path / "stores") == ["group"]


def test_a_folder_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LofftaError, match=r"no space left to write a file(.|\n)*remedy: free space"):
        create_folder(tmp_path / "group", {tmp_path / "group" / "file": b"data"})
    assert names(tmp_path) == []


def test_a_file_in_the_way_of_a_folder_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "group").write_bytes(b"")
    with pytest.raises(LofftaError, match=r"a file is where this folder should be(.|\n)*/group\n"):
        create_folder(tmp_path / "group", {tmp_path / "group" / "file": b"data"})
    assert names(tmp_path) == ["group"]


def test_a_folder_goes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the process dies while it deletes: what is left of it is a part."""
    create_folder(tmp_path / "group", {tmp_path / "group" / "file": b"data"})
    monkeypatch.setattr(shutil, "rmtree", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remove_folder(tmp_path / "group")
    (left,) = names(tmp_path)
    assert files._PART.fullmatch(left)
    remove_folder(tmp_path / "group")  # there is none
    assert names(tmp_path) == [left]


def test_folders_of_dead_writers_are_swept_too(tmp_path: Path) -> None:
    host = files._host()
    dead, alive = (f".group.{host}.{pid}.0123abcd.part" for pid in (dead_pid(), os.getppid()))
    for name in (dead, alive):
        (tmp_path / "store" / name / "inner").mkdir(parents=True)
        (tmp_path / "store" / name / "inner" / f".x.{host}.{dead_pid()}.0123abcd.part").touch()
    sweep_tree(tmp_path)
    assert names(tmp_path / "store") == [alive]
    assert len(names(tmp_path / "store" / alive / "inner")) == 1  # what a living writer makes is its own

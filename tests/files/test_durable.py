import errno
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from loffta.errors import LofftaError
from loffta.files import durable, exclusive, processes
from loffta.files.durable import (
    STALE_AFTER_S,
    create_file,
    create_folder,
    find_parts,
    new_file,
    part_name,
    remove_folder,
    replace_file,
    sweep_parts,
    sweep_tree,
)
from tests.forked import CONTEXT
from tests.store.conftest import names


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


def race(folder: Path, barrier: object, results: object) -> None:
    for name in ("linked", "claimed"):
        if name == "claimed":
            os.link = refuse(errno.ENOSYS)  # type: ignore[assignment]
        data = str(os.getpid()).encode() * 1000
        barrier.wait()  # type: ignore[attr-defined]
        results.put((name, os.getpid(), create_file(folder / name, data)))  # type: ignore[attr-defined]


def test_one_of_many_racing_processes_wins(tmp_path: Path) -> None:
    barrier, results = CONTEXT.Barrier(4), CONTEXT.Queue()
    workers = [CONTEXT.Process(target=race, args=(tmp_path, barrier, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=120) for _ in range(8)]
    for worker in workers:
        worker.join()
    for name in ("linked", "claimed"):
        (winner,) = (pid for file, pid, won in outcomes if won and file == name)
        assert (tmp_path / name).read_bytes() == str(winner).encode() * 1000
    assert names(tmp_path) == ["claimed", "linked"]


@pytest.mark.parametrize("write", [replace_file, create_file])
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(LofftaError, match=r"no space left to write a file .*\n  where:  .*file\n  remedy: free space"):
        write(tmp_path / "file", b"data")  # type: ignore[operator]
    assert names(tmp_path) == []


def test_a_part_that_cannot_be_swept_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = part(tmp_path, processes.host(), dead_pid())

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    sweep_parts(tmp_path)
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


def part(folder: Path, host: str, pid: int, age_s: float = 0, began: str | None = None) -> Path:
    path = folder / f".c.0.0.{host}.{pid}.{began or processes.began(pid)}abcd.part"
    path.touch()
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_only_parts_of_dead_writers_are_swept(tmp_path: Path) -> None:
    host = processes.host()
    old_name = re.sub("[^A-Za-z0-9-]", "-", socket.gethostname())  # which namespace it was in, older names do not tell
    stale = [
        part(tmp_path, host, dead_pid()),
        part(tmp_path, host, os.getpid(), began="ffff"),  # who had this number before
        part(tmp_path, "elsewhere", 1, STALE_AFTER_S + 60),
        part(tmp_path, old_name, dead_pid(), STALE_AFTER_S + 60),
    ]
    alive = [
        part(tmp_path, host, os.getpid()),
        part(tmp_path, host, os.getppid(), STALE_AFTER_S + 60),
        part(tmp_path, host, os.getppid(), began=processes.UNKNOWN),
        part(tmp_path, "elsewhere", 2),
        part(tmp_path, old_name, dead_pid()),
    ]
    strange = [tmp_path / name for name in (".notes.part", "c.0.0", ".c.0.part")]
    for path in strange:
        path.touch()
    assert set(names(tmp_path)) > {path.name for path in stale}
    sweep_parts(tmp_path)
    assert names(tmp_path) == sorted(path.name for path in [*alive, *strange])


def test_part_names_are_recognised_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node_7.cluster.example")
    first, second = part_name(tmp_path / "c.0.0"), part_name(tmp_path / "c.0.0")
    assert first != second
    assert first.parent == tmp_path
    assert re.fullmatch(
        rf"\.c\.0\.0\.node-7-cluster-example(-[0-9a-f]{{8}})?\.{os.getpid()}\.[0-9a-f]{{8}}\.part", first.name
    )
    first.touch()
    assert [(found.pid, found.stale) for found in find_parts(tmp_path)] == [(os.getpid(), False)]


def test_when_a_process_began_is_what_psutil_says() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("no Linux")
    ticks = os.sysconf("SC_CLK_TCK")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    apart = psutil.Process(child.pid).create_time() - psutil.Process().create_time()
    told = int(processes.began(child.pid), 16) - int(processes.began(os.getpid()), 16)
    child.communicate(b"\n")
    assert told % 0xFFFF == pytest.approx(apart * ticks % 0xFFFF, abs=2)
    assert processes.began(child.pid) == processes.UNKNOWN


SWEEP = "import sys, pathlib; from loffta.files.durable import sweep_parts; sweep_parts(pathlib.Path(sys.argv[1]))"


def test_a_container_of_the_same_name_sweeps_nothing_of_a_living_writer(tmp_path: Path) -> None:
    """In a pid namespace of its own, where the writer's number is nobody's."""
    with new_file(tmp_path / "c.0.0") as file:
        file.write(b"half")
        (living,) = names(tmp_path)
        words = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", SWEEP, tmp_path]
        env = {**os.environ, "PYTHONPATH": str(Path(durable.__file__).parents[2])}
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
        if done.returncode and "unshare" in done.stderr:
            pytest.skip(f"no namespace can be made here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        assert names(tmp_path) == [living]
    assert (tmp_path / "c.0.0").read_bytes() == b"half"


def swept_at_fsync(folder: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The part is deleted by somebody else just before it gets its name."""
    left = iter(range(times))
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        if next(left, None) is not None:
            for path in folder.rglob("*.part"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    monkeypatch.setattr(os, "fsync", fsync)


DATA = bytes(range(256)) * 1000


def write_folder(path: Path, data: bytes) -> None:
    create_folder(path, {path / "inner": data})


@pytest.mark.parametrize("write", [replace_file, create_file, write_folder])
def test_a_lost_part_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object) -> None:
    swept_at_fsync(tmp_path, monkeypatch, 2)
    write(tmp_path / "x", DATA)  # type: ignore[operator]
    (found,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert found.read_bytes() == DATA
    assert names(tmp_path) == ["x"]
    swept_at_fsync(tmp_path, monkeypatch, 99)
    with pytest.raises(LofftaError, match=r"another process deletes temporary files here(.|\n)*/y\n"):
        write(tmp_path / "y", DATA)  # type: ignore[operator]
    assert names(tmp_path) == ["x"]


def refuse(number: int) -> object:
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_the_first_wins_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "link", refuse(number))
    test_create_file_keeps_what_is_there(tmp_path)


def test_other_trouble_of_a_link_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EIO))
    with pytest.raises(LofftaError, match=r"Input/output error"):
        create_file(tmp_path / "file", b"data")
    assert names(tmp_path) == []


def test_the_claim_of_a_dead_writer_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.ENOSYS))
    monkeypatch.setattr(exclusive, "CLAIM_S", 0.05)
    (tmp_path / ".file.claim.0.00000000.part").touch()
    assert create_file(tmp_path / "file", b"one")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_syncs_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            refuse(number)()  # type: ignore[operator]
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(LofftaError, match=r"Input/output error"):
            replace_file(tmp_path / "file", b"data")
        return
    for write in (replace_file, create_file, write_folder):
        write(tmp_path / write.__name__, b"data")
    assert names(tmp_path) == ["create_file", "replace_file", "write_folder"]


def test_sweeping_a_folder_that_is_not_there(tmp_path: Path) -> None:
    sweep_parts(tmp_path / "none")


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
    assert [found.path.name for found in find_parts(tmp_path)] == [left]
    remove_folder(tmp_path / "group")  # there is none
    assert names(tmp_path) == [left]


def test_folders_of_dead_writers_are_swept_too(tmp_path: Path) -> None:
    host = processes.host()
    dead, alive = (f".group.{host}.{pid}.{processes.began(pid)}abcd.part" for pid in (dead_pid(), os.getppid()))
    for name in (dead, alive):
        (tmp_path / "store" / name / "inner").mkdir(parents=True)
        (tmp_path / "store" / name / "inner" / f".x.{host}.{dead_pid()}.0123abcd.part").touch()
    sweep_tree(tmp_path)
    assert names(tmp_path / "store") == [alive]
    assert len(names(tmp_path / "store" / alive / "inner")) == 1  # what a living writer makes is its own

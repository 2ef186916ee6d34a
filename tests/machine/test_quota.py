"""Quotas as the tools print them, through executables that stand in for the tools."""

import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from loffta.machine import quota
from loffta.machine.quota import Quota, existing_parent, free_room, lies_in_memory, parse_quota, user_quota

LFS = """Disk quotas for usr bob (uid 500):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
    /mnt/lustre  363856*  300000  400000  6d23h   35021       0   50000       -
"""
LFS_WRAPPED = """Disk quotas for usr bob (uid 500):
     Filesystem  kbytes   quota   limit   grace   files   quota   limit   grace
/mnt/a/very/long/name/of/a/mount/point
                 1000     0       0       -       7       0       0       -
"""
PLAIN = """Disk quotas for user bob (uid 500):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
      /dev/sda1     100    2000       0              12       0       0
nfs:/export/home  90000*  80000   90500   6days   1000*    900    1100   06:59
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Puts executables on an otherwise empty PATH; each keeps what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("LOGNAME", "bob")

    def add(name, prints="", code=0, first=""):
        (folder / f"{name}.out").write_text(prints)
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho "$@" > {folder}/{name}.args\n{first}\n/bin/cat {folder}/{name}.out\nexit {code}\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return folder / f"{name}.args"

    return add


@pytest.fixture
def mounted(monkeypatch):
    def mount(device, where):
        mounts = [
            SimpleNamespace(device="/dev/root", mountpoint="/"),
            SimpleNamespace(device=device, mountpoint=str(where)),
        ]
        monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)

    return mount


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (LFS, [("/mnt/lustre", (363856, 300000, 400000), (35021, 0, 50000))]),
        (LFS_WRAPPED, [("/mnt/a/very/long/name/of/a/mount/point", (1000, 0, 0), (7, 0, 0))]),
        (
            PLAIN,
            [("/dev/sda1", (100, 2000, 0), (12, 0, 0)), ("nfs:/export/home", (90000, 80000, 90500), (1000, 900, 1100))],
        ),
        ("Disk quotas for user bob (uid 500): none\n", []),
        ("", []),
        ("Filesystem  who knows what 1 2 3", []),
    ],
)
def test_what_the_tools_print(text, rows):
    assert parse_quota(text) == rows


def test_lustre(tools, tmp_path):
    asked = tools("lfs", LFS)
    assert user_quota(tmp_path / "not" / "there") == Quota("lfs quota", (400000 - 363856) * 1024, 50000 - 35021)
    assert asked.read_text() == f"quota -u bob {tmp_path}\n"


def test_no_limit_is_no_quota(tools, tmp_path):
    tools("lfs", LFS_WRAPPED)
    assert user_quota(tmp_path) is None


def test_the_row_of_the_right_file_system(tools, mounted, tmp_path):
    tools("quota", PLAIN, code=1)  # as it does when a limit is exceeded
    mounted("nfs:/export/home", tmp_path)
    assert user_quota(tmp_path / "cache") == Quota("quota", 500 * 1024, 100)
    mounted("/dev/sda1", tmp_path)
    assert user_quota(tmp_path) == Quota("quota", 1900 * 1024, None)  # a soft limit alone
    mounted("/dev/sdb1", tmp_path)
    assert user_quota(tmp_path) is None


def test_lfs_that_does_not_know_the_folder_leaves_it_to_quota(tools, mounted, tmp_path):
    tools("lfs", "", code=1)
    tools("quota", PLAIN)
    mounted("/dev/sda1", tmp_path)
    assert user_quota(tmp_path) == Quota("quota", 1900 * 1024, None)


def test_no_tool_no_quota(tools, tmp_path):
    assert user_quota(tmp_path) is None


@pytest.mark.parametrize("name", ["lfs", "quota"])
def test_a_tool_that_cannot_be_run_is_silent(tools, tmp_path, name):
    script = tools(name).with_name(name)
    script.write_text("#!/no/such/interpreter\n")
    assert user_quota(tmp_path) is None


def test_a_server_that_does_not_answer(tools, tmp_path, monkeypatch):
    tools("lfs", LFS, first="exec /bin/sleep 60")
    monkeypatch.setattr(quota, "TIMEOUT_S", 0.2)
    start = time.monotonic()
    assert user_quota(tmp_path) is None
    assert time.monotonic() - start < 30


def test_a_user_without_a_name(tools, tmp_path, monkeypatch):
    tools("lfs", LFS)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 123456789)
    assert user_quota(tmp_path) is None


def test_room_is_that_of_the_file_system(tmp_path):
    room = free_room(tmp_path / "a" / "b")
    told = os.statvfs(tmp_path)
    assert room.bytes % told.f_frsize == 0
    assert 0 < room.bytes <= told.f_blocks * told.f_frsize
    assert existing_parent(tmp_path / "a" / "b") == tmp_path.resolve()


@pytest.mark.parametrize(("counted", "files"), [(0, None), (100, 7)])
def test_file_systems_that_do_not_count_files(tmp_path, monkeypatch, counted, files):
    status = SimpleNamespace(f_bavail=3, f_frsize=512, f_files=counted, f_favail=7 if counted else 0)
    monkeypatch.setattr(os, "statvfs", lambda path: status)
    assert free_room(Path(tmp_path)) == quota.Room(1536, files)


@pytest.mark.parametrize(("kind", "found"), [("tmpfs", True), ("ext4", False)])
def test_a_folder_that_takes_memory(tmp_path, kind, found):
    """Lines as in proc_pid_mountinfo(5): optional fields vary in number; behind the hyphen comes the kind."""
    device = tmp_path.stat().st_dev
    line = f"36 35 {os.major(device)}:{os.minor(device)} / /here rw,noatime master:1 shared:7 - {kind} none rw"
    other = "22 35 0:999999 / /other rw - tmpfs none rw"
    (tmp_path / "mounts").write_text(f"{other}\n{line}\n")
    assert lies_in_memory(tmp_path, tmp_path / "mounts") is found
    assert not lies_in_memory(tmp_path, tmp_path / "missing")

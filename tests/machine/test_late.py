"""Files that show late: what is looked for again, how long, and where nobody waits."""

import subprocess
from pathlib import Path

import pytest

from loffta.machine import late
from loffta.machine.late import file_system, is_job, look_again, may_show_late

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:40 / /home rw,relatime shared:2 - nfs4 server:/home rw,vers=4.2
24 23 0:41 / /home/scratch\040of\040all rw - lustre 10.0.0.1@tcp:/lus rw
25 22 0:42 / /tmp rw master:3 - tmpfs tmpfs rw
26 22 0:43 / /odd rw - unheardof x rw
27 25 0:44 / /tmp rw - wekafs y rw
"""


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(late, "_MOUNTS", tmp_path / "mountinfo")


@pytest.mark.parametrize(
    ("folder", "kind", "is_late"),
    [
        ("/data/cache", "ext4", False),
        ("/home/ada/cache", "nfs4", True),
        ("/home/scratch of all/cache", "lustre", True),
        ("/homestead", "ext4", False),
        ("/odd", "unheardof", True),  # what nobody knows may be a network's
        ("/tmp/x", "wekafs", True),  # mounted over the tmpfs
    ],
)
def test_file_systems_by_the_table_of_mounts(folder, kind, is_late, mounts):
    assert file_system(Path(folder)) == kind
    assert may_show_late(Path(folder)) is is_late


@pytest.mark.parametrize("folder", ["/", "/dev/shm", "/proc/self"])
def test_the_types_are_those_that_stat_tells(folder):
    told = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=False).stdout
    known = {"ext2/ext3": {"ext2", "ext3", "ext4"}, "overlayfs": {"overlay"}}.get(told.strip(), {told.strip()})
    if not told or not Path("/proc/self/mountinfo").exists():
        pytest.skip("this system has no `stat -f` or no table of mounts")
    assert file_system(Path(folder)) in known


def test_where_the_system_does_not_tell_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(late, "_MOUNTS", tmp_path / "none")
    assert not may_show_late(tmp_path)


class Clock:
    """A stale folder: what is missing shows after some seconds of waiting."""

    def __init__(self, shows_after_s):
        self.waits, self.looks, self._shows_after_s = [], 0, shows_after_s

    def look(self):
        self.looks += 1
        return [] if sum(self.waits) >= self._shows_after_s else ["unit 3"]

    def sleep(self, seconds, _doing):
        self.waits.append(seconds)


def test_what_shows_late_is_not_missing(monkeypatch, capsys):
    monkeypatch.setattr(late, "may_show_late", lambda _: True)
    clock = Clock(30)
    assert look_again(clock.look, Path(), "shards", clock.sleep) == []
    assert 30 <= sum(clock.waits) < 40
    assert capsys.readouterr().err == (
        "shards cannot be seen; another node may have just written it: looking again for 60 s\n"
    )


def test_what_never_shows_is_missing_after_a_minute(monkeypatch):
    monkeypatch.setattr(late, "may_show_late", lambda _: True)
    clock = Clock(1e9)
    assert look_again(clock.look, Path(), "shards", clock.sleep) == ["unit 3"]
    assert sum(clock.waits) == 60
    assert len(clock.waits) + 1 == clock.looks <= 12  # few looks: each lists a folder


@pytest.mark.parametrize(("is_late", "shows_after_s"), [(False, 5), (True, 0)])
def test_nobody_waits_on_a_local_disk_nor_for_what_is_there(is_late, shows_after_s, monkeypatch, capsys):
    monkeypatch.setattr(late, "may_show_late", lambda _: is_late)
    clock = Clock(shows_after_s)
    assert look_again(clock.look, Path(), "shards", clock.sleep) == (["unit 3"] if shows_after_s else [])
    assert (clock.waits, clock.looks, capsys.readouterr().err) == ([], 1, "")


def test_jobs():
    assert is_job({"SLURM_JOB_ID": "1"})
    assert is_job({"PBS_JOBID": "1"})
    assert not is_job({"SLURM_CPUS_PER_TASK": "1"})

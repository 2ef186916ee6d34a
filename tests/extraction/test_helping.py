"""Shares that help each other: who is slow, who is dead, who was faster; and shares that load one after the other."""

import os

import pytest

from loffta.extraction import extract as driver
from loffta.extraction import helping
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache
from loffta.store.ledger import done_units
from loffta.store.paths import CachePaths
from loffta.store.verify import verify
from tests.extraction.filled import fill, refuse_to_load
from tests.fakes import UNIT, DenseSource, FakeBackbone, PngSource, cache_files, fake_config

N = 9 * UNIT  # nine units: three of each of three shares
DENSE, N_DENSE = {"targets": ("mask", "boxes"), "target_px": 8, "kinds": ("mean",)}, 4 * UNIT


@pytest.fixture
def images():
    return PngSource(N)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    fill(root, PngSource(N))
    return root


def thumbs(root):
    return CachePaths(root).target("thumb")


def part_of(root, unit, host, pid=7):
    """What another node has of a unit that it writes now."""
    paths = thumbs(root)
    name = f".{paths.shard(unit, 4).name}.{host}-0123abcd.{pid}.00000000.part"
    (paths.folder / name).write_bytes(b"theirs")


def in_order(root):
    """Units in the order in which they were finished, by the inode times of their done files."""
    paths = thumbs(root)
    return sorted(done_units(paths), key=lambda unit: paths.done(unit).stat().st_mtime_ns)


def test_a_share_alone_stays_with_its_own(tmp_path, images):
    report = fill(tmp_path, images, share=(1, 3))
    assert (report.units, report.helped, report.twice) == (3, 0, 0)
    assert done_units(thumbs(tmp_path)) == [1, 4, 7]
    assert report.unwritten_of == ["0/3", "2/3"]


def test_who_helps_does_its_own_first_and_then_all_that_is_missing(tmp_path, images, whole):
    report = fill(tmp_path, images, share=(1, 3), help_others=True)
    assert (report.units, report.helped, report.twice, report.unwritten_images) == (9, 6, 0, 0)
    order = in_order(tmp_path)
    assert order[:3] == [1, 4, 7]
    assert order[3] in (5, 6, 8)  # of the half of the others that their owners come to last
    assert cache_files(tmp_path) == cache_files(whole)
    assert list(verify(Cache.open(tmp_path), deep=True)) == []


def test_nothing_to_help_with_loads_no_model(tmp_path, images):
    fill(tmp_path, images)
    config = fake_config(tmp_path, share=(0, 3), help_others=True)
    report = driver.extract(config, images, refuse_to_load, StopFlag())
    assert (report.units, report.helped, report.twice) == (0, 0, 0)


def test_targets_come_with_units_of_others(tmp_path):
    fill(tmp_path / "whole", DenseSource(N_DENSE), **DENSE)
    for share in ((0, 3), (1, 3)):
        fill(tmp_path / "cache", DenseSource(N_DENSE), share=share, help_others=share == (1, 3), **DENSE)
    assert cache_files(tmp_path / "cache") == cache_files(tmp_path / "whole")


def test_units_that_others_write_are_left_to_them(tmp_path, images):
    """While there are free ones; then one that a single process writes is joined, and one of two is not."""
    fill(tmp_path, images, share=(0, 3))
    for unit, hosts in ((4, ["n1"]), (5, ["n2", "n3"])):
        for host in hosts:
            part_of(tmp_path, unit, host)
    part_of(tmp_path, 8, os.uname().nodename, pid=2**22 - 3)  # another boot's: it counts as another host
    report = fill(tmp_path, images, share=(0, 3), help_others=True)
    assert (report.units, report.helped) == (5, 5)
    order = in_order(tmp_path)[3:]
    assert {*order[:3]} == {1, 2, 7}
    assert {*order[3:]} == {4, 8}
    assert (report.unwritten_images, report.unwritten_of) == (UNIT, ["2/3"])


@pytest.mark.parametrize("look_s", [0.0, 1e9])
def test_who_is_slow_stops_and_nothing_is_undone(look_s, tmp_path, images, whole, monkeypatch):
    """Share 0 is in its first unit when share 1 does all: it gives up at its next batch, or is late at the end."""
    monkeypatch.setattr(helping, "LOOK_S", look_s)
    theirs = []

    def overtake(backbone):
        if len(backbone.batches) == 1:
            theirs.append(fill(tmp_path, images, share=(1, 2), help_others=True))
            assert theirs[0].units == 9
            stamps.update({p: p.stat().st_ino for p in tmp_path.rglob("*") if p.is_file() and ".part" not in p.name})

    stamps = {}
    slow = FakeBackbone(before=overtake)
    mine = fill(tmp_path, images, slow, share=(0, 2), help_others=True)
    assert (theirs[0].helped, theirs[0].twice) == (5, 0)
    assert (mine.helped, mine.twice) == (0, 1)
    assert len(slow.batches) == (1 if look_s == 0 else 3)  # of 3, 3 and 2 images
    assert {p: p.stat().st_ino for p in tmp_path.rglob("*") if p.is_file()} == stamps
    assert cache_files(tmp_path) == cache_files(whole)


def test_a_unit_of_others_is_given_up_with_all_that_was_written(tmp_path, monkeypatch):
    """Dense targets, too; and the units behind it are whole."""
    monkeypatch.setattr(helping, "LOOK_S", 0.0)
    fill(tmp_path / "whole", DenseSource(N_DENSE), **DENSE)
    cache, source = tmp_path / "cache", DenseSource(N_DENSE)
    fill(cache, source, share=(0, 2), **DENSE)

    def overtake(backbone):
        if len(backbone.batches) == 1:  # the first unit of others
            begun = {p.name.split(".")[2] for p in cache.rglob(".c.*.part")}
            assert len(begun) == 1
            fill(cache, source, only={int(*begun)}, **DENSE)

    report = fill(cache, source, FakeBackbone(before=overtake), share=(0, 2), help_others=True, **DENSE)
    assert (report.units, report.helped, report.twice) == (1, 1, 1)
    assert list(cache.rglob("*.part")) == []
    assert cache_files(cache) == cache_files(tmp_path / "whole")


def test_there_is_time_for_its_own_but_not_for_others(tmp_path, images, monkeypatch):
    """No error and no exit code 75: its own work is done."""
    monkeypatch.setattr(driver, "has_time", lambda _: False)
    report = fill(tmp_path, images, share=(1, 3), help_others=True)
    assert (report.units, report.helped, report.unwritten_of) == (3, 0, ["0/3", "2/3"])


def test_each_rank_of_an_environment_does_its_share(tmp_path, monkeypatch):
    """`auto`, as `srun` asks for it; helping can be switched off."""
    seen = []

    def note(config, *_, **__):
        seen.append((config.share, config.help_others))
        return driver.Report()

    monkeypatch.setattr(driver, "extract", note)
    monkeypatch.setattr(driver, "open_source", lambda _: None)
    for name, value in (("SLURM_PROCID", "2"), ("SLURM_STEP_NUM_TASKS", "5")):
        monkeypatch.setenv(name, value)
    for share, helps in (("auto", None), ("auto", False), ((0, 4), None), ((0, 4), True)):
        driver.run(fake_config(tmp_path, share=share, help_others=helps, device="cpu"), StopFlag())
    assert seen == [((2, 5), True), ((2, 5), False), ((0, 4), None), ((0, 4), True)]


class Sleeper(StopFlag):
    """A flag that notes instead of waiting."""

    def __init__(self):
        super().__init__()
        self.naps = []

    def sleep(self, seconds, doing):
        self.naps.append((seconds, doing))


@pytest.mark.parametrize(("share", "wait_s"), [((0, 4), 0.0), ((1, 4), 2.5), ((3, 4), 7.5)])
def test_shares_load_one_after_the_other(share, wait_s, tmp_path, images):
    stop, both = Sleeper(), {name: FakeBackbone(name) for name in "ab"}
    fill(tmp_path, images, both, stop, share=share, stagger=10, names=[*both])
    assert stop.naps[0] == (wait_s, "waiting for its turn to load weights")
    assert sum(seconds for seconds, _ in stop.naps) == wait_s  # once, though it loads two
    again = Sleeper()
    fill(tmp_path, images, both, again, share=share, stagger=10, names=[*both])
    assert again.naps == []  # nothing is loaded

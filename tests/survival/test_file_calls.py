"""How often a file system is asked, per unit of an extraction and per epoch of a training, counted by strace(1).

The numbers are those of docs/cluster.md, "NFS and Lustre", with a little room. What a longer run asks more than a
short one is what a unit or an epoch costs; what each asks once, to begin and to end, falls out.
"""

import re

import pytest
from loffta_cli.main import main

from tests import fakes
from tests.caches import toy_cache
from tests.traced import NEEDED, count, traced

pytestmark = NEEDED
ARRAYS = 6  # of the fake backbone: thumbnails, two grids, two means, prefixes
# of a unit and an array, by what strace calls it: opened or made, asked for size or age, made durable, ...
OF_A_UNIT = {"openat": 7, "newfstatat": 6, "fsync": 4, "rename": 2}
FORBIDDEN = ("flock", "F_SETLK", "F_OFD_SETLK", "-journal", "-wal", ".lock")
FILE_NAME = re.compile(r'[/"]([^/"<>]+)[">]')


@pytest.fixture(scope="module")
def extractions(tmp_path_factory):
    """Traces of extractions of 2 and of 4 units."""
    return {n: _extraction(tmp_path_factory.mktemp(f"units-{n}"), n) for n in (2, 4)}


def _extraction(folder, n_units):
    words = [folder / "cache", "--images", fakes.UNIT * n_units, "--delay-s", 0]
    return traced(folder, folder / "cache", fakes.main, words)


def test_calls_of_a_unit(extractions):
    few, many = (count(extractions[n]) for n in (2, 4))
    of_a_unit = {name: (many[name] - few[name]) / 2 / ARRAYS for name in many}
    print({name: round(number, 2) for name, number in of_a_unit.items() if number})
    assert {name for name, number in of_a_unit.items() if number > 0} <= OF_A_UNIT.keys()  # no listing, no unlink
    assert all(of_a_unit[name] <= most for name, most in OF_A_UNIT.items()), of_a_unit
    assert of_a_unit["rename"] == 2  # it counts: a shard and its done file


def test_files_of_a_cache_are_of_units_not_of_images(extractions):
    names = {n: {match for line in extractions[n] for match in FILE_NAME.findall(line)} for n in extractions}
    made = {n: {name for name in names[n] if re.fullmatch(r"c(\.\d+)+|u\d+\.parquet", name)} for n in names}
    assert {name for name in made[4] if name.startswith("u")} == {f"u{unit:06d}.parquet" for unit in range(4)}
    assert len(made[4]) == 2 * len(made[2])
    assert not any(".png" in line for line in extractions[4])


def test_there_are_no_locks(extractions):
    assert not [line for line in extractions[4] if any(word in line for word in FORBIDDEN)]


def _train(cache, run, feed, epochs):
    words = ["train", cache, "--head", "linear", "--feed", feed, "--device", "cpu", "--checkpoint-s", "1000"]
    return main([*map(str, words), "--set", f"epochs={epochs}", "--set", "batch_size=4", "--out", str(run)])


@pytest.mark.parametrize("feed", ["stream", pytest.param("host", marks=pytest.mark.long)])
def test_an_epoch_asks_for_nothing(feed, tmp_path):
    """Shards are opened once for the whole training; batches are read from what is open."""
    cache = toy_cache(tmp_path / "cache").paths.root
    found = {}
    for epochs in (1, 4):
        folder = tmp_path / str(epochs)
        folder.mkdir()
        found[epochs] = count(traced(folder, cache, _train, cache, folder / "run", feed, epochs))
    assert found[1]["openat"] > 0
    assert found[1] == found[4]

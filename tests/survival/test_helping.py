"""`loffta extract --help-others` held, killed and gone on with: the cache is that of one undisturbed run."""

import json
import signal

from tests.survival.commands import Command, loffta
from tests.survival.test_overlap import assert_same

COMMIT = "loffta.store.writer:UnitWriter.commit"  # thumbnails, grid and prefix: three of a unit


def helping(share):
    return ["--shard", share, "--help-others", "--json"]


def test_a_helper_killed_in_a_unit_of_others(tmp_path, extract_words, whole):
    """Of six units it has done its own two; another worker does the rest, that one included."""
    cache = tmp_path / "cache"
    killed = Command(tmp_path, *extract_words, cache, *helping("0/3"), hold=COMMIT, n_hold=8).wait_held()
    done = {path.name for path in cache.glob("done/*/prefix-0/*")}
    assert done == {"u000000.parquet", "u000003.parquet"}
    assert killed.signal(signal.SIGKILL).finish().code == -signal.SIGKILL
    assert list(cache.rglob("*.part"))
    report = json.loads(loffta(tmp_path, *extract_words, cache, *helping("1/3")).out.splitlines()[-1])
    assert (report["units"], report["helped"], report["unwritten_images"]) == (4, 2, 0)
    assert_same(cache, whole)


def test_an_owner_that_is_slow_and_one_that_is_killed(tmp_path, extract_words, whole):
    """Both stand in their first units; a third worker joins them, and all is there before they move again."""
    cache = tmp_path / "cache"
    slow = Command(tmp_path, *extract_words, cache, *helping("0/3"), hold=COMMIT).wait_held()
    dies = Command(tmp_path, *extract_words, cache, *helping("1/3"), hold=COMMIT).wait_held()
    report = json.loads(loffta(tmp_path, *extract_words, cache, *helping("2/3")).out.splitlines()[-1])
    assert (report["units"], report["helped"], report["twice"], report["unwritten_images"]) == (6, 4, 0, 0)
    dies.signal(signal.SIGKILL)
    assert dies.finish().code == -signal.SIGKILL
    done = slow.go().finish()
    assert done.code == 0, done.err
    late = json.loads(done.out.splitlines()[-1])
    assert late["helped"] == 0
    assert 1 <= late["twice"] == late["units"] <= 3  # whose commits were waiting behind the held one
    assert "0 units of other shares written; " in done.out
    assert "nothing to do" in loffta(tmp_path, *extract_words, cache).out  # and sweeps what the killed one left
    assert_same(cache, whole)

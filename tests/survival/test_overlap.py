"""Several `loffta extract` on one cache, by mistake or by share, and one of them killed."""

import signal

from tests.fakes import cache_files
from tests.survival.commands import Command, loffta


def assert_same(found, expected):
    assert list(found.rglob("*.part")) == []
    assert cache_files(found) == cache_files(expected)


def test_four_by_mistake(tmp_path, extract_words, whole):
    running = [Command(tmp_path, *extract_words, tmp_path / "cache") for _ in range(4)]
    assert [command.finish().code for command in running] == [0] * 4
    assert_same(tmp_path / "cache", whole)


def test_four_shares_one_of_them_killed(tmp_path, extract_words, whole):
    cache = tmp_path / "cache"
    place = "loffta.store.writer:UnitWriter.commit"  # its second unit, some of whose arrays are in place
    killed = Command(tmp_path, *extract_words, cache, "--shard", "1/4", hold=place, n_hold=6).wait_held()
    others = [Command(tmp_path, *extract_words, cache, "--shard", f"{i}/4") for i in (0, 2, 3)]
    assert [command.finish().code for command in others] == [0] * 3
    assert list(cache.rglob("*.part"))  # of a living process: swept by none of the others
    killed.signal(signal.SIGKILL)
    assert killed.finish().code == -signal.SIGKILL
    prefix = {path.name for path in cache.glob("done/*/prefix-0/*")}
    assert prefix == {f"u00000{unit}.parquet" for unit in (0, 1, 2, 3, 4)}
    assert "1 unit, " in loffta(tmp_path, *extract_words, cache).out
    assert_same(cache, whole)

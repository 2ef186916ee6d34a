"""A node whose file system shows a folder as it was: nothing is written anew, deleted or refused for that."""

import shutil
import time

import numpy as np
import pytest

from loffta.dataset.features import choose_features, usable_rows
from loffta.errors import DamageFound, LofftaError
from loffta.machine import late
from loffta.store import ledger, purge
from loffta.store.cache import Cache
from loffta.store.paths import CachePaths
from loffta.store.purge import forget_missing, still_lost
from loffta.store.verify import verify
from tests.caches import UNIT, FakeStore, make_cache, make_table

N = 3 * UNIT


@pytest.fixture
def cache(tmp_path):
    grids = {"s.0": np.random.default_rng(0).normal(size=(N, 2, 2, 3)).astype(np.float32)}
    return make_cache(tmp_path / "cache", make_table(np.arange(N) % 2, ["train"] * N), [FakeStore("net", grids)])


@pytest.fixture
def naps(monkeypatch):
    """Seconds that were waited, on a file system of several machines; nobody really waits."""
    monkeypatch.setattr(late, "may_show_late", lambda _: True)
    naps = []
    monkeypatch.setattr(time, "sleep", naps.append)
    return naps


@pytest.fixture
def hide(naps, monkeypatch):
    """Names that listings do not show before so many seconds have passed; the files are there."""

    def hide(module, name, hidden, seconds):
        real = getattr(module, name)

        def stale(*arguments):
            found = real(*arguments)
            return found if sum(naps) >= seconds else [one for one in found if one not in hidden]

        monkeypatch.setattr(module, name, stale)

    return hide


def test_a_shard_that_shows_late_is_not_written_anew(cache, naps, hide):
    array = cache.stores()[0].arrays[0]
    shard = array.paths.shard(1, array.layout.ndim)
    hide(purge, "names_in", [shard.name], 20)
    assert forget_missing(cache) == ([], {})
    assert 20 <= sum(naps) < 60
    assert array.paths.done(1).exists()
    naps.clear()
    assert list(verify(cache)) == []
    usable_rows(cache, choose_features(cache, [], ("grid",), default_taps="all"), "train")
    shard.unlink()
    naps.clear()
    with pytest.raises(DamageFound, match=r"1 shard of a finished unit is gone"):
        usable_rows(cache, choose_features(cache, [], ("grid",), default_taps="all"), "train")
    assert sum(naps) == 60
    assert forget_missing(cache) == ([], {array.paths.name: [1]})
    assert not array.paths.done(1).exists()


def test_units_that_the_last_job_wrote_on_another_node_are_waited_for_in_a_job(cache, naps, hide, monkeypatch):
    """Two arrays' ledgers were read before; elsewhere the error comes at once: nothing vouches for a unit."""
    features = choose_features(cache, [], ("grid",), default_taps="all")
    hide(ledger, "done_units", [2], 5)
    with pytest.raises(LofftaError, match=f"{UNIT} of the {N} images of split 'train' have no features yet"):
        usable_rows(cache, features, "train")
    assert naps == []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert len(usable_rows(cache, features, "train")) == N
    assert 5 <= sum(naps) < 20
    features[0].array.paths.done(2).unlink()
    features[0].array.forget_ledger()
    naps.clear()
    with pytest.raises(LofftaError, match="have no features yet"):
        usable_rows(cache, features, "train")
    assert sum(naps) == 60


def test_metadata_that_shows_late_is_not_lost(cache, naps):
    metadata = cache.stores()[0].arrays[0].paths.metadata
    aside = metadata.with_suffix(".aside")
    metadata.rename(aside)
    naps_before_it_shows = iter(range(3))

    def sleep(seconds, _doing):
        naps.append(seconds)
        if next(naps_before_it_shows, None) == 2:
            aside.rename(metadata)

    assert still_lost(cache, sleep) == []
    assert len(naps) == 3


def test_a_misspelt_cache_is_missing_at_once(cache, naps):
    with pytest.raises(LofftaError, match="cache"):
        Cache.open(cache.paths.root.with_name("cahce"))
    with pytest.raises(LofftaError, match="nat"):
        choose_features(cache, ["nat"], ("grid",), default_taps="all")
    shutil.rmtree(CachePaths(cache.paths.root).stores)
    shutil.rmtree(CachePaths(cache.paths.root).done)
    with pytest.raises(LofftaError, match="the cache has no features yet"):
        choose_features(cache, [], ("grid",), default_taps="all")
    assert naps == []

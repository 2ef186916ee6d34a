"""A folder that may not be read is not taken for an empty one, which would read as features that are gone."""

import os

import pytest

from loffta.store.activity import find_orphans
from loffta.store.cache import Cache
from loffta.store.purge import forget_missing, lost_metadata
from tests.caches import toy_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return toy_cache(tmp_path_factory.mktemp("sound") / "cache")


def shard_sizes(cache: Cache):
    return [array.paths.shard_sizes() for array in cache.arrays()]


@pytest.mark.parametrize(
    ("look", "closed"),
    [
        (lost_metadata, "done"),
        (lost_metadata, "done/STORE"),
        (lost_metadata, "done/STORE/grid-0"),
        (forget_missing, "done/STORE/grid-0"),
        (lambda cache: find_orphans(cache, [], []), "stores"),
        (lambda cache: find_orphans(cache, [], []), "done"),
        (lambda cache: find_orphans(cache, [], []), "done/STORE"),
        (shard_sizes, "stores/STORE/grid-0"),
        (lambda cache: cache.paths.remains(), "stores"),
        (lambda cache: cache.paths.remains(), "done/STORE"),
    ],
)
def test_a_closed_folder_is_an_error(cache, monkeypatch, look, closed):
    folder = str(cache.paths.root / closed.replace("STORE", cache.paths.store_names()[0]))

    def refusing(real):  # root may read everything
        def listed(path="."):
            if str(path) == folder:
                raise PermissionError(13, "Permission denied", folder)
            return real(path)

        return listed

    look(cache)
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(PermissionError):
        look(cache)


def test_shards_are_weighed(cache):
    found = shard_sizes(cache)
    folders = [array.paths.folder for array in cache.arrays()]
    assert found == [{path.name: path.stat().st_size for path in folder.glob("c.*")} for folder in folders]
    assert all(found)

"""What the tests of this folder share."""

import numpy as np
import pytest

from loffta.dataset.features import choose_features
from tests.caches import FakeStore, make_cache, make_table
from tests.feed.arrays import N, arrays


@pytest.fixture(scope="module", params=["float16", "float32"])
def made(request, tmp_path_factory):
    """A cache, its features of kind grid, and the same as numpy arrays [N, L, ...]."""
    first, dtype = arrays(request.param), request.param
    other = np.random.default_rng(2).normal(size=(N, 1, 1, 8)).astype(dtype)
    stores = [FakeStore("net", first, dtype=dtype), FakeStore("other", {"x": other}, dtype=dtype)]
    table = make_table(np.zeros(N), ["train"] * N)
    cache = make_cache(tmp_path_factory.mktemp(dtype) / "cache", table, stores, bad=(1,))
    features = choose_features(cache, ["net:s.0,s.1,s.3", "other"], ("grid",), default_taps="all")
    expected = [first["s.0"][:, None], np.stack([first["s.1"], first["s.3"]], axis=1), other[:, None]]
    return cache, features, expected

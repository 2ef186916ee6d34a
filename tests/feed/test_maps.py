"""Maps of dense targets come with the features of their images, from wherever these are."""

import numpy as np
import pytest
import torch

from loffta.dataset.features import Feature, choose_features
from loffta.feed import batches as module
from loffta.feed.batches import Feed
from loffta.feed.modes import Placement
from loffta.tokens import FeatureSpec
from tests.caches import FakeStore, make_cache, make_table
from tests.dense import write_maps
from tests.feed.arrays import ROWS, WINDOW_OF_2, N, arrays

KINDS = {"mask": "uint8", "instances": "uint16"}
MAPS = np.random.default_rng(3).integers(0, 65_536, (N, 5, 5))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    table = make_table(np.zeros(N), ["train"] * N)
    return make_cache(tmp_path_factory.mktemp("maps") / "cache", table, [FakeStore("net", arrays())])


@pytest.fixture(scope="module")
def written(cache):
    store = cache.stores()[0]
    for kind, dtype in KINDS.items():
        write_maps(cache, kind, MAPS.astype(dtype))
    return {dtype: cache.training_target(kind, store) for kind, dtype in KINDS.items()}


def feature_of(cache, array):
    spec = FeatureSpec("images", ("mask",), "thumb", (5, 5), 5)
    return Feature(cache.stores()[0], array, spec)


@pytest.mark.parametrize("order", ["uniform", "windowed"])
@pytest.mark.parametrize("mode", ["host", "stream", "device"])
@pytest.mark.parametrize(("dtype", "expected"), [("uint8", torch.uint8), ("uint16", torch.int32)])
def test_maps_are_those_of_the_images(cache, written, monkeypatch, mode, order, dtype, expected):
    if mode == "device":  # the CPU stands in for an accelerator
        monkeypatch.setattr(module, "choose_placements", lambda f, *_: [Placement("device", "")] * len(f))
        mode = "auto"
    features = choose_features(cache, ["net:s.0"], ("grid",), default_taps="all")
    maps = feature_of(cache, written[dtype])
    rows = np.sort(ROWS)
    with Feed(features, rows, batch_size=2, mode=mode, order=order, window=WINDOW_OF_2, maps=maps) as feed:
        assert maps.array.paths.folder.name in feed.describe()
        for begin in (lambda: feed.epoch(0), lambda: feed.epoch(1), feed.in_order):
            check(begin(), dtype, expected, len(rows))
        with Feed(features, rows[2:9], batch_size=3, maps=maps, of=feed) as part:
            check(part.epoch(0), dtype, expected, 7)


def check(batches, dtype, expected, n_images):
    n = 0
    for batch in batches:
        assert batch.targets.maps.dtype == expected
        assert np.array_equal(batch.targets.maps.numpy(), MAPS.astype(dtype)[batch.rows.numpy()].astype(np.int64))
        assert np.array_equal(batch.features[0].numpy(), arrays()["s.0"][batch.rows.numpy()][:, None])
        n += len(batch.rows)
    assert n == n_images


def test_without_maps_there_are_no_targets(cache):
    features = choose_features(cache, ["net:s.0"], ("grid",), default_taps="all")
    with Feed(features, ROWS, batch_size=5) as feed:
        assert {batch.targets for batch in feed.in_order()} == {None}

"""int8 features in a feed: decoded to the bits that others read, refused where their scales are not theirs."""

import numpy as np
import pytest
import torch
import zarr

from loffta.dataset.features import choose_features
from loffta.errors import DamageFound
from loffta.feed.batches import Feed
from loffta.feed.modes import bytes_per_image
from loffta.files.durable import remove_folder
from loffta.store.cache import Cache
from loffta.store.scales import Scales, create_scales
from tests.caches import FakeStore, make_cache, make_table
from tests.feed.arrays import ROWS, N, arrays, copies


def int8_cache(root, kinds=("grid",)):
    cache = make_cache(
        root, make_table(np.zeros(N), ["train"] * N), [FakeStore("net", arrays(), dtype="int8", kinds=kinds)]
    )
    return cache, choose_features(cache, ["net:s.0,s.1,s.3"], (kinds[0],), default_taps="all")


def decoded(feature):
    """[N, L, ...] of the feature's taps through zarr-python and the formula of the documentation."""
    paths = feature.array.paths
    codes, scale, zero = (
        np.asarray(zarr.open_array(store=folder, mode="r")[...])
        for folder in (paths.folder, paths.scales / "scale", paths.scales / "zero")
    )
    values = (codes.astype(np.float32) - zero[None, :, None, None]) * scale[None, :, None, None]
    return np.where(codes == -128, np.float32(np.nan), values)[
        :, [feature.array.taps.index(t) for t in feature.spec.taps]
    ]


@pytest.mark.parametrize("mode", ["host", "stream"])
def test_int8_is_decoded_to_the_same_bits_that_others_read(tmp_path, mode):
    _, features = int8_cache(tmp_path / "cache")
    expected = [decoded(feature) for feature in features]
    with Feed(features, ROWS, batch_size=5, mode=mode, seed=3) as feed:
        for rows, tensors in copies(feed.epoch(0)) + copies(feed.in_order()):
            for tensor, values in zip(tensors, expected, strict=True):
                assert tensor.dtype == torch.float32
                assert np.array_equal(tensor.numpy(), values[rows])
        if mode == "host":
            assert [source.held.dtype for source in feed._sources] == [np.int8] * len(features)
        assert all(buffer.dtype == torch.int8 for slot in feed._slots for buffer in slot.buffers)
    truth = np.stack([arrays()["s.1"], arrays()["s.3"]], axis=1).astype(np.float32)
    assert np.abs(expected[1] - truth).max() < 0.05
    assert bytes_per_image(features) == 4 * 4 * 3 + 2 * 2 * 3 * 5


@pytest.mark.parametrize("mode", ["host", "stream"])
def test_the_mean_of_an_int8_grid_is_the_mean_of_what_it_stands_for(tmp_path, mode):
    cache, grids = int8_cache(tmp_path / "cache")
    features = choose_features(cache, ["net:s.0,s.1,s.3"], ("mean",), default_taps="all")
    expected = [decoded(feature).astype(np.float64).mean(axis=(2, 3)) for feature in grids]
    with Feed(features, ROWS, batch_size=5, mode=mode) as feed:
        for rows, tensors in copies(feed.epoch(0)):
            for tensor, values in zip(tensors, expected, strict=True):
                assert tensor.dtype == torch.float32
                np.testing.assert_allclose(tensor.numpy(), values[rows], rtol=1e-5, atol=1e-6)
    assert bytes_per_image(features) == 4 * (3 + 2 * 5)


def test_a_mean_stored_beside_int8_grids_is_float16(tmp_path):
    _, features = int8_cache(tmp_path / "cache", ("mean", "grid"))
    with Feed(features, ROWS, batch_size=5) as feed:
        for rows, (first, _) in copies(feed.epoch(0)):
            assert first.dtype == torch.float16
            expected = arrays()["s.0"].mean(axis=(1, 2), dtype=np.float32).astype(np.float16)
            np.testing.assert_allclose(first[:, 0].numpy(), expected[rows], atol=1e-3)
    assert bytes_per_image(features) == 2 * (3 + 2 * 5)


def test_a_code_that_says_missing_is_nan(tmp_path):
    """A quarantined row is never asked for; should its chunk be there and empty, it poisons the loss visibly."""
    _, (feature, *_) = int8_cache(tmp_path / "cache")
    raw = torch.full((2, 1, 4, 4, 3), -128, dtype=torch.int8)
    raw[0] = 5
    assert feature.finish(raw).isnan().flatten(1).all(dim=1).tolist() == [False, True]


def test_scales_that_the_units_do_not_know_are_refused(tmp_path):
    cache, (feature, *_) = int8_cache(tmp_path / "cache")
    ones = np.ones((1, 3), np.float32)
    remove_folder(feature.array.paths.scales)
    create_scales(feature.array.paths, feature.array.layout, Scales(ones, ones), {})
    fresh = choose_features(Cache.open(cache.paths.root), ["net:s.0"], ("grid",), default_taps="all")
    with (
        Feed(fresh, ROWS, batch_size=5, mode="stream") as feed,
        pytest.raises(DamageFound, match=r"not those that its units were written with(.|\n)*--repair"),
    ):
        next(feed.in_order())

"""Pictures of augmented features: colours against scikit-learn, maps against the features that they show."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from loffta.augment import AugmentConfig, from_preset
from loffta.dataset.features import choose_features
from loffta.reporting.augmented import Colours, augmented_section, principal_axes
from loffta.store.ledger import OK, ImageStatus
from loffta.store.writer import Stored, UnitWriter
from tests.caches import FakeStore, make_cache, make_table

FLIP = AugmentConfig(hflip_p=1.0)
N_IMAGES = 12


@pytest.fixture
def cache(tmp_path):
    rng = np.random.default_rng(0)
    grids = {
        "a.0": rng.normal(size=(N_IMAGES, 6, 6, 5)).astype(np.float32),
        "a.1": rng.normal(size=(N_IMAGES, 6, 6, 5)).astype(np.float32),
    }
    table = make_table([0, 1] * 6, ["train"] * N_IMAGES)
    return make_cache(tmp_path / "cache", table, [FakeStore("<net>", grids, dtype="float32")], bad=(0,))


def feature_of(cache, kind="grid"):
    return choose_features(cache, [], [kind], default_taps="all")[0]


def rows_of_pictures(text):
    """Per image: its pictures as arrays."""
    strips = re.findall(r'<figure class="strip">.*?</figure>', text)
    uris = [re.findall(r"data:image/png;base64,([^\"]+)", strip) for strip in strips]
    return [[np.array(Image.open(io.BytesIO(base64.b64decode(uri)))) for uri in row] for row in uris]


def add_thumbs(cache):
    thumbs = cache.thumbs(create=True)
    for unit in range(cache.n_units):
        rows = cache.rows_of_unit(unit)
        values = np.stack([np.full((8, 8, 3), 10 * row, np.uint8) for row in rows])
        writer = UnitWriter(thumbs.paths, thumbs.layout, unit)
        stored = Stored(values, np.ones((len(rows), 4), bool), np.zeros((len(rows), 4), np.float32))
        writer.append(list(rows), stored, [cache.table.keys[row] for row in rows])
        writer.commit([ImageStatus(row, OK, "") for row in rows], {})


def test_axes_are_scikit_learns_with_fixed_signs():
    tokens = np.random.default_rng(0).normal(size=(200, 7)) * np.arange(1, 8)
    tokens -= tokens.mean(0)
    axes = principal_axes(tokens, 3)
    expected = PCA(3, svd_solver="full").fit(tokens).components_
    np.testing.assert_allclose(np.abs(axes), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
    assert (axes[np.arange(3), np.abs(axes).argmax(1)] > 0).all()


@pytest.mark.parametrize("n_channels", [1, 2, 4])
def test_directions_that_are_not_there_are_dark(n_channels):
    maps = np.zeros((1, 4, 4, n_channels), np.float32)
    maps[0, :, :, 0] = np.arange(16).reshape(4, 4)
    painted = Colours(maps).paint(maps)
    assert (painted[..., 1:] == 0).all()
    red = painted[0, :, :, 0].astype(int).ravel()
    assert (np.diff(red) >= 0).all()
    assert (red[0], red[-1]) == (0, 255)
    assert (Colours(maps * 0 + 3).paint(maps * 0 + 3) == 0).all()


def test_the_pictures_are_the_maps_of_the_last_tap(cache):
    text = augmented_section(cache, feature_of(cache), FLIP, seed=0)
    rows = rows_of_pictures(text)
    shown = [1, 4, 8, 11]  # evenly spaced; 0 is quarantined
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == [cache.table.keys[row] for row in shown]
    store = np.random.default_rng(0).normal(size=(2, N_IMAGES, 6, 6, 5))[1].astype(np.float32)
    expected = Colours(store[shown]).paint(store[shown])
    for (plain, *augmented), painted in zip(rows, expected, strict=True):
        assert (plain == painted).all()
        assert len(augmented) == 3
        assert all((drawn == painted[:, ::-1]).all() for drawn in augmented)


def test_draws_differ_by_image_and_number_but_not_by_call(cache):
    config = from_preset("loff-ta", {"mixup_alpha": 0.5})
    feature = feature_of(cache)
    text = augmented_section(cache, feature, config, seed=1)
    drawn = [picture.tobytes() for row in rows_of_pictures(text) for picture in row]
    assert len(set(drawn)) == 4 * 4
    assert augmented_section(cache, feature, config, seed=1) == text
    assert augmented_section(cache, feature, config, seed=2) != text


def test_thumbnails_stand_in_front_where_there_are_some(cache):
    assert "the image," not in augmented_section(cache, feature_of(cache), FLIP, seed=0)
    add_thumbs(cache)
    text = augmented_section(cache, feature_of(cache), FLIP, seed=0)
    assert "the image," in text
    rows = rows_of_pictures(text)
    assert [row[0].shape for row in rows] == [(8, 8, 3)] * 4
    assert [int(row[0][0, 0, 0]) for row in rows] == [10, 40, 80, 110]
    assert all(len(row) == 5 for row in rows)


def test_settings_and_names_are_shown_and_escaped(cache):
    text = augmented_section(cache, feature_of(cache), from_preset("trivial", {"noise_std": 0.1}), seed=0)
    assert "trivial True, noise_std 0.1" in text
    assert "&lt;net&gt;, a.1, 6 x 6 tokens" in text
    assert "<net>" not in text


def test_nothing_to_show(cache):
    assert augmented_section(cache, feature_of(cache), AugmentConfig(), seed=0) == ""
    assert augmented_section(cache, feature_of(cache, "mean"), FLIP, seed=0) == ""

"""Views: an epoch shows every image once, in a view that seed and epoch draw; every batch against the arrays."""

from dataclasses import replace

import numpy as np
import pytest

from loffta.dataset.features import choose_features
from loffta.feed import batches as module
from loffta.feed.batches import Feed
from loffta.feed.modes import Placement
from tests.caches import FakeStore, make_cache, make_table
from tests.feed.arrays import ROWS, WINDOW_OF_2, N

N_VIEWS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The features of a cache with those of two more views, and all of them as arrays [V, N, 1, 2, 2, 3]."""
    grids = np.random.default_rng(4).normal(size=(N_VIEWS, N, 2, 2, 3)).astype(np.float16)
    stores = [FakeStore("net", {"a": one}, view={"index": i - 1} if i else None) for i, one in enumerate(grids)]
    cache = make_cache(tmp_path_factory.mktemp("views") / "cache", make_table(np.zeros(N), ["train"] * N), stores)
    names = {(s.info.recipe["view"] or {"index": -1})["index"]: s.name for s in cache.stores()}
    whole, *views = (choose_features(cache, [names[i - 1]], ("grid",), default_taps="all")[0] for i in range(N_VIEWS))
    return [replace(whole, views=tuple(views))], grids[:, :, None]


@pytest.mark.parametrize("order", ["uniform", "windowed"])
@pytest.mark.parametrize("mode", ["host", "stream", "device"])
def test_every_image_comes_in_the_view_that_its_batch_names(made, monkeypatch, mode, order):
    if mode == "device":  # the CPU stands in for an accelerator
        monkeypatch.setattr(module, "choose_placements", lambda f, *_: [Placement("device", "")] * len(f))
        mode = "auto"
    features, grids = made
    rows, seen = np.sort(ROWS), np.zeros((N_VIEWS, N), int)
    with Feed(features, rows, batch_size=2, mode=mode, order=order, window=WINDOW_OF_2, views=True) as feed:
        for epoch in range(12):
            shown = 0
            for batch in feed.epoch(epoch):
                here = batch.rows.numpy()
                assert np.array_equal(batch.features[0].numpy(), grids[batch.views, here])
                np.add.at(seen, (batch.views, here), 1)
                shown += len(here)
            assert shown == len(rows)
        assert (seen[:, rows].sum(0) == 12).all()
        assert (seen[:, rows].sum(1) > 12 * len(rows) / 6).all(), "of each view about a third"
        assert all((batch.views == 0).all() for batch in feed.in_order()), "measured are whole images"
        with Feed(features, rows[2:9], batch_size=3, of=feed, views=True) as part:
            for batch in part.epoch(5):
                assert np.array_equal(batch.features[0].numpy(), grids[batch.views, batch.rows.numpy()])


def test_views_depend_on_seed_and_epoch_alone(made):
    features, _ = made

    def shown(seed, epoch, *, start=0):
        with Feed(features, ROWS, batch_size=5, seed=seed, views=True, n_threads=2) as feed:
            return [batch.views.tolist() for batch in feed.epoch(epoch, start)]

    assert shown(0, 3) == shown(0, 3)
    assert shown(0, 3)[1:] == shown(0, 3, start=1)
    assert shown(0, 3) != shown(0, 4)
    assert shown(0, 3) != shown(1, 3)


def test_unasked_images_are_shown_whole(made):
    features, grids = made
    with Feed(features, ROWS, batch_size=5) as feed:
        for batch in feed.epoch(0):
            assert batch.views is None
            assert np.array_equal(batch.features[0].numpy(), grids[0, batch.rows.numpy()])

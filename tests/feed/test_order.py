"""Orders against their definitions: each image once, windows made of runs, nothing but seed and epoch decides."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loffta.feed.order import (
    Window,
    choose_window,
    describe_ordering,
    neighbour_share,
    ordering_of,
    uniform_order,
    windowed_order,
)


def test_uniform_is_the_permutation_of_seed_and_epoch():
    """Written out: runs of former versions are repeated by it."""
    assert uniform_order(8, 0, 0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]
    assert sorted(uniform_order(100, 3, 2)) == list(range(100))
    assert len({tuple(uniform_order(9, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@given(st.integers(0, 60), st.integers(1, 5), st.integers(1, 7), st.integers(0, 3), st.integers(0, 2))
def test_windows_are_made_of_runs(n, n_batches, run, seed, epoch):
    """Every image once; a window is few runs of neighbours: no more pieces than its length and its two cuts make."""
    rows = np.random.default_rng(seed).permutation(3 * n)[:n]
    window = Window(4 * n_batches, run)
    order = windowed_order(rows, window, seed, epoch)
    assert sorted(order) == list(range(n))
    assert order.tolist() == windowed_order(rows, window, seed, epoch).tolist()
    rank = {row: i for i, row in enumerate(sorted(rows.tolist()))}
    for begin in range(0, n, window.n_images):
        ranks = sorted(rank[row] for row in rows[order[begin : begin + window.n_images]].tolist())
        pieces = 1 + sum(b - a > 1 for a, b in pairwise(ranks))
        # the first and the last run of an epoch are shorter, and a window's border may cut two more
        assert pieces <= -(-len(ranks) // run) + 4


def test_runs_are_cut_elsewhere_and_mixed_otherwise_in_each_epoch():
    rows = np.arange(64)
    orders = {tuple(windowed_order(rows, Window(16, 4), seed, epoch)) for seed in (0, 1) for epoch in range(8)}
    assert len(orders) == 16
    cuts = set()
    for epoch in range(12):
        first_window = sorted(windowed_order(rows, Window(4, 4), 0, epoch)[:4].tolist())
        cuts.add(first_window[0] % 4)
    assert len(cuts) > 1


def test_a_window_is_mixed():
    """Within a window every place is as likely: the mean place of an image over many epochs is the middle."""
    places = np.array([np.argsort(windowed_order(np.arange(8), Window(8, 2), 0, epoch)) for epoch in range(2000)])
    assert np.abs(places.mean(axis=0) - 3.5).max() < 0.25


@pytest.mark.parametrize(
    ("bytes_per_image", "n_images", "batch_size", "expected"),
    [
        (3_612_672, 100_000, 64, Window(256, 2)),  # ComBo's 12 taps of 196 x 768: 0.9 GB
        (394_752, 100_000, 64, Window(2_688, 11)),  # LOFF-TA's one tap of 257 x 768: 1.1 GB
        (3_612_672, 100, 64, Window(128, 2)),  # no more than there are
        (50_000_000, 1_000, 16, Window(64, 1)),  # four batches at least
        (1_000, 10_000_000, 64, Window(1_073_728, 4_195)),
        (1, 10, 64, Window(64, 2)),
    ],
)
def test_choose_window(bytes_per_image, n_images, batch_size, expected):
    assert choose_window(bytes_per_image, n_images, batch_size) == expected


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 5))
def test_neighbour_share(n, batch_size, seed):
    rng = np.random.default_rng(seed)
    rows, order = rng.permutation(2 * n)[:n], rng.permutation(n)
    on_disk, together = sorted(rows.tolist()), 0
    for begin in range(0, n, batch_size):
        batch = set(rows[order[begin : begin + batch_size]].tolist())
        for row in batch:
            i = on_disk.index(row)
            together += bool(batch & set(on_disk[max(0, i - 1) : i] + on_disk[i + 1 : i + 2]))
    assert neighbour_share(rows, order, batch_size) == pytest.approx(together / n if n else 0.0)


def test_what_the_share_tells():
    """A window of 256 images in runs of 8 brings neighbours together in batches of 64 far more often than chance."""
    rows = np.arange(4096)
    share = [neighbour_share(rows, order, 64) for order in (uniform_order(4096, 0, 0), np.arange(4096))]
    assert share[0] < 0.05
    assert share[1] == 1.0
    assert 0.2 < neighbour_share(rows, windowed_order(rows, Window(256, 8), 0, 0), 64) < 0.6


def test_an_order_comes_back_from_its_words():
    assert ordering_of(describe_ordering("windowed", Window(64, 4))) == ("windowed", Window(64, 4))
    assert ordering_of(describe_ordering("uniform", Window(64, 4))) == ("uniform", None)
    assert describe_ordering("uniform", Window(64, 4)) == describe_ordering("uniform", Window(32, 2))

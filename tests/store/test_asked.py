"""Limited rows: every split has its share, and its share is spread over it."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from loffta.store.asked import limited_rows

sets = st.lists(st.sampled_from(["train", "val", "test"]), min_size=1, max_size=80)


@given(sets, st.integers(1, 100))
@example(["train", "val", "test", "test", "test", "test"], 3)  # two shares of one are over theirs, and stay
def test_shares(splits, limit):
    rows = limited_rows(splits, limit).tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == min(limit, len(splits))
    for split in set(splits):
        share, size = sum(splits[row] == split for row in rows), splits.count(split)
        exact = limit * size / len(splits)
        assert share <= size
        if limit >= 3:
            assert share >= 1
        assert share > min(exact, size) - 2  # less than two off: the remainder, and what a rare split was given
    assert np.array_equal(limited_rows(splits, limit), rows)


def test_sorted_classes_all_have_their_part():
    """Three classes one behind the other, as folders are listed, and a test split of a tenth."""
    splits = ["train"] * 900 + ["test"] * 100
    classes = np.concatenate([np.repeat(range(3), 300), np.repeat(range(4), 25)])
    for limit in (10, 50, 333):
        rows = limited_rows(splits, limit)
        train = rows[rows < 900]
        assert len(train) == round(limit * 0.9)
        assert np.bincount(classes[train]).min() >= len(train) // 5


def test_neighbours_stay_together():
    """A thousand of a million images are 16 stretches, not a thousand units of one image."""
    rows = limited_rows(["train"] * 1_000_000, 1000)
    assert (np.diff(rows) > 1).sum() == 15

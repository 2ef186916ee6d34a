"""demo:digits against scikit-learn's arrays, pixel for pixel."""

import numpy as np
from sklearn.datasets import load_digits

from loffta.images.demo import Digits, open_demo
from loffta.images.rgb import to_rgb
from loffta.look import OLD
from tests.imagesets import decode


def pixels_of(data):
    """[H, W, 3] as decoded."""
    return np.asarray(to_rgb(decode(data), OLD))


def test_digits_are_scikit_learns():
    theirs, source = load_digits(), open_demo("digits")
    table = source.listing()
    assert len(table) == len(theirs.images) == 1797
    assert table.keys[0] == "0000.png"
    assert table.keys[-1] == "1796.png"
    assert table.labels.tolist() == theirs.target.tolist()
    assert table.classes == tuple("0123456789")
    assert table.split_sizes() == {"train": 1000, "test": 797}
    assert table.splits == ["train"] * 1000 + ["test"] * 797
    for key, size, grey in zip(table.keys, table.sizes.tolist(), theirs.images, strict=True):
        data = source.read(key)
        assert len(data) == size
        pixels = pixels_of(data)
        assert np.array_equal(pixels, np.repeat(np.rint(grey * 255 / 16)[..., None], 3, axis=2))


def test_a_listing_is_the_same_each_time():
    assert Digits().listing().digest == Digits().listing().digest

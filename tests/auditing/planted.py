"""scikit-learn's digits as a cache of vectors, with faults of which it is known where they are."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.datasets import load_digits

from loffta.store.cache import Cache
from loffta.store.ledger import BAD, OK, ImageStatus
from loffta.store.table import ImageTable
from loffta.store.writer import UnitWriter, to_storage
from tests.caches import FakeStore

WRONG, COPIED = 0.03, 0.02  # the shares that the guide tells of


@dataclass
class Planted:
    """Digits with faults, and where they are."""

    cache: Cache
    truth: np.ndarray  # [n]
    wrong: np.ndarray  # [n] bool
    copies: list[tuple[int, int]]  # original, copy; every second one altered


def plant(root, *, n=700, seed=0, wrong=WRONG, copied=COPIED, unit=256):
    """The first n digits and copies of some; two thirds are in split train, copies in the other split."""
    rng = np.random.default_rng(seed)
    found = load_digits()
    pixels, truth = found.data[:n].astype(np.float32), found.target[:n]
    originals = rng.choice(n, round(copied * n), replace=False)
    extra = pixels[originals].copy()
    extra[1::2] = (extra[1::2] + rng.normal(scale=0.3, size=extra[1::2].shape)).clip(0, 16)
    pixels, truth = np.concatenate([pixels, extra]), np.concatenate([truth, truth[originals]])
    hashes = [f"{i:032x}" for i in range(n)]
    hashes += [hashes[o] if i % 2 == 0 else f"{n + i:032x}" for i, o in enumerate(originals)]
    free = np.setdiff1d(np.arange(n), originals)
    bad = np.zeros(len(truth), bool)
    bad[rng.choice(free, round(wrong * n), replace=False)] = True
    labels = np.where(bad, (truth + rng.integers(1, 10, size=len(truth))) % 10, truth)
    splits = ["test" if i % 3 == 0 else "train" for i in range(n)]
    splits += ["train" if splits[o] == "test" else "test" for o in originals]
    keys = [f"{i:04d}.png" for i in range(len(truth))]
    classes = tuple(map(str, range(10)))
    table = ImageTable("digits", keys, np.full(len(keys), 100), splits, labels, classes)
    cache = make(root, table, pixels, hashes, unit=unit)
    return Planted(cache, truth, bad, [(int(o), n + i) for i, o in enumerate(originals)])


def make(root, table, vectors, hashes=None, *, unit=256, bad=()):
    """A cache of one store `pixels` with a tap `last` of kind mean."""
    cache = Cache.create(root, table, unit_images=unit, thumb_px=8)
    grids = {"last": vectors[:, None, None, :]}
    info = FakeStore("pixels", grids, dtype="float32", kinds=("mean",)).info
    (array,) = cache.add_arrays(cache.create_store(info), "mean", info.taps, "float32")
    write(cache, array, vectors[:, None, :], hashes or [""] * len(table), bad)
    return cache


def write(cache, array, values, hashes, bad=()):
    for unit in range(cache.n_units):
        rows = cache.rows_of_unit(unit)
        good = [row for row in rows if row not in bad]
        writer = UnitWriter(array.paths, array.layout, unit)
        stored = to_storage(torch.from_numpy(values[good]), "float32")
        writer.append(good, stored, [cache.table.keys[row] for row in good])
        status = [ImageStatus(row, BAD if row in bad else OK, blake2b=hashes[row]) for row in rows]
        writer.commit(status, {})


def with_labels(cache, **fields):
    """The same features with other annotations."""
    return replace(cache, table=replace(cache.table, **fields))

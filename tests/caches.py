"""Small caches from given arrays, by the real writers: training is tested without images, backbones or extraction.

Every row whose number is in `bad` is quarantined; every unit in `missing` is left out. U is 8.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from loffta.store.cache import Cache
from loffta.store.ledger import BAD, OK, ImageStatus
from loffta.store.quantise import fit_scales
from loffta.store.recipe import StoreInfo
from loffta.store.scales import create_scales
from loffta.store.table import ImageTable
from loffta.store.writer import UnitWriter, to_storage
from loffta.tokens import TokenSpec

UNIT = 8


@dataclass
class FakeStore:
    """One store to be: the grid of every tap, [n, H, W, D]; taps that are in `known` alone are not stored."""

    backbone: str
    grids: dict[str, np.ndarray]
    weights: str = "hub"
    image_px: int = 32
    dtype: str = "float16"
    kinds: tuple[str, ...] = ("grid",)
    means: dict[str, np.ndarray] = field(default_factory=dict)  # [n, D]; none: the grids' means
    prefixes: dict[str, np.ndarray] = field(default_factory=dict)  # [n, P, D]; none: a tap without prefix tokens
    registers_only: bool = False
    known: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()
    view: dict | None = None
    request: dict = field(default_factory=dict)  # what was asked beyond the defaults
    shown: dict = field(default_factory=dict)  # of the input's recipe: how a centre is cut out

    @property
    def info(self):
        n_prefix = {tap: self.prefixes[tap].shape[1] if tap in self.prefixes else 0 for tap in self.grids}
        specs = [
            TokenSpec(tap, *grid.shape[1:3], n_prefix[tap], grid.shape[3], self.registers_only and n_prefix[tap] > 0)
            for tap, grid in self.grids.items()
        ]
        specs += [TokenSpec(tap, 2, 2, 0, 4) for tap in self.known]
        recipe = {
            "backbone": self.backbone,
            "weights": self.weights,
            "input": {"image_px": self.image_px, "interpolation": "bicubic", **self.shown},
            "pool": None,
            "view": self.view,
            "precision": "fp32",
            "dtype": self.dtype,
        }
        request = {
            "backbone": self.backbone,
            "weights": self.weights,
            "image_px": self.image_px,
            "resize": "squash",
            "interpolation": "model",
            "pool": None,
            "view": self.view,
            "precision": "fp32",
            "dtype": self.dtype,
            **self.request,
        }
        return StoreInfo(recipe, request, {"spec": self.weights}, tuple(specs))


def make_table(labels, splits, *, classes=None):
    labels = np.asarray(labels, dtype=np.int64)
    classes = tuple(f"class {i}" for i in range(max(labels) + 1)) if classes is None else classes
    keys = [f"{split}/{i:03d}.png" for i, split in enumerate(splits)]
    return ImageTable("folder:pictures", keys, np.arange(len(labels)) + 100, list(splits), labels, classes)


def make_cache(root: Path, table: ImageTable, stores, *, bad=()) -> Cache:
    cache = Cache.create(root, table, unit_images=UNIT, thumb_px=8)
    for wanted in stores:
        store = cache.create_store(wanted.info)
        specs = {spec.tap: spec for spec in wanted.info.taps}
        for kind in wanted.kinds:
            arrays = cache.add_arrays(store, kind, [specs[tap] for tap in wanted.grids], wanted.dtype)
            for array in arrays:
                values = np.stack([values_of(wanted, kind, tap) for tap in array.taps], axis=1)
                write_units(cache, array, values, bad=bad, missing=wanted.missing)
    return cache


def values_of(wanted, kind, tap):
    if kind != "mean":
        return (wanted.grids if kind == "grid" else wanted.prefixes)[tap]
    return wanted.means[tap] if tap in wanted.means else wanted.grids[tap].mean(axis=(1, 2))


def write_units(cache, array, values, *, bad=(), missing=()):
    if array.layout.dtype == np.int8:
        cells = torch.from_numpy(values.astype(np.float32)).flatten(2, -2)
        create_scales(array.paths, array.layout, fit_scales(cells.amin((0, 2)), cells.amax((0, 2))), {})
    for unit in range(cache.n_units):
        if unit in missing:
            continue
        rows = cache.rows_of_unit(unit)
        good = [row for row in rows if row not in bad]
        writer = UnitWriter(array.paths, array.layout, unit)
        stored = to_storage(torch.from_numpy(values[good].astype(np.float32)), array.layout.dtype.name, writer.scales)
        writer.append(good, stored, [cache.table.keys[row] for row in good])
        writer.commit([ImageStatus(row, BAD if row in bad else OK) for row in rows], {})


def separable(n_images, *, n_classes=3, shape=(2, 2), dim=6, seed=0, signal=2.0, noise=0.3):
    """Labels in turn, and grids [n, H, W, D] whose channel `label` stands out by `signal`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_images) % n_classes
    grids = rng.normal(scale=noise, size=(n_images, *shape, dim)).astype(np.float32)
    grids[np.arange(n_images), :, :, labels] += signal
    return labels, grids


def toy_cache(root: Path, *, n_train=40, n_test=20, **options) -> Cache:
    """One informative backbone `good` of two taps: a.0 [2, 2, 6] and a.1 [3, 3, 4]."""
    labels, first = separable(n_train + n_test)
    _, second = separable(n_train + n_test, shape=(3, 3), dim=4, seed=1)
    splits = ["train"] * n_train + ["test"] * n_test
    store = FakeStore("good", {"a.0": first, "a.1": second})
    return make_cache(root, make_table(labels, splits), [store], **options)

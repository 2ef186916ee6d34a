"""A tiny finished world for reports: a cache written by the real writers, and runs beside it."""

import numpy as np
import pytest
import torch

from loffta.config import TrainConfig
from loffta.evaluation.measure import summary
from loffta.runs.folder import start_run
from loffta.runs.run import write_predictions, write_results
from loffta.store.cache import Cache
from loffta.store.ledger import BAD, OK, ImageStatus
from loffta.store.recipe import StoreInfo
from loffta.store.table import ImageTable
from loffta.store.writer import Stored, UnitWriter, to_storage
from loffta.tokens import TokenSpec

HOSTILE = "<script>alert(1)</script>"
N_IMAGES, UNIT, BAD_ROW = 24, 8, 23
SPECS = tuple(TokenSpec(f"stages.{i}", 2, 2, 0, 4) for i in range(3))
GRID_TAP_BYTES = 2 * 2 * 4 * 2  # H W D, float16


def image_table():
    keys = [f"{HOSTILE}\n{i}.png" for i in range(N_IMAGES)]
    splits = ["train"] * 8 + ["test"] * 16
    labels = np.arange(N_IMAGES) % 2
    return ImageTable(f"folder:{HOSTILE}", keys, np.ones(N_IMAGES, np.int64), splits, labels, (HOSTILE, "b & c"))


def fill(array, draw):
    """Writes every unit of an array as extraction does, the bad row quarantined."""
    keys = image_table().keys
    for unit in range(N_IMAGES // UNIT):
        rows = [row for row in range(unit * UNIT, (unit + 1) * UNIT) if row != BAD_ROW]
        writer = UnitWriter(array.paths, array.layout, unit)
        writer.append(rows, draw(rows), [keys[row] for row in rows])
        all_rows = range(unit * UNIT, (unit + 1) * UNIT)
        writer.commit([ImageStatus(row, OK if row != BAD_ROW else BAD, "") for row in all_rows], {})


def thumb_values(rows):
    values = np.stack([np.full((4, 4, 3), 10 * row, np.uint8) for row in rows])
    return Stored(values, np.ones((len(rows), 4), bool), np.zeros((len(rows), 4), np.float32))


@pytest.fixture
def cache(tmp_path):
    """24 images, the last one bad; two stores of three taps, one of them with random weights."""
    cache = Cache.create(tmp_path / "cache", image_table(), unit_images=UNIT, thumb_px=4)
    fill(cache.thumbs(create=True), thumb_values)
    for backbone, weights in (("net", "hub"), ("wild", "random:0")):
        recipe = {
            "backbone": backbone,
            "weights": "00ff",
            "input": {"image_px": 8, "interpolation": "bicubic"},
            "dtype": "float16",
        }
        request = {"backbone": backbone, "weights": weights, "image_px": None, "dtype": "float16"}
        macs = {"net": 3_000_000, "wild": 1_000_000}[backbone]
        store = cache.create_store(StoreInfo(recipe, request, {"spec": weights}, SPECS, macs=macs))
        for array in cache.add_arrays(store, "grid", SPECS, "float16"):
            fill(array, lambda rows: to_storage(torch.ones(len(rows), 3, 2, 2, 4), "float16"))
    return Cache.open(tmp_path / "cache")


@pytest.fixture
def make_run(tmp_path, cache):
    """Writes a finished run: make_run(name, per_seed, taps by backbone, ...) gives its folder.

    `config` are further fields of its TrainConfig. `right` [S, 15] says which images its seeds got right: then results
    and predictions are of one piece, and runs can be compared; without it the predictions are the same for all runs.
    Without `more` (further metrics) and `extra` (further keys) its results are those of before these were kept.
    """

    def make(
        name,
        per_seed,
        taps,
        *,
        head="linear",
        ci95=(0.5, 0.9),
        recipe=None,
        relevance=None,
        train_on="train",
        metric="top1",
        more=None,
        config=None,
        right=None,
        **extra,
    ):
        if right is not None:
            right = np.asarray(right, bool)
            per_seed = right.mean(axis=1).tolist()
        stores = {store.info.recipe["backbone"]: store for store in cache.stores()}
        config = TrainConfig(
            **(config or {}),
            cache=cache.paths.root,
            head=head,
            features=tuple(f"{stores[b].name}:{','.join(names)}" for b, names in taps.items()),
            train_on=train_on,
            seeds=len(per_seed),
        )
        paths = start_run(tmp_path / "runs" / name, config)
        rows = [row for row in cache.table.rows_of("test").tolist() if row != BAD_ROW]
        results = {
            "task": "classification",
            "head": head,
            "split": "test",
            "n": len(rows),
            "metrics": {metric: summary(per_seed) | {"ci95": list(ci95)}, **(more or {})},
            "features": [
                {"store": stores[b].name, "label": stores[b].info.label, "recipe_hash": stores[b].hash, "taps": names}
                for b, names in taps.items()
            ],
            "images": {"used": len(rows), "bad": 1},
            "recipe": recipe or {"epochs": 12},
            "seconds": 0.5,
            "versions": {"torch": "9.9.9"},
            "train_seconds": 61.7,
        }
        results |= extra
        if relevance:
            results["relevance"] = relevance
        write_results(paths.results("test"), results)
        _write_predictions(paths, cache, rows, len(per_seed), right)
        return paths.root

    return make


def _write_predictions(paths, cache, rows, n_seeds, right):
    """Rows divisible by 5 are wrong where `right` does not say it; confidence grows with the row."""
    labels = cache.table.labels[rows]
    right = np.tile(np.asarray(rows) % 5 != 0, (n_seeds, 1)) if right is None else right
    predicted = np.where(right, labels, 1 - labels).reshape(-1)
    columns = {
        "row": np.tile(rows, n_seeds),
        "key": [cache.table.keys[row] for row in rows] * n_seeds,
        "label": np.tile(labels, n_seeds),
        "seed": np.repeat(np.arange(n_seeds), len(rows)),
        "predicted": predicted,
        "confidence": np.tile(np.asarray(rows, np.float32) / 100, n_seeds),
    }
    write_predictions(paths.predictions("test"), columns)


@pytest.fixture
def scores():
    """relevance(sizes) of `net` and the random `wild`: what `evaluate` writes for a penalised ComBo."""

    def make(net_inputs=12, wild_inputs=12):
        labels = {"net": (3.0, net_inputs), "wild [random:0 weights]": (1.5, wild_inputs)}

        def entry(label, tap, score, inputs):
            per_seed = [score - 0.1, score + 0.1]
            named = {"backbone": label, "tap": tap, "score": score, "per_seed": per_seed}
            return named | {"raw_score": 2 * score, "inputs": inputs}

        return {
            "backbones": [entry(label, None, score, n) for label, (score, n) in labels.items()],
            "taps": [
                entry(label, f"stages.{i}", score / (i + 1), n // 3)
                for label, (score, n) in labels.items()
                for i in range(3)
            ],
        }

    return make

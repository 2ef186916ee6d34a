"""Which images a run keeps out of its training: drawn once, written down, and the same for ever after.

In: a run's folder, its configuration, a cache.   Out: the rows that are held out; and the rows of any split of a run,
those held out included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loffta.config import TrainConfig
from loffta.dataset.features import Feature, usable_rows
from loffta.dataset.splits import HOLDOUT, draw_by_key
from loffta.errors import LofftaError
from loffta.runs.known_images import read_known
from loffta.runs.records import Holdout
from loffta.runs.run import RunPaths, read_json, write_json
from loffta.runs.turns import is_of_folds, read_turns
from loffta.store.cache import Cache
from loffta.store.table import ImageTable


def hold_out(paths: RunPaths, config: TrainConfig, table: ImageTable, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of `rows` that become the split `holdout`: what this run once drew, or a new draw.

    Drawn once: were the cache to gain or lose a row half way, a new draw would measure on what has been trained on.
    """
    assert config.holdout is not None
    if paths.holdout.exists():
        recorded = read_json(paths.holdout, Holdout)
        held = np.array(recorded.rows, dtype=np.int64)
        if recorded == _record(config, table, held):
            return held
    keys = [table.keys[row] for row in rows]
    return rows[draw_by_key(keys, table.labels[rows], config.holdout, config.data_seed)]


def record_holdout(paths: RunPaths, table: ImageTable, config: TrainConfig, held: NDArray[np.int64]) -> None:
    """Writes down what is held out; nothing where that stands there.

    Raises:
        LofftaError: others were held out of what has been trained already.
    """
    record = _record(config, table, held)
    if paths.holdout.exists() and read_json(paths.holdout, Holdout) == record:
        return
    if paths.training.exists() or paths.checkpoint.exists() or paths.search.exists():
        raise LofftaError(
            "the images that this run held out are not in this cache any more",
            where=paths.holdout,
            remedy="bring back the cache of the training, or choose another --out",
        )
    write_json(paths.holdout, record.model_dump())


def split_rows(
    paths: RunPaths, config: TrainConfig, cache: Cache, features: Sequence[Feature], split: str
) -> NDArray[np.int64]:
    """Rows of a split that have all features; `holdout` is what this run kept out of its training, `out-of-fold` all
    that it parted.

    Raises:
        LofftaError: as `usable_rows`; or the cache is not that of the training.
    """
    if is_of_folds(config, split):
        every = read_turns(paths, cache.table, cache.paths.root).rows
        return np.intersect1d(every, usable_rows(cache, features, config.train_on, partial=config.partial))
    if split != HOLDOUT or config.holdout is None:
        return usable_rows(cache, features, split, partial=config.partial)
    held = held_rows(paths, cache.table, cache.paths.root)
    rows = np.intersect1d(held, usable_rows(cache, features, config.train_on, partial=config.partial))
    if not len(rows):
        raise LofftaError(
            "no image that was held out has features", where=cache.paths.root, remedy="run `loffta extract` first"
        )
    return rows


def learnt_told(
    paths: RunPaths, config: TrainConfig, cache: Cache, split: str, rows: NDArray[np.int64]
) -> dict[str, int]:
    """How many of the rows of a split the heads have learnt from, for results.json; nothing where these are none.

    Args:
        cache: as the run sees it; of other images, it has none that were learnt from.
    """
    known, table = read_known(paths), cache.table
    if is_of_folds(config, split) or (known is not None and not known.begins(cache)):
        return {}
    if config.shots:
        learnt = read_turns(paths, table, cache.paths.root).rows
    else:
        learnt = table.rows_of(config.train_on)
        learnt = learnt[table.is_labelled()[learnt]]
        learnt = learnt if known is None else learnt[learnt < known.images]  # what has come since is new to it
        if config.holdout is not None:
            learnt = np.setdiff1d(learnt, held_rows(paths, table, cache.paths.root))
    n_learnt = int(np.isin(rows, learnt).sum())
    return {"trained_on": n_learnt} if n_learnt else {}


def held_rows(paths: RunPaths, table: ImageTable, where: str | Path) -> NDArray[np.int64]:
    """What a run has held out of its training.

    Args:
        where: the table is, for messages.
    Raises:
        LofftaError: the table is not that of the training.
    """
    recorded = read_json(paths.holdout, Holdout)
    held = np.array(recorded.rows, dtype=np.int64)
    if _digest(table, held) != recorded.keys_digest:
        raise LofftaError(
            "the images that this run held out are not in this cache",
            where=where,
            remedy="name the cache of the training with --cache, or another --split",
        )
    return held


def _record(config: TrainConfig, table: ImageTable, held: NDArray[np.int64]) -> Holdout:
    assert config.holdout is not None
    return Holdout(
        of=config.train_on,
        fraction=config.holdout,
        seed=config.data_seed,
        keys_digest=_digest(table, held),
        rows=held.tolist(),
    )


def _digest(table: ImageTable, rows: NDArray[np.int64]) -> str:
    """Of the images' names; rows that the table does not have count as nameless."""
    text = "\n".join(table.keys[row] if row < len(table) else "" for row in rows)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()

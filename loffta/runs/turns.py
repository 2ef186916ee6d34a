"""Folds, and draws of a few labels: trainings of one run that take turns, on rows that are drawn once and kept.

In: a run's folder, its configuration, a table.   Out: Turns, with the rows that each trains on; and where the heads of
a run lie, whether it has turns or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from loffta.config import TrainConfig
from loffta.dataset.folds import draw_shots
from loffta.dataset.parts import check_shots, groups_of, part_rows
from loffta.dataset.splits import OUT_OF_FOLD
from loffta.errors import LofftaError
from loffta.runs.records import Natural, Record
from loffta.runs.run import RunPaths, read_json, write_json
from loffta.store.table import ImageTable

Rows = NDArray[np.int64]


class TurnsText(Record):
    """turns.json: the images that a run parts into folds, or draws a few of."""

    of: str  # the split
    seed: int
    identity: str  # of `rows`: keys and sizes
    rows: list[Natural] = Field(min_length=1)
    folds: list[Natural] | None = None  # of the same images: where each is tested
    groups: list[str] | None = None  # of the same images, where they kept these together
    draws: dict[str, list[Natural]] = Field(default_factory=dict)  # by name of the turn: the images that it trains on

    @model_validator(mode="after")
    def _belongs_together(self) -> TurnsText:
        for name, found in (("folds", self.folds), ("groups", self.groups)):
            if found is not None and len(found) != len(self.rows):
                raise ValueError(f"{name}: not one for every row")
        if self.folds is None and not self.draws:
            raise ValueError("folds: neither these nor draws")
        return self


@dataclass(frozen=True)
class Turns:
    """What the trainings of a run are trained on."""

    rows: Rows  # all of them, rising
    folds: Rows | None  # of the same: where each is tested
    trained: dict[str, Rows]  # by name, in order: the rows of each
    groups: list[str] | None = None  # of `rows`, where they kept images together

    def fold_of(self, rows: Rows) -> Rows:
        """Where each of some of the rows is tested."""
        assert self.folds is not None, "a run without folds has no split of them"
        return self.folds[np.searchsorted(self.rows, rows)]


def is_of_folds(config: TrainConfig, split: str) -> bool:
    """Whether a split is what a run's folds have left out of their training."""
    return config.folds is not None and split == OUT_OF_FOLD


def heads_told(config: TrainConfig, split: str) -> dict[str, Any]:
    """What results.json says of heads that are of several folds, where all of them meet all images."""
    if config.folds is None or is_of_folds(config, split):
        return {}
    return {"heads": {"folds": config.folds, "seeds": config.seeds}}


def turn_names(config: TrainConfig) -> list[str]:
    """The folders of the trainings that take turns, in order; none for a run that is one training."""
    if config.folds is not None:
        return [f"fold-{k}" for k in range(config.folds)]
    return [f"shots-{n}/draw-{draw}" for n in config.shots for draw in range(config.draws or 1)]


def homes(paths: RunPaths, config: TrainConfig) -> list[RunPaths]:
    """Where heads lie, one per seed in each: the run's own folder, or those of its turns."""
    return [paths.turn(name) for name in turn_names(config)] or [paths]


def has_weights(home: RunPaths, config: TrainConfig, seeds: Sequence[int]) -> bool:
    """Whether all trained weights of some seeds are there."""
    parts = ("head", "backbone") if config.online is not None and config.online.unfrozen else ("head",)
    return all(home.weights(seed, part).exists() for seed in seeds for part in parts)


def shown_homes(paths: RunPaths, config: TrainConfig) -> list[RunPaths]:
    """Those whose heads stand for the run: all folds, but of draws those with the most images."""
    return homes(paths, config)[-(config.draws or 1) :] if config.shots else homes(paths, config)


def draw_turns(paths: RunPaths, config: TrainConfig, table: ImageTable, rows: Rows) -> Turns | None:
    """What this run once drew, or a new draw; None for a run that is one training.

    Drawn once: were the cache to gain or lose a row half way, a new draw would test on what has been trained on.

    Args:
        rows: rising, all with labels.
    Raises:
        LofftaError: they cannot be parted so, or fewer are there than are to be drawn.
    """
    if not turn_names(config):
        return None
    if paths.turns.exists() and _has_begun(paths, config):
        recorded = read_json(paths.turns, TurnsText)
        if recorded.identity == _identity(table, np.array(recorded.rows, np.int64)):
            return _as_turns(recorded)
    if config.folds is not None:
        groups = None if config.group is None else groups_of(table, rows, config.group)
        folds = part_rows(table, rows, config.folds, groups, config.group, config.data_seed)
        return _parted(rows, folds, groups)
    check_shots(table, rows, config.shots)
    labels, names = table.labels[rows], iter(turn_names(config))
    drawn = [draw_shots(labels, n, config.data_seed, d) for n in config.shots for d in range(config.draws or 1)]
    trained = {name: rows[places] for name, places in zip(names, drawn, strict=True)}
    return Turns(np.unique(np.concatenate([*trained.values()])), None, trained)


def record_turns(paths: RunPaths, table: ImageTable, config: TrainConfig, turns: Turns) -> None:
    """Writes down what was drawn; nothing where that stands there.

    Raises:
        LofftaError: something else was, and has been trained on.
    """
    record = TurnsText(
        of=config.train_on,
        seed=config.data_seed,
        identity=_identity(table, turns.rows),
        rows=turns.rows.tolist(),
        folds=None if turns.folds is None else turns.folds.tolist(),
        groups=turns.groups,
        draws={} if turns.folds is not None else {name: rows.tolist() for name, rows in turns.trained.items()},
    )
    if paths.turns.exists() and read_json(paths.turns, TurnsText) == record:
        return
    if _has_begun(paths, config):
        raise LofftaError(
            "the images that this run parted or drew are not in this cache any more",
            where=paths.turns,
            remedy="bring back the cache of the training, or choose another --out",
        )
    write_json(paths.turns, record.model_dump())


def read_turns(paths: RunPaths, table: ImageTable, where: str | Path) -> Turns:
    """What a run has drawn.

    Args:
        where: the table is, for messages.
    Raises:
        LofftaError: the table is not that of the training.
    """
    recorded = read_json(paths.turns, TurnsText)
    if _identity(table, np.array(recorded.rows, np.int64)) != recorded.identity:
        raise LofftaError(
            "the images that this run parted are not in this cache",
            where=where,
            remedy="name the cache of the training with --cache, or another --split",
        )
    return _as_turns(recorded)


def _has_begun(paths: RunPaths, config: TrainConfig) -> bool:
    return any(home.root.exists() for home in homes(paths, config))


def _as_turns(recorded: TurnsText) -> Turns:
    rows = np.array(recorded.rows, np.int64)
    if recorded.folds is None:
        return Turns(rows, None, {name: np.array(found, np.int64) for name, found in recorded.draws.items()})
    return _parted(rows, np.array(recorded.folds, np.int64), recorded.groups)


def _parted(rows: Rows, folds: Rows, groups: list[str] | None) -> Turns:
    trained = {f"fold-{k}": rows[folds != k] for k in range(int(folds.max()) + 1)}
    return Turns(rows, folds, trained, groups)


def _identity(table: ImageTable, rows: Rows) -> str:
    """Of keys and sizes; of rows that the table does not have, none."""
    return table.identity(rows) if int(rows.max()) < len(table) else ""

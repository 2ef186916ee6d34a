"""Which images a scan fits, chooses and tests on.

In:  rows that have features and labels.   Out: a Plan. Its parts are sets of training rows; whatever is gathered of a
part can be added up, so one pass serves all trials: a fold is tested by what the other folds gathered.

Strengths of penalties (C, lambda) are chosen on images of the training that are left out of the fit; then the chosen
one is fitted on all. Those images are:

    a split       --validate-on or --holdout; these are not fitted on at all
    a fifth       of the training images, drawn class by class from the seed: the part that `--search` draws, too
    the next fold where folds are tested; so a group is never on both sides
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loffta.config import ScanConfig
from loffta.dataset.folds import draw_shots
from loffta.dataset.parts import check_shots, groups_of, part_rows
from loffta.dataset.splits import HOLDOUT, check_part, draw_by_key, draw_part
from loffta.dataset.targets import refuse_one_class, spread_of
from loffta.errors import UsageError
from loffta.store.table import ImageTable

Rows = NDArray[np.int64]
VALIDATED = 0.2  # of the training images


@dataclass(frozen=True)
class Trial:
    """One training, as numbers of parts, and what it is tested on."""

    fit: tuple[int, ...]  # with every strength
    validate: tuple[int, ...]  # they choose the strength; none where no image can be spared
    refit: tuple[int, ...]  # with the chosen one
    test: Rows  # places in `Plan.tested`
    shots: int | None = None  # images of each class


@dataclass(frozen=True)
class Plan:
    """All trials of a scan."""

    parts: list[Rows]
    trials: list[Trial]
    tested: Rows  # rising
    test_split: str
    chosen_on: str  # in words

    @property
    def trained(self) -> Rows:
        """Every row of a part, once."""
        return np.unique(np.concatenate(self.parts))

    def rows(self, parts: tuple[int, ...]) -> Rows:
        """Of some parts."""
        return np.concatenate([self.parts[i] for i in parts]) if parts else np.empty(0, np.int64)


def make_plan(config: ScanConfig, table: ImageTable, usable: Callable[[str], Rows]) -> Plan:
    """The trials that were asked for.

    Args:
        config: its splits settled by `choose_splits`.
        usable: rows of a split that have features and a label.
    Raises:
        UsageError: options that exclude each other.
        LofftaError: all training images are of one class, or have one value; nothing can be held out; or the images are
            too few for the folds or draws.
    """
    _refuse_contradictions(config)
    train = usable(config.train_on)
    refuse_one_class(table, train, config.train_on)
    if table.values is not None:
        spread_of(table, train, config.train_on)
    held = None
    if config.holdout is not None:
        mask = draw_by_key([table.keys[row] for row in train], table.labels[train], config.holdout, config.data_seed)
        check_part(mask, table.labels[train], table, "--holdout")
        train, held = train[~mask], train[mask]
    if config.folds is not None:
        return _by_folds(config, table, train)
    tested = held if held is not None and config.test_on == HOLDOUT else usable(config.test_on)
    if table.values is not None:
        spread_of(table, tested, config.test_on)
    validate, chosen_on = None, f"a fifth of split {config.train_on}"
    if config.validate_on is not None:
        validate, chosen_on = usable(config.validate_on), f"split {config.validate_on}"
    elif held is not None and config.test_on != HOLDOUT:
        validate, chosen_on = held, "split holdout"
    parts: list[Rows] = []
    trials = [
        _trial(parts, chosen, table.labels, validate, tested, config.data_seed, shots)
        for shots, chosen in _trainings(config, table, train)
    ]
    return Plan(parts, trials, tested, config.test_on, chosen_on)


def _trainings(config: ScanConfig, table: ImageTable, train: Rows) -> list[tuple[int | None, Rows]]:
    """All training images; or so many of each class, drawn several times."""
    if not config.shots:
        return [(None, train)]
    check_shots(table, train, config.shots)
    return [
        (n, train[draw_shots(table.labels[train], n, config.data_seed, draw)])
        for n in config.shots
        for draw in range(config.draws)
    ]


def _trial(
    parts: list[Rows], rows: Rows, labels: Rows, validate: Rows | None, tested: Rows, seed: int, shots: int | None
) -> Trial:
    """A trial on `rows`, its parts added to `parts`."""
    first, places = len(parts), np.arange(len(tested))
    if validate is not None:
        parts += [rows, validate]
        return Trial((first,), (first + 1,), (first,), places, shots)
    held = draw_part(labels[rows], VALIDATED, seed)
    if not held.any():
        parts.append(rows)
        return Trial((first,), (), (first,), places, shots)
    parts += [rows[~held], rows[held]]
    return Trial((first,), (first + 1,), (first, first + 1), places, shots)


def _by_folds(config: ScanConfig, table: ImageTable, train: Rows) -> Plan:
    assert config.folds is not None
    n = config.folds
    groups = None if config.group is None else groups_of(table, train, config.group)
    fold = part_rows(table, train, n, groups, config.group, config.data_seed)
    trials = []
    for i in range(n):
        others = tuple(j for j in range(n) if j != i)
        validating = (i + 1) % n
        fit = tuple(j for j in others if j != validating)
        trials.append(Trial(fit, (validating,), others, np.flatnonzero(fold == i)))
    return Plan([train[fold == i] for i in range(n)], trials, train, config.train_on, "the next fold")


def _refuse_contradictions(config: ScanConfig) -> None:
    if config.folds is None and config.group is not None:
        raise UsageError("--group is for folds", where="--group", remedy="add --folds 5, or leave --group out")
    if config.folds is not None:
        given = [("--shots", bool(config.shots)), ("--validate-on", config.validate_on is not None)]
        given += [("--holdout", config.holdout is not None)]
        for option, is_given in given:
            if is_given:
                raise UsageError(
                    f"--folds and {option} exclude each other",
                    where=option,
                    remedy="leave one out: folds test every image of --train-on, and choose strengths on each other",
                )

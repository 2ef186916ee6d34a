"""`--search`: all pairs of the recipe's learning rates and weight decays, trained side by side, scored on other images.

In: a Session and the rows to train on.   Out: the recipe with the best pair, and search.json with all of them. What is
finished in search.json is not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.dataset.splits import check_part, draw_part
from loffta.errors import LofftaError
from loffta.heads.recipe import Recipe
from loffta.machine import process
from loffta.machine.usage import Cost
from loffta.runs.records import Chosen, SearchTable, Setting
from loffta.runs.run import read_json, write_json
from loffta.tasks.figures import best_first, in_words
from loffta.training.dealt import Package, deal, open_feed
from loffta.training.fit import Session, fit
from loffta.training.members import Member
from loffta.training.optim import fit_to_part

VALIDATION_SHARE = 0.2  # of the images to train on, where no split is named (ALF's)
SEED = 0  # of every setting's head
MEMORY_SHARE = 0.5  # of the free memory that members may take
# a checkpoint that is being written holds weights and moments twice: 24 bytes a parameter beside the member's own 16
CHECKPOINT_COPIES = 1.5


class _Images(NamedTuple):
    """Rows to train on while searching, rows to score on, and how one calls the latter."""

    train: NDArray[np.int64]
    score: NDArray[np.int64]
    described: str


def search(session: Session, rows: NDArray[np.int64], recipe: Recipe) -> Recipe:
    """The recipe with the learning rate and weight decay that score best; of equals, the first of the grid.

    Args:
        rows: to train on; a part of them validates where --validate-on names no split.
    Raises:
        LofftaError: every setting diverged, nothing can be held out, or the images are others than at the beginning.
        Stopped: a signal came; what is finished, and a checkpoint, are kept.
    """
    images = _part(session, rows)
    table = _open_table(session, recipe, images)
    if table.chosen is None:
        fitted = fit_to_part(recipe, len(rows), len(images.train))
        if session.n_packages is None:
            _score_all(session, fitted, images, table)
        else:
            _deal_settings(session, fitted, images, table, session.n_packages)
        table.chosen = chosen = _best(session, table.settings)
        if session.rank.leads:
            # before the retraining may write its own: a checkpoint that is still there is the search's
            session.paths.checkpoint.unlink(missing_ok=True)
            _write(session, table)
        score = in_words(table.metric, {"mean": chosen.score, "std": None})
        words = f"lr {chosen.lr:g}, weight decay {chosen.weight_decay:g}, {score}"
        session.log.write(f"search: {words}", show=True)
    return _with(recipe, table.chosen)


def _part(session: Session, rows: NDArray[np.int64]) -> _Images:
    config, table = session.config, session.supply.table
    if config.validate_on is not None:
        return _Images(rows, session.supply.rows(config.validate_on), f"split {config.validate_on}")
    held = draw_part(table.labels[rows], VALIDATION_SHARE, config.data_seed)
    if warning := check_part(held, table.labels[rows], table, "--search"):
        session.log.write(warning, show=True)
    return _Images(rows[~held], rows[held], f"{100 * VALIDATION_SHARE:.0f} % of {config.train_on}")


def _open_table(session: Session, recipe: Recipe, images: _Images) -> SearchTable:
    digest = session.objective.digest
    digests = {"trained_on": digest(images.train), "scored_on": digest(images.score)}
    path = session.paths.search
    if path.exists():
        table = read_json(path, SearchTable)
        if table.images != digests:
            raise LofftaError(
                "there are other images than when this search began", where=path, remedy="choose another --out"
            )
        return table
    pairs = product(recipe.search_lr, recipe.search_weight_decay or (recipe.weight_decay,))
    return SearchTable(
        metric=session.objective.main_metric,
        validated_on=images.described,
        images=digests,
        settings=[Setting(lr=lr, weight_decay=decay) for lr, decay in pairs],
    )


def _deal_settings(session: Session, recipe: Recipe, images: _Images, table: SearchTable, n_packages: int) -> None:
    """Every so-many-th setting is a package, with a table of its own, whose scores `table` gets."""
    paths, n_packages = session.paths, min(n_packages, len(table.settings))
    order = paths.package("search").order

    def package(k: int) -> Package:
        own = paths.package(f"search-{k}")

        def work(part: Session) -> None:
            theirs = _open_table(part, recipe, images)
            if not own.search.exists():
                theirs.settings = theirs.settings[k::n_packages]
            _score_all(part, recipe, images, theirs, order)

        return Package(own, lambda: own.search.exists() and not _waiting(read_json(own.search, SearchTable)), work)

    packages = [package(k) for k in range(n_packages)]
    deal(session, packages)
    found = [read_json(package.paths.search, SearchTable) for package in packages]
    for k, theirs in enumerate(found):
        table.settings[k::n_packages] = theirs.settings
    table.seconds, table.order = sum(theirs.seconds for theirs in found), found[0].order


def _waiting(table: SearchTable) -> list[Setting]:
    return [entry for entry in table.settings if entry.score is None and entry.diverged_at is None]


def _score_all(
    session: Session, recipe: Recipe, images: _Images, table: SearchTable, order: Path | None = None
) -> None:
    """Trains and scores what has no score yet, as many settings at once as the memory takes.

    Args:
        order: says that of the images, where other packages have to have the same.
    """
    waiting = _waiting(table)
    if not waiting:
        return
    if table.group == 0:
        session.paths.checkpoint.unlink(missing_ok=True)  # of a group that has its scores
    n_settings = len(table.settings)
    session.log.write(f"search: {n_settings} settings on {len(images.train)} images, {table.validated_on}", show=True)
    feed = open_feed(session, images.train, recipe, order) if order else session.feed(images.train, recipe, table.order)
    with feed:
        table.order = feed.ordering  # of all settings, or their scores could not be compared
        while waiting:
            members = [session.member(_with(recipe, waiting[0]), SEED)]
            room = table.group or _room(session, members[0], len(images.score))
            members += [session.member(_with(recipe, entry), SEED) for entry in waiting[1:room]]
            table.group = len(members)
            _write(session, table)  # a checkpoint of this group goes with these settings
            keeper = session.keeper("search", feed, members)
            fit(session, feed, members, keeper, title=f"search {session.config.head}", drop_diverged=True)
            for entry, member, score in zip(waiting, members, _scores(session, members, images.score), strict=False):
                entry.score, entry.diverged_at = score, member.diverged_at
            waiting = waiting[len(members) :]
            table.group, table.seconds = 0, table.seconds + keeper.seconds
            table.cost = (Cost.of_json(table.cost) + keeper.cost).as_json()
            _write(session, table)
            session.paths.checkpoint.unlink(missing_ok=True)


def _room(session: Session, member: Member, n_scored: int) -> int:
    """How many such members the free memory takes."""
    here = process.free_memory_bytes()
    scores = 8 * n_scored * max(1, len(session.supply.table.classes))
    taken = int(CHECKPOINT_COPIES * member.n_bytes()) + scores
    if session.device.type == "cuda":
        there, _ = torch.cuda.mem_get_info(session.device)
        return max(1, int(MEMORY_SHARE * min(there / member.n_bytes(), here / taken)))
    return max(1, int(MEMORY_SHARE * here / (taken + member.n_bytes())))


def _scores(session: Session, members: Sequence[Member], rows: NDArray[np.int64]) -> list[float | None]:
    """The main metric of each member, None for one that diverged."""
    going = [member for member in members if member.diverged_at is None]
    if not going:
        return [None] * len(members)
    with session.stop.at_once("scoring the settings of the search; the training is kept up to its last checkpoint"):
        found = iter(session.objective.scores([member.head.eval() for member in going], rows, members[0].recipe))
    return [None if member.diverged_at is not None else next(found) for member in members]


def _best(session: Session, settings: Sequence[Setting]) -> Chosen:
    scored = [(entry.score, entry) for entry in settings if entry.score is not None]
    if not scored:
        raise LofftaError(
            "every setting of the search diverged",
            where=session.paths.search,
            remedy="give lower learning rates (--set search_lr=[...]) and a new --out",
        )
    score, best = min(scored, key=lambda pair: best_first(session.objective.main_metric, pair[0]))
    return Chosen(lr=best.lr, weight_decay=best.weight_decay, score=score)


def _with(recipe: Recipe, setting: Setting | Chosen) -> Recipe:
    return recipe.model_copy(update={"lr": setting.lr, "weight_decay": setting.weight_decay})


def _write(session: Session, table: SearchTable) -> None:
    session.claim.check()
    write_json(session.paths.search, table.model_dump())

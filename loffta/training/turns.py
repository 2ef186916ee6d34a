"""One training of a run, from fresh heads to their files; and the trainings of a run with folds or draws, in turn.

In: a Session and rows.   Out: a head per seed and training.json, in the run's folder or in one for each turn. A turn is
the training that it would be as a run of its own, on the same rows: the same order, the same heads to the last bit.
What it shares with the others are the features: they are read into memory once, for all turns. The same command goes on
with the turn that was cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loffta.files.tensor_file import write_tensors
from loffta.heads.precision import precision_of
from loffta.heads.recipe import Recipe
from loffta.machine.usage import Cost
from loffta.runs.records import Training
from loffta.runs.run import RunPaths, read_json, write_json, write_lines
from loffta.runs.turns import Turns, has_weights
from loffta.training.dealt import Package, deal, open_feed
from loffta.training.fit import Session, fit
from loffta.training.members import Member
from loffta.training.optim import fit_to_images
from loffta.training.remember import remember, remembers


def train_heads(session: Session, rows: NDArray[np.int64], recipe: Recipe) -> None:
    """Trains a head per seed; `training.json` comes last and says that they are there."""
    if session.n_packages is None:
        members, told = _train_members(session, rows, recipe, range(session.config.seeds))
    else:
        members, told = [], _deal_seeds(session, rows, recipe, session.n_packages)
    if not session.rank.leads:
        return
    session.claim.check()
    session.supply.save_origins(session.paths)
    _save(session.paths, members)
    write_json(session.paths.training, told.model_dump())
    session.log.write(f"trained in {told.seconds:.1f} s")


def train_turns(session: Session, turns: Turns, recipe: Recipe) -> None:
    """Trains what is not trained, turn by turn, on one load of the features; the run's `training.json` comes last."""
    paths, n_turns = session.paths, len(turns.trained)
    with ExitStack() as stack:
        with session.stop.at_once("reading the features; no turn has been begun"):
            supply = stack.enter_context(session.supply.sharing(turns.rows, recipe))
        session = replace(session, supply=supply)
        packages = [
            _turn(session, rows, recipe, name, f", {name} ({i + 1} of {n_turns})")
            for i, (name, rows) in enumerate(turns.trained.items())
        ]
        if session.n_packages is not None:
            deal(session, packages)
        else:
            for package in packages:
                if not session.team.agree(package.is_done):
                    package.work(replace(session, paths=package.paths))
                if session.rank.leads:
                    package.paths.checkpoint.unlink(missing_ok=True)
    if not session.rank.leads:
        return
    session.claim.check()
    session.supply.save_origins(paths)
    told = [read_json(package.paths.training, Training) for package in packages]
    seconds = sum(turn.seconds for turn in told)
    cost = sum((Cost.of_json(turn.cost) for turn in told), Cost()).as_json()
    last = told[-1].model_copy(update={"seconds": seconds, "cost": cost})  # of draws the one with the most images
    write_json(paths.training, last.model_dump())
    session.log.write(f"trained {n_turns} turns in {seconds:.1f} s", show=True)


def _turn(session: Session, rows: NDArray[np.int64], recipe: Recipe, name: str, title: str) -> Package:
    """The training of one turn, all seeds, in its own folder."""
    home, config = session.paths.turn(name), session.config

    def work(part: Session) -> None:
        members, found = _train_members(part, rows, recipe, range(config.seeds), title)
        if part.writes:
            part.claim.check()
            _save(home, members)
            write_json(home.training, found.model_dump())

    return Package(home, lambda: home.training.exists() and has_weights(home, config, range(config.seeds)), work)


def _deal_seeds(session: Session, rows: NDArray[np.int64], recipe: Recipe, n_packages: int) -> Training:
    """Every so-many-th seed is a package; seconds are those of all ranks together."""
    paths, config, order = session.paths, session.config, session.paths.package("heads").order

    def package(seeds: Sequence[int], own: RunPaths) -> Package:
        def work(part: Session) -> None:
            title = f", seeds {', '.join(map(str, seeds))}"
            members, found = _train_members(part, rows, recipe, seeds, title, order)
            part.claim.check()
            _save(paths, members)
            write_json(own.training, found.model_dump())

        return Package(own, lambda: own.training.exists() and has_weights(paths, config, seeds), work)

    n_packages = min(n_packages, config.seeds)
    packages = [package(range(config.seeds)[k::n_packages], paths.package(f"heads-{k}")) for k in range(n_packages)]
    deal(session, packages)
    told = [read_json(package.paths.training, Training) for package in packages]
    return told[0].model_copy(update={"seconds": sum(part.seconds for part in told)})


def _train_members(
    session: Session,
    rows: NDArray[np.int64],
    recipe: Recipe,
    seeds: Sequence[int],
    turn: str = "",
    order: Path | None = None,
) -> tuple[list[Member], Training]:
    """A trained member per seed, and what the training took.

    Args:
        turn: which one it is, for messages.
        order: says that of the images, where other packages have to have the same.
    """
    config, log, title = session.config, session.log, f"{session.config.head}{turn}"
    fitted = fit_to_images(recipe, len(rows))
    if fitted != recipe:
        why = ", ".join(f"{k}={v}" for k in ("min_batches", "min_steps") if (v := getattr(recipe, k)) is not None)
        length = f"{fitted.epochs} epochs of batches of {fitted.batch_size}"
        log.write(f"{title}: {length}, for this many images (recipe: {why})", show=not turn)
    members = [session.member(fitted, seed) for seed in seeds]
    with session.feed(rows, fitted) if order is None else open_feed(session, rows, fitted, order) as feed:
        keeper = session.keeper("final", feed, members)
        log.write(f"{title}: {len(rows)} images, {feed.describe()}", show=not turn)
        learn = remember if remembers(config.head) else fit
        learn(session, feed, members, keeper, title=f"train {title}")
    precision = precision_of(fitted, session.device)
    return members, Training(
        seconds=keeper.seconds,
        cost=keeper.cost.as_json(),
        epochs=fitted.epochs,
        batch_size=fitted.batch_size,
        precision=precision,
    )


def _save(paths: RunPaths, members: Sequence[Member]) -> None:
    for member in members:
        write_lines(paths.metrics(member.seed), member.log)
        for part, module in member.parts.items():
            write_tensors(paths.weights(member.seed, part), module.state_dict())

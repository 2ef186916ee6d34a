"""How several ranks share a training: members are dealt out to them, or each takes its share of every batch.

In: what was asked for, the ranks, a configuration.   Out: "members" or "batches", or an error that says why not; and
the Session of one rank. The first one writes, logs and evaluates; the others wait for it at both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from loffta import augment
from loffta.config import TrainConfig
from loffta.errors import LofftaError, UsageError
from loffta.heads import HEADS
from loffta.machine import process
from loffta.machine.ranks import Rank
from loffta.runs.claims import is_claimed
from loffta.runs.folder import is_begun
from loffta.runs.run import RunPaths
from loffta.runs.turns import turn_names
from loffta.training.dealt import TRY_S, open_deal, wait
from loffta.training.fit import Session
from loffta.training.remember import remembers
from loffta.training.team import joined

RanksChoice = Literal["auto", "members", "batches"]
PATIENCE_S = 600.0  # with the first rank, which opens the same cache, and whose files NFS shows a minute late


def choose_sharing(wanted: RanksChoice, rank: Rank, config: TrainConfig, paths: RunPaths) -> RanksChoice:
    """What is wanted, if it can be; auto: members where there is one for every rank, or batches cannot be shared.

    A training goes on as it began: members that were dealt out stay so, and what one process, or a team, has begun is
    gone on with in batches.

    Raises:
        UsageError: it cannot be.
    """
    refusal = _refuse_batches(config)
    if paths.deal.exists():
        if wanted == "batches":
            raise UsageError(
                "the members of this run were dealt out when it began",
                where="--ranks batches",
                remedy="leave it out, or choose another --out",
            )
        return "members"
    if paths.checkpoint.exists() or paths.search.exists():
        if wanted == "members":
            raise UsageError(
                "this run was begun with all its members side by side",
                where="--ranks members",
                remedy="leave it out, or choose another --out",
            )
        wanted = "batches"
    n_packages = len(turn_names(config)) or config.seeds
    if wanted == "auto":
        wanted = "members" if n_packages >= rank.of or refusal is not None else "batches"
    if wanted == "batches" and refusal is not None:
        raise refusal
    return wanted


def _refuse_batches(config: TrainConfig) -> LofftaError | None:
    """Why no batch of this training can be shared; None: each can."""
    head, why = HEADS[config.head].head if config.head in HEADS else None, None
    if config.online is not None:
        why = "a training without a cache reads each image for its own: which ones are bad shows late"
    elif remembers(config.head):
        why = f"head '{config.head}' takes no steps: it remembers"
    elif head is not None and head.n_phases > 1:
        why = f"head '{config.head}' chooses features between its phases, by all images of a process"
    elif config.search:
        why = "--search trains its settings side by side"
    elif config.task == "instances":
        why = "instances are told from all others of their batch"
    elif augment.resolve(config.augment).mixup_alpha is not None:
        why = "an image is mixed with one of the same batch, which another rank may have"
    if why is None:
        return None
    return UsageError(
        f"ranks cannot share the batches of this training: {why}",
        where="--ranks batches",
        remedy="deal its seeds, folds, draws or settings out (--ranks members), or start one process",
    )


@contextmanager
def shared(session: Session, sharing: RanksChoice, is_trained: Callable[[], bool]) -> Iterator[Session | None]:
    """The session as this rank trains by it; None where nothing is left to train.

    Raises:
        LofftaError: the memory is not enough, or another rank has ended.
        Stopped: this rank or another was stopped.
    """
    root, rank, supply = session.paths.root, session.rank, session.supply
    with process.explain_memory(session.device, root, supply.less_memory):
        if sharing == "members":
            n_packages = open_deal(session.paths, rank)
            _tell_idle(session, n_packages)
            yield None if is_trained() else replace(session, n_packages=n_packages)
            return
        with joined(rank, session.device, root) as team, team.explained(session.stop, root):
            own = supply if rank.of == 1 else supply.of_rank(rank)
            yield None if team.agree(is_trained) else replace(session, team=team, supply=own)


def _tell_idle(session: Session, n_packages: int) -> None:
    n_packages = len(turn_names(session.config)) or min(n_packages, session.config.seeds)
    if (n_idle := session.rank.of - n_packages) > 0:
        line = f"{n_idle} of {session.rank.of} ranks find no head to train: there are {n_packages} to be dealt out"
        session.log.write(line, show=session.rank.leads)


def wait_for_begin(session: Session) -> None:
    """Until the first rank has made the run's folder."""
    if not wait(session.stop, lambda: is_begun(session.paths.root, session.config), PATIENCE_S):
        raise LofftaError(
            "the first rank of this training has not begun",
            where=session.paths.root,
            remedy="see what it says; do all ranks have the same command, and the same files before them?",
        )


def wait_for_end(session: Session, results: Sequence[Path]) -> None:
    """Until it has measured the heads; it counts as gone when its claim is, and has been for a while."""
    n_gone = 0
    while not wait(session.stop, lambda: all(path.exists() for path in results), TRY_S):
        n_gone = 0 if is_claimed(session.paths) else n_gone + 1
        if n_gone > 2:  # of these looks, for NFS shows files a minute late
            raise LofftaError(
                "the first rank of this training has ended without results",
                where=session.paths.root,
                remedy="its own message says why; the same command goes on from what is trained",
            )

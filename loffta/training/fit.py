"""The training loop: members side by side on one read of the data, from a checkpoint on if there is one.

In: a Session, a TrainingFeed, members.   Out: the members, trained. Whether the features were stored or are computed
on the way is the feed's business. The data order depends on `data_seed` alone and is shared by all members, so that a
member trained among others equals the member trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta import augment
from loffta.config import TrainConfig
from loffta.errors import LofftaError
from loffta.feed.batches import Batch
from loffta.feed.order import ordering_of
from loffta.heads import Head
from loffta.heads.precision import autocast, matmul_precision, precision_of
from loffta.heads.recipe import Recipe
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.machine.ranks import Rank
from loffta.runs.claims import Claim
from loffta.runs.run import RunLog, RunPaths
from loffta.shares import SharedGenerator
from loffta.training.checkpoint import Keeper, Position, read_checkpoint
from loffta.training.dense import Dense
from loffta.training.loss import Mix
from loffta.training.members import Member
from loffta.training.objective import Labels, Learner, Objective
from loffta.training.optim import adam_eps, lr_at, n_steps
from loffta.training.supply import Supply, TrainingFeed
from loffta.training.team import ALONE, Team
from loffta.words import printable

# Parameters times images a step below which torch gets one thread on the CPU. A linear probe of K = 512 (330,000) makes
# 1,400 steps/s of 3 seeds with one thread as with two; with two, 15 to 220 when other processes want the same CPUs.
SMALL_STEP = 4_000_000

# What happens to features and targets of a batch before `prepare`, for each member anew, drawn from its generator
Augment: TypeAlias = Callable[[Sequence[Tensor], Any, torch.Generator], tuple[Sequence[Tensor], Any, Mix | None]]


@dataclass(frozen=True)
class Session:
    """What all trainings of one run share."""

    config: TrainConfig
    supply: Supply
    device: torch.device
    paths: RunPaths
    log: RunLog
    stop: process.StopFlag
    claim: Claim
    team: Team = ALONE
    rank: Rank = Rank()  # noqa: RUF009  it is frozen
    n_packages: int | None = None  # that members are dealt out in, to ranks that exchange nothing; None: they are not

    @property
    def writes(self) -> bool:
        """Whether this rank keeps what it has trained: of several that train the same, the first does."""
        return self.rank.leads or self.n_packages is not None

    @cached_property
    def objective(self) -> Objective:
        """What is learnt."""
        if (dense := self.supply.dense) is not None:
            return Dense(self.supply.table, dense, self.device, self.team.total)
        return Labels(self.config, self.supply, self.device, self.team.total)

    def member(self, recipe: Recipe, seed: int) -> Member:
        """A member before its first step."""
        return self.team.adopt(self.supply.member(recipe, seed))

    def feed(self, rows: NDArray[np.int64], recipe: Recipe, ordering: Mapping[str, Any] | None = None) -> TrainingFeed:
        """The feed of a training on some rows; it goes on in the order of a checkpoint that is there.

        Which order `auto` takes, and how large a window is, depends on the free memory: that may be another now.

        Args:
            ordering: that of a feed before this one, which it has to equal.
        """
        ordering = self.team.agree(lambda: _order_kept(self.paths.checkpoint)) or ordering
        order, window = (self.config.order, None) if ordering is None else ordering_of(ordering)
        with self.stop.at_once("reading the features; nothing has been trained yet"):
            feed = self.supply.feed(rows, recipe, order, window)
        if (agreed := self.team.agree(lambda: feed.ordering)) == feed.ordering:
            return feed
        with feed, self.stop.at_once("reading the features; nothing has been trained yet"):
            return self.supply.feed(rows, recipe, *ordering_of(agreed))

    @cached_property
    def augment(self) -> Augment | None:
        """What happens to features and targets of a batch before `prepare`; None: nothing."""
        settings = augment.resolve(self.config.augment)
        if settings == augment.AugmentConfig():
            return None
        specs, objective = self.supply.specs, self.objective

        def change(
            features: Sequence[Tensor], targets: Any, rng: torch.Generator
        ) -> tuple[Sequence[Tensor], Any, Mix | None]:
            share = rng.share if isinstance(rng, SharedGenerator) else None
            drawn = augment.draw(settings, len(features[0]) if share is None else share.of, rng, self.device)
            drawn = drawn if share is None else drawn.of_share(share)
            mix = None if drawn.partner is None or drawn.weight is None else Mix(drawn.partner, drawn.weight)
            return augment.apply(features, specs, drawn), objective.moved(targets, drawn), mix

        return change

    def keeper(self, title: str, feed: TrainingFeed, members: Sequence[Member]) -> Keeper:
        """The checkpoints of a training: only the same heads on the same images, in the same order, go on from them."""
        # what is for numbers alone is not told where there are classes: checkpoints of before do not have it
        aside = {"lr", "weight_decay"} | ({"loss", "huber_delta"} if members[0].recipe.loss is None else set())
        recipe = members[0].recipe.model_dump(mode="json", exclude=aside)
        identity = {
            "training": title,
            "head": self.config.head,
            "features": list(self.supply.names),
            "task": self.config.task,
            "data_seed": self.config.data_seed,
            "recipe": recipe,
            "members": [f"seed {member.seed}, {member.setting}" for member in members],
            "images": self.objective.digest(feed.rows),
            "order": feed.ordering,
            "augment": self.config.augment,
            "device": self.device.type,
            "precision": precision_of(members[0].recipe, self.device),
        }
        return Keeper(self.paths.checkpoint, identity, self.config.checkpoint_s, self.team)


def fit(
    session: Session,
    feed: TrainingFeed,
    members: Sequence[Member],
    keeper: Keeper,
    *,
    title: str,
    drop_diverged: bool = False,
) -> None:
    """Trains members whose recipes differ in lr and weight decay alone, phase after phase.

    Args:
        drop_diverged: a member whose loss is not finite is left behind, while another goes on.
    Raises:
        LofftaError: a loss is not finite; the last good checkpoint is kept.
        Stopped: a signal came; a checkpoint is kept.
    """
    recipe = members[0].recipe
    learner = session.objective.begin(feed.rows, members)
    begin = keeper.restore(members)
    per_phase = n_steps(len(feed.rows), recipe.batch_size, recipe.epochs)
    n_epochs = members[0].head.n_phases * recipe.epochs
    step, total, phase = begin.epoch * len(feed) + begin.batch, n_epochs * len(feed), begin.phase(members[0])
    if step:
        session.log.write(f"{title}: goes on after step {step} of {total}", show=True)
    with (
        Progress(title, total - step, "steps") as progress,
        step_threads(members[0].head, recipe.batch_size),
        matmul_precision(recipe, session.device),
    ):
        for epoch in range(begin.epoch, n_epochs):
            if epoch // recipe.epochs > phase:
                phase += 1
                for member in _going(members):
                    member.start_phase(phase)
            first = begin.batch if epoch == begin.epoch else 0
            batches = feed.epoch(epoch, first, more=epoch + 1 < n_epochs)
            for i, batch in enumerate(batches, start=first):
                _keep(session, keeper, members, Position(epoch, i), f"training step {step} of {total}")
                for member in _going(members):
                    _prepare_step(member, step - phase * per_phase, per_phase)
                if len(batch.rows):  # else none of its images could be read
                    found = _train_batch(session, _going(members), batch, learner)
                    _note_losses(session, _going(members), found, step, batch, drop_diverged)
                if not _going(members):
                    return
                step += 1
                last = _going(members)[0].losses[-1:]
                progress.advance(1, f"loss {last[0]:.3f}" if last else "")
            _end_epoch(session.log, _going(members), epoch, step)
    for member in _going(members):
        if not member.is_finite():  # what the last step did shows in no loss
            _diverge(session, member, step - 1, [], drop_diverged)
    if session.team.signal_of(session.stop) is not None:
        _keep(session, keeper, members, Position(n_epochs), f"training step {step} of {total}")


def _order_kept(checkpoint: Path) -> dict[str, Any] | None:
    """That of the images, of a training that is to go on."""
    kept = read_checkpoint(checkpoint)
    return None if kept is None else dict(kept[1]["identity"]["order"])


def step_threads(head: Head, batch_size: int) -> AbstractContextManager[None]:
    """One torch thread for small steps; the number before comes back, so that a resumed training has the same."""
    return process.one_thread(sum(p.numel() for p in head.parameters()) * batch_size < SMALL_STEP)


def _keep(session: Session, keeper: Keeper, members: Sequence[Member], position: Position, doing: str) -> None:
    """Writes a checkpoint where it is time, and where a signal has come: that ends the training here."""
    team = session.team
    if team.signal_of(session.stop) is None and not (team.leads and keeper.is_due()):
        return
    if team.leads:
        session.claim.check()
        keeper.save(members, position)
    if (signal := team.signal_of(session.stop)) is None:
        return
    team.meet()  # one that leaves earlier takes the others with it, and the checkpoint that is being written
    session.stop.signal = signal
    kept = "kept in " + keeper.path.name if keeper.path.exists() else "nothing is kept, for a weight is not finite"
    session.stop.check(f"{doing}; {kept}")


def _train_batch(session: Session, members: Sequence[Member], batch: Batch, learner: Learner) -> list[Tensor]:
    """One step of every member; their losses, still on the device."""
    session.team.take(batch.share, members)
    targets, n_images = learner.targets(batch), len(batch.rows) if batch.share is None else batch.share.of
    if session.augment is None:  # what one of them prepares serves all
        prepared = members[0].head.prepare(batch.features)
        found = [_step(member, prepared, targets, learner.lower, n_images) for member in members]
    else:
        found = []
        for member in members:  # the one place where features are changed on their way to the heads
            features, moved, mix = session.augment(batch.features, targets, member.rng)
            prepared = member.head.prepare(features)
            found.append(_step(member, prepared, moved, learner.lower, n_images, mix))
    found = session.team.add_up(members, found, session.stop.signal)
    for member in members:
        _update(member)
    return found


def _prepare_step(member: Member, step: int, total: int) -> None:
    lr, eps = lr_at(step, total, member.recipe), adam_eps(step, member.recipe)
    for group in member.optimizer.param_groups:
        group["lr"], group["eps"] = lr * group.get("scale", 1.0), eps  # a backbone's rate is a share of the head's


def _step(
    member: Member,
    prepared: Any,
    targets: Any,
    lower: Callable[..., Tensor],
    n_images: int,
    mix: Mix | None = None,
) -> Tensor:
    """The gradients of one step; returns the loss, penalty included, without waiting for the device."""
    recipe = member.recipe
    with autocast(recipe, member.rng.device):
        outputs = member.head(prepared, member.rng)
        loss = lower(member, outputs, targets, mix)
    if member.penalised and (penalty := member.head.penalty()) is not None:
        loss = loss + penalty
    if recipe.divide_by_whole_batch:
        loss = loss * (n_images / recipe.batch_size)
    member.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _update(member: Member) -> None:
    if member.recipe.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(member.head.parameters(), member.recipe.max_grad_norm)
    member.optimizer.step()


def _going(members: Sequence[Member]) -> list[Member]:
    return [member for member in members if member.diverged_at is None]


def _note_losses(
    session: Session, members: Sequence[Member], found: list[Tensor], step: int, batch: Batch, drop: bool
) -> None:
    losses: list[float] = torch.stack(found).tolist()  # the one wait for the device in a step
    for member, loss in zip(members, losses, strict=True):
        member.losses.append(loss)
        if not math.isfinite(loss):
            _diverge(session, member, step, batch.rows.tolist(), drop)


def _diverge(session: Session, member: Member, step: int, rows: list[int], drop: bool) -> None:
    """Leaves a member behind, or gives up."""
    keys = [printable(session.supply.table.keys[row]) for row in rows]
    what = f"the loss of seed {member.seed} is not finite at step {step} ({member.setting})"
    session.log.write(f"{what}; images of that step: {', '.join(keys) or 'not known'}")
    member.diverged_at = step
    if drop:
        session.log.write(f"dropped: {member.setting}, not finite at step {step}", show=True)
        return
    path, every = session.paths.checkpoint, session.config.checkpoint_s
    kept = f"{path.name} is of a step before it" if path.exists() else f"No checkpoint was due in {every:g} s"
    raise LofftaError(
        what,
        where=f"images {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}" if keys else "the last step",
        remedy=f"{session.supply.against_divergence}; all images of the step stand in log.txt. {kept}",
    )


def _end_epoch(log: RunLog, members: Sequence[Member], epoch: int, step: int) -> None:
    means = [sum(member.losses) / len(member.losses) for member in members]
    lrs = [float(member.optimizer.param_groups[0]["lr"]) for member in members]
    for member, mean, lr in zip(members, means, lrs, strict=True):
        member.log.append({"epoch": epoch, "step": step, "loss": mean, "lr": lr})
        member.losses.clear()
    log.write(f"epoch {epoch}: loss {' '.join(f'{mean:.4f}' for mean in means)}, lr {lrs[0]:.2e}")

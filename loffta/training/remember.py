"""The training of heads that only remember: one pass over the images, no step and no loss.

In: as `fit`.   Out: the members, with what they remember. There are no checkpoints: the pass is run again.
"""

from __future__ import annotations

from collections.abc import Sequence

from loffta import augment
from loffta.config import TrainConfig
from loffta.errors import LofftaError, UsageError
from loffta.heads import HEADS
from loffta.machine.progress import Progress
from loffta.tasks.pixels import maps_of
from loffta.training.checkpoint import Keeper
from loffta.training.fit import Session
from loffta.training.members import Member
from loffta.training.supply import TrainingFeed


def remembers(head: str) -> bool:
    """Whether a head of this name is trained by `remember`; `online-linear` is in no registry, and is not."""
    return head in HEADS and bool(getattr(HEADS[head].head, "remembers", False))


def refuse_steps(config: TrainConfig) -> None:
    """Refuses what changes the steps of a training, where there are none."""
    moved = augment.resolve(config.augment) != augment.AugmentConfig()
    for option, given in (("--search", config.search), ("--augment", moved)):
        if given:
            raise UsageError(
                f"head '{config.head}' remembers the images as they are, and learns nothing by steps",
                where=option,
                remedy="leave it out, or use another --head",
            )


def remember(
    session: Session,
    feed: TrainingFeed,
    members: Sequence[Member],
    keeper: Keeper,  # noqa: ARG001
    *,
    title: str,
) -> None:
    """Shows every image once to every member, in the order of a first epoch.

    Raises:
        LofftaError: no patch has a label.
        Stopped: a signal came; nothing is kept.
    """
    learner, n_images = session.objective.begin(feed.rows, members), len(feed.rows)
    with Progress(title, len(feed), "batches") as progress:
        for i, batch in enumerate(feed.epoch(0)):
            session.stop.check(f"batch {i} of {len(feed)}; nothing is kept, the same command begins anew")
            session.claim.check()
            prepared, targets = members[0].head.prepare(batch.features), learner.targets(batch)
            for member in members:
                member.head.remember(prepared, maps_of(targets), n_images, member.rng)  # type: ignore[attr-defined]
            progress.advance(1, "")
    for member in members:
        member.head.finish(member.rng)  # type: ignore[attr-defined]
        n_patches = len(member.head.state_dict()["cells"])
        if not n_patches:
            raise LofftaError(
                f"none of the {n_images} images has a labelled pixel",
                where="targets 'mask'",
                remedy="train on a split with masks that are not ignored all over: --train-on SPLIT",
            )
        member.log.append({"epoch": 0, "step": len(feed), "patches": n_patches})
        session.log.write(f"{title}: {n_patches:,} patches are remembered, seed {member.seed}")

"""Trains one seed of a head, and of its backbone where that is wanted, on images as they come.

In: a Setting, which all seeds share, and rows.   Out: weights and metrics in the run. A seed continues behind its last
finished epoch; order, crops and noise depend on seeds and epochs alone, so that it ends as it would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from loffta.config import OnlineConfig, TrainConfig
from loffta.dataset.targets import read_targets
from loffta.errors import LofftaError
from loffta.heads import Head, build_head
from loffta.heads.precision import autocast, matmul_precision
from loffta.heads.recipe import Recipe
from loffta.images.batches import PixelBatch
from loffta.images.geometry import PixelGeometry, View
from loffta.images.sources import ImageSource
from loffta.machine import process
from loffta.machine.progress import Progress
from loffta.online.checkpoint import load_state, save_state
from loffta.online.network import Network
from loffta.online.stream import judge_bad, read_pixels
from loffta.runs.claims import Claim
from loffta.runs.run import RunLog, RunPaths, save_head, write_lines
from loffta.store.ledger import BAD
from loffta.store.table import ImageTable
from loffta.tasks import Task, find_task
from loffta.training.loss import class_weights, reduce_loss
from loffta.training.optim import adam_eps, fit_to_images, is_finite, lr_at, make_adamw, parameter_groups
from loffta.words import printable

ONLINE_LINEAR = "online-linear"


@dataclass(frozen=True)
class Setting:
    """What all seeds share."""

    config: TrainConfig
    online: OnlineConfig
    recipe: Recipe
    network: Network
    source: ImageSource
    listing: ImageTable
    device: torch.device
    paths: RunPaths
    log: RunLog
    stop: process.StopFlag
    claim: Claim
    initial: dict[str, Tensor]  # weights of a backbone that is trained, before the first seed; else nothing
    bad: dict[int, str] = field(default_factory=dict)  # quarantined images so far, and why

    @property
    def task(self) -> Task:
        """What is learnt."""
        return find_task(self.config.task)

    @cached_property
    def targets(self) -> Tensor:
        """Of every row of the listing, on the CPU."""
        return read_targets(self.listing, self.config.task)

    def build_head(self, seed: int) -> Head:
        """A new head on the device."""
        name, n_classes = head_of(self.config.head), len(self.listing.classes)
        return build_head(name, self.network.specs, n_classes, self.recipe, seed).to(self.device)

    def network_precision(self) -> AbstractContextManager[object]:
        """For a pass of the backbone: frozen it computes in float32, as for a cache; trained, as the head does."""
        return autocast(self.recipe, self.device) if self.online.unfrozen else nullcontext()

    def read(
        self, rows: Sequence[int], geometry: PixelGeometry, batch_size: int
    ) -> Generator[PixelBatch | None, None, None]:
        """The good images of each stretch of `rows`; None where there is none. Signals give it up at once."""
        stretches = read_pixels(self.source, self.listing, [geometry], rows, batch_size)
        for statuses, batch in self.stop.each(stretches, "training online; finished epochs are kept"):
            self.bad.update({status.row: status.reason for status in statuses if status.status == BAD})
            yield batch

    def refuse_bad(self, rows: NDArray[np.int64], *, done: str) -> None:
        """Raises TooManyBadImages where too many of `rows` were quarantined."""
        here = set(rows.tolist())
        bad = {row: self.bad[row] for row in sorted(here.intersection(self.bad))}
        judge_bad(bad, self.listing.keys, len(rows), self.online.max_bad_frac, done=done)


@dataclass(frozen=True)
class _Member:
    """One seed in training."""

    seed: int
    head: Head
    modules: dict[str, nn.Module]  # all that is trained, by the names of the checkpoint
    optimizer: torch.optim.Optimizer
    rng: torch.Generator
    recipe: Recipe  # with the batches and epochs that fit the number of images
    steps: int  # of an epoch; the last may have fewer images

    @property
    def total(self) -> int:
        """Steps of the training."""
        return self.recipe.epochs * self.steps


def head_of(name: str) -> str:
    """The head in HEADS; `online-linear` is the linear probe on one vector."""
    return "linear" if name == ONLINE_LINEAR else name


def is_trained(paths: RunPaths, seed: int, online: OnlineConfig) -> bool:
    """Whether a seed's weights are there; what was deleted, because it was damaged, is trained again."""
    return paths.head(seed).exists() and (not online.unfrozen or paths.backbone(seed).exists())


def fit_seed(setting: Setting, seed: int, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Trains one seed, or what is left of it, and writes its weights.

    Returns:
        Its log, a row per epoch; `seconds` are those of the training so far, resumed or not.
    Raises:
        LofftaError: a loss or a weight is not finite; the last finished epoch is kept.
        TooManyBadImages: after the first epoch.
        Stopped: a signal came; the epoch in hand is lost.
    """
    paths = setting.paths
    member = _start(setting, seed, len(rows))
    checkpoint = paths.online_checkpoint(seed)
    log: list[dict[str, Any]] = []
    if (kept := load_state(checkpoint, member.modules, member.optimizer, member.rng)) is not None:
        log = kept["log"]
    weights = _class_weights(setting, rows)
    with Progress(f"train {setting.config.head}, seed {seed}", member.total, "steps") as progress:
        progress.advance(len(log) * member.steps)
        for epoch in range(len(log), member.recipe.epochs):
            start = time.monotonic()
            with _own_randomness(seed, epoch, setting.device), matmul_precision(member.recipe, setting.device):
                loss, lr = _fit_epoch(setting, member, epoch, rows, weights, progress)
            if not all(is_finite(module) for module in member.modules.values()):  # the last step shows in no loss
                raise _diverged(setting, seed, (epoch + 1) * member.steps - 1, [])
            seconds = (log[-1]["seconds"] if log else 0.0) + time.monotonic() - start
            log.append({"epoch": epoch, "step": (epoch + 1) * member.steps, "loss": loss, "lr": lr, "seconds": seconds})
            setting.log.write(f"seed {seed}, epoch {epoch}: loss {loss:.4f}, lr {lr:.2e}")
            setting.claim.check()
            save_state(checkpoint, member.modules, member.optimizer, member.rng, {"log": log})
            if epoch == 0:
                setting.refuse_bad(rows, done=f"{paths.root}: one epoch is done")
    setting.claim.check()
    write_lines(paths.metrics(seed), log)
    if setting.online.unfrozen:
        save_head(paths.backbone(seed), member.modules["backbone"].state_dict())
    save_head(paths.head(seed), member.head.state_dict())  # last: it says that the seed is done
    checkpoint.unlink(missing_ok=True)
    return log


def _start(setting: Setting, seed: int, n_images: int) -> _Member:
    recipe, online = setting.recipe, setting.online
    head = setting.build_head(seed).train()
    assert isinstance(head, nn.Module), "every head is one"
    modules: dict[str, nn.Module] = {"head": head}
    groups = [group | {"scale": 1.0} for group in parameter_groups(head, recipe.weight_decay)]
    if online.unfrozen:
        model = setting.network.model
        model.load_state_dict(setting.initial)
        modules["backbone"] = model.requires_grad_(True)
        groups += _backbone_groups(model, recipe.weight_decay, online.lr_backbone / recipe.lr)
    optimizer = make_adamw(groups, recipe, setting.device)
    rng = torch.Generator(setting.device).manual_seed(seed)
    fitted = fit_to_images(recipe, n_images)
    steps = math.ceil(n_images / fitted.batch_size)
    return _Member(seed, head, modules, optimizer, rng, fitted, steps)


def _backbone_groups(model: nn.Module, weight_decay: float, scale: float) -> list[dict[str, Any]]:
    """Vectors do not decay; the rate is that of the head times `scale` at every step."""
    parameters = list(model.parameters())
    return [
        {"name": name, "params": [p for p in parameters if (p.ndim > 1) == decays], "scale": scale}
        | {"weight_decay": weight_decay if decays else 0.0}
        for name, decays in (("backbone", True), ("backbone_no_decay", False))
    ]


def _fit_epoch(
    setting: Setting,
    member: _Member,
    epoch: int,
    rows: NDArray[np.int64],
    weights: Tensor | None,
    progress: Progress,
) -> tuple[float, float]:
    """All images once; returns the mean loss and the last rate. The order is that of a cached training."""
    drawn = 0 if member.recipe.same_batches else epoch
    order = np.random.Generator(np.random.PCG64([setting.config.data_seed, drawn])).permutation(len(rows))
    geometry = setting.network.geometry
    if setting.online.augment == "crop-flip":
        geometry = replace(geometry, view=View(member.seed, epoch))  # drawn from (seed, epoch, key)
    for module in member.modules.values():
        module.train()
    losses: list[float] = []
    lr = 0.0
    stretches = setting.read(rows[order].tolist(), geometry, member.recipe.batch_size)
    with closing(stretches) as batches:  # an error must not leave threads that decode
        for step, batch in enumerate(batches, start=epoch * member.steps):
            lr = lr_at(step, member.total, setting.recipe)
            for group in member.optimizer.param_groups:
                group["lr"], group["eps"] = lr * group["scale"], adam_eps(step, setting.recipe)
            if batch is not None:
                losses.append(_step(setting, member, batch, geometry, weights))
                if not math.isfinite(losses[-1]):
                    raise _diverged(setting, member.seed, step, batch.rows)
            progress.advance(1, f"loss {losses[-1]:.3f}" if losses else "")
    return sum(losses) / max(1, len(losses)), lr


def _step(
    setting: Setting, member: _Member, batch: PixelBatch, geometry: PixelGeometry, weights: Tensor | None
) -> float:
    """One optimiser step; returns the loss, penalty included."""
    recipe, device, unfrozen = setting.recipe, setting.device, setting.online.unfrozen
    pixels = torch.from_numpy(batch.pixels[geometry]).permute(0, 3, 1, 2)
    targets = setting.targets[batch.rows].to(device)
    with setting.network_precision():
        prepared = member.head.prepare(setting.network.features(pixels, gradients=unfrozen))
    with autocast(recipe, device):
        logits = member.head(prepared, member.rng)
        loss = reduce_loss(setting.task.loss, logits, targets, weights=weights)
    if (penalty := member.head.penalty()) is not None:
        loss = loss + penalty
    if recipe.divide_by_whole_batch:
        loss = loss * (len(targets) / member.recipe.batch_size)
    member.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.max_grad_norm is not None:
        trained = [p for module in member.modules.values() for p in module.parameters()]
        nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
    member.optimizer.step()
    return float(loss.detach())


def _class_weights(setting: Setting, rows: NDArray[np.int64]) -> Tensor | None:
    if not setting.recipe.class_weights:
        return None
    return class_weights(setting.targets[rows], len(setting.listing.classes)).to(setting.device)


@contextmanager
def _own_randomness(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """What a network itself draws (timm's drop path, where it has any) depends on seed and epoch alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed * 1_000_003 + epoch)
        yield


def _diverged(setting: Setting, seed: int, step: int, rows: Sequence[int]) -> LofftaError:
    keys = [printable(setting.listing.keys[row]) for row in rows]
    what = f"the loss of seed {seed} is not finite at step {step}"
    setting.log.write(f"{what}; images of that step: {', '.join(keys) or 'not known'}")
    return LofftaError(
        what,
        where=f"images {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        if keys
        else "the last step of an epoch",
        remedy="lower the learning rate (--set lr=..., --lr-backbone) and give a new --out; "
        "all images of the step stand in log.txt",
    )

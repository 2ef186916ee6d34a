"""Stage two: trains heads from a cache; several seeds side by side on one read of the data.

In: a TrainConfig and a directory.   Out: a run with weights, metrics, predictions and results. The data order depends
on `data_seed` alone and is shared by all seeds, so that a seed trained among others equals the seed trained alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta import machine
from loffta.batches import Feed, bytes_per_image
from loffta.config import TrainConfig, parse
from loffta.errors import LofftaError, UsageError
from loffta.evaluate import evaluate
from loffta.features import Feature, choose_features, resolved_choices, usable_rows
from loffta.heads import Head, build_head, find_head
from loffta.heads.recipe import Recipe
from loffta.optim import lr_at, n_steps, parameter_groups
from loffta.progress import Progress
from loffta.runs import RunLog, RunPaths, check_out, read_results, save_head, start_run, write_lines
from loffta.store.cache import Cache
from loffta.targets import check_targets, choose_task, read_targets
from loffta.tasks import TASKS

# Parameters times images a step below which torch gets one thread on the CPU. A linear probe of K = 512 (330,000) makes
# 1,400 steps/s of 3 seeds with one thread as with two; with two, 15 to 220 when other processes want the same CPUs.
SMALL_STEP = 4_000_000
SCORING_WEIGHT = 0.01  # lambda of the scoring run where none is given (second-hand from the ComBo paper)


@dataclass
class Member:
    """One seed in training."""

    seed: int
    head: Head
    optimizer: torch.optim.Optimizer
    rng: torch.Generator  # on the head's device: what its training draws
    losses: list[float] = field(default_factory=list)  # of the steps of this epoch
    log: list[dict[str, Any]] = field(default_factory=list)  # a row per epoch


def train(config: TrainConfig, out: Path, stop: machine.StopFlag) -> dict[str, Any]:
    """Trains and evaluates; a finished run is read back, not repeated.

    Raises:
        UsageError: unknown head, key, store, tap or split; near names are given.
        LofftaError: the cache lacks features, the directory holds another run, or the loss is not finite.
        Stopped: a signal came; the same command starts the training again.
    """
    machine.cap_threads()
    cache = Cache.open(config.cache)
    config = config.model_copy(update={"task": choose_task(cache.table, config.task)})
    if config.select is not None:
        check_out(out, _absolute(config), ignore=("features", "recipe"))  # before the scoring run, not after it
        config = _select(config, cache, out, stop)
    features, recipe = _resolve(config, cache)
    config = _absolute(config).model_copy(
        update={"features": resolved_choices(features), "recipe": recipe.model_dump(mode="json")}
    )
    check_out(out, config)
    results_path = RunPaths(out).results(config.test_on)
    if results_path.exists():
        return read_results(results_path)
    rows = _check_splits(config, cache, features)
    start = time.monotonic()
    paths = start_run(out, config)
    log = RunLog(paths.log)
    try:
        members = _fit(config, cache, features, rows, recipe, stop, log)
    except LofftaError as error:
        log.write(f"ended: {error.what}")
        raise
    for member in members:
        write_lines(paths.metrics(member.seed), member.log)
        save_head(paths.head(member.seed), member.head.state_dict())
    seconds = time.monotonic() - start
    log.write(f"trained in {seconds:.1f} s")
    return evaluate(out, config.test_on, device=config.device, train_seconds=seconds, stop=stop)


def _select(config: TrainConfig, cache: Cache, out: Path, stop: machine.StopFlag) -> TrainConfig:
    """ComBo's selection: a run with the penalty scores all backbones; what is returned trains on the best without it.

    Which backbones were kept stands in the run's features, the scores in scoring/results.json.
    """
    if "relevance_weight" not in find_head(config.head).recipe.model_fields:
        raise UsageError(f"head '{config.head}' gives no relevance", where="--select", remedy="use --head combo")
    features, _ = _resolve(config, cache)
    labels = list(dict.fromkeys(feature.spec.backbone for feature in features))
    assert config.select is not None
    if config.select >= len(labels):
        raise UsageError(
            f"cannot select {config.select} of {len(labels)} backbones",
            where="--select",
            remedy=f"choose 1 to {len(labels) - 1}, or leave --select out",
        )
    penalised = {**config.recipe, "relevance_weight": config.recipe.get("relevance_weight") or SCORING_WEIGHT}
    scoring = config.model_copy(update={"select": None, "recipe": penalised})
    scored = train(scoring, RunPaths(out).scoring, stop)
    kept = {entry["backbone"] for entry in scored["relevance"]["backbones"][: config.select]}
    chosen = resolved_choices([feature for feature in features if feature.spec.backbone in kept])
    return config.model_copy(update={"features": chosen, "recipe": {**config.recipe, "relevance_weight": 0.0}})


def _resolve(config: TrainConfig, cache: Cache) -> tuple[list[Feature], Recipe]:
    """The features and the whole recipe, with everything filled in that depends on the features."""
    entry = find_head(config.head)
    recipe = parse(entry.recipe, config.recipe, where=f"recipe of head '{config.head}'")
    features = choose_features(cache, config.features, recipe.kinds(), default_taps=entry.head.default_taps)
    return features, recipe.resolve([feature.spec for feature in features])


def _absolute(config: TrainConfig) -> TrainConfig:
    """With the cache's whole path: `evaluate` may be called from another folder."""
    return config.model_copy(update={"cache": config.cache.absolute()})


def _check_splits(config: TrainConfig, cache: Cache, features: Sequence[Feature]) -> NDArray[np.int64]:
    """Rows to train on; the test split is looked at too: what is wrong with it shows before the training."""
    machine.resolve_device(config.device)
    for split in (config.test_on, config.train_on):
        rows = usable_rows(cache, features, split, partial=config.partial)
        check_targets(cache.table, rows, split, config.task)
    return rows


def _fit(
    config: TrainConfig,
    cache: Cache,
    features: Sequence[Feature],
    rows: NDArray[np.int64],
    recipe: Recipe,
    stop: machine.StopFlag,
    log: RunLog,
) -> list[Member]:
    device = machine.resolve_device(config.device)
    all_targets = read_targets(cache.table, config.task).to(device)
    specs = [feature.spec for feature in features]
    members = []
    for seed in range(config.seeds):
        head = build_head(config.head, specs, len(cache.table.classes), recipe, seed).to(device).train()
        groups = parameter_groups(head, recipe.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=device.type != "mps")
        members.append(Member(seed, head, optimizer, torch.Generator(device).manual_seed(seed)))
    total = n_steps(len(rows), recipe.batch_size, recipe.epochs)
    with stop.at_once("reading the features; nothing is kept of an unfinished training"):
        feed = Feed(
            features, rows, batch_size=recipe.batch_size, device=device, mode=config.feed, seed=config.data_seed
        )
    if sum(p.numel() for p in members[0].head.parameters()) * recipe.batch_size < SMALL_STEP:
        torch.set_num_threads(1)
    log.write(f"versions {machine.versions()}, device {device}, {torch.get_num_threads()} threads")
    size = bytes_per_image(features) * len(rows) / 1e6
    log.write(f"{config.head}: {len(rows)} images, {size:.1f} MB of features, {feed.mode} mode", show=True)
    step = 0
    with feed, Progress(f"train {config.head}", total, "steps") as progress:
        for epoch in range(recipe.epochs):
            for batch in feed.epoch(epoch):
                stop.check(f"training step {step} of {total}; nothing is kept of an unfinished training")
                lr = lr_at(step, total, recipe)
                prepared = members[0].head.prepare(batch.features)
                targets = all_targets[batch.rows]
                found = [_step(member, prepared, targets, config, recipe, lr) for member in members]
                losses: list[float] = torch.stack(found).tolist()  # the one wait for the device in a step
                for member, loss in zip(members, losses, strict=True):
                    member.losses.append(loss)
                    if not math.isfinite(loss):
                        raise _diverged(step, member.seed, [cache.table.keys[row] for row in batch.rows.tolist()])
                step += 1
                progress.advance(1, f"loss {losses[0]:.3f}")
            means = [sum(member.losses) / len(member.losses) for member in members]
            for member, mean in zip(members, means, strict=True):
                member.log.append({"epoch": epoch, "step": step, "loss": mean, "lr": lr})
                member.losses.clear()
            log.write(f"epoch {epoch}: loss {' '.join(f'{mean:.4f}' for mean in means)}, lr {lr:.2e}")
    return members


def _step(member: Member, prepared: Tensor, targets: Tensor, config: TrainConfig, recipe: Recipe, lr: float) -> Tensor:
    """One optimiser step; returns the loss, penalty included, without waiting for the device."""
    for group in member.optimizer.param_groups:
        group["lr"] = lr
    device = prepared.device.type
    precision = recipe.precision or ("bf16" if device == "cuda" else "fp32")
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        loss = TASKS[config.task].loss(member.head(prepared, member.rng), targets).mean()
    if (penalty := member.head.penalty()) is not None:
        loss = loss + penalty
    member.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    member.optimizer.step()
    return loss.detach()


def _diverged(step: int, seed: int, keys: Sequence[str]) -> LofftaError:
    return LofftaError(
        f"the loss of seed {seed} is not finite at step {step}",
        where=f"images {', '.join(keys[:5])}, ...",
        remedy="lower the learning rate (--set lr=...), or look for damage with `loffta verify CACHE --deep`",
    )

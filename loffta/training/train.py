"""Stage two: trains heads from a cache; several seeds side by side on one read of the data.

In: a TrainConfig and a directory.   Out: a run with weights, metrics, predictions and results. The same command goes on
from the last checkpoint and repeats nothing that is finished. `train` opens a cache; `run_training` is the driver, and
serves `online.train` as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loffta import augment
from loffta.config import TrainConfig, parse
from loffta.dataset.dense import choose_any_task, learnable, open_targets, refuse_shots
from loffta.dataset.features import Feature, choose_features, resolved_choices
from loffta.dataset.parts import choose_parts
from loffta.dataset.splits import HOLDOUT, OUT_OF_FOLD, check_part, choose_splits
from loffta.dataset.targets import fit_to_task, read_targets, refuse_one_class, spread_of
from loffta.dataset.views import with_views
from loffta.errors import LofftaError, UsageError
from loffta.feed.staged import Stage
from loffta.heads import HEADS, find_head
from loffta.heads.recipe import Recipe
from loffta.machine import process
from loffta.machine.progress import say, silenced
from loffta.machine.ranks import this_rank
from loffta.runs.claims import Claim, claimed
from loffta.runs.folder import check_out, has_work, start_run
from loffta.runs.holdout import hold_out, record_holdout
from loffta.runs.known_images import as_trained, growth, read_known
from loffta.runs.records import Training
from loffta.runs.run import (
    RunLog,
    RunPaths,
    open_run,
    read_json,
    read_results,
)
from loffta.runs.turns import Turns, draw_turns, has_weights, homes, record_turns
from loffta.store.cache import Cache
from loffta.store.columns import SUFFIXES
from loffta.tasks.dense import DENSE_TASKS
from loffta.training.cached import CachedSupply
from loffta.training.fit import Session
from loffta.training.loss import check_weights
from loffta.training.ranks import RanksChoice, choose_sharing, shared, wait_for_begin, wait_for_end
from loffta.training.remember import refuse_steps, remembers
from loffta.training.search import search
from loffta.training.supply import Supply
from loffta.training.turns import train_heads, train_turns
from loffta.training.upsampler import with_upsampler

SCORING_WEIGHT = 0.01  # lambda of ComBo's scoring run where none is given (second-hand from the paper)


class _Rows(NamedTuple):
    """Images of a run."""

    trained: NDArray[np.int64]
    held: NDArray[np.int64] | None  # kept out by --holdout
    turns: Turns | None  # who trains on which of them, where not all do


def train(config: TrainConfig, out: Path, stop: process.StopFlag, ranks: RanksChoice = "auto") -> dict[str, Any]:
    """Trains and evaluates; a finished run is read back, not repeated, and one that was cut off goes on.

    Args:
        ranks: how several processes share the training; all of them call this with the same arguments.
    Raises:
        UsageError: unknown head, key, store, tap or split; near names are given.
        LofftaError: the cache lacks features, the directory holds another run, the loss is not finite, or the memory
            is not enough.
        Stopped: a signal came; the same command goes on with the training.
    """
    process.cap_threads()
    paths = RunPaths(out)
    cache, grown = _as_known(paths, config)
    config = config.model_copy(update={"task": choose_any_task(cache, config.head, config.task)})
    config = choose_parts(config, cache.table)
    config = _absolute(choose_splits(config, cache.table, cache.paths.images, learnable(cache, config.task)))
    if config.shots and config.task in DENSE_TASKS:
        refuse_shots(config.task)
    if remembers(config.head):
        refuse_steps(config)
    if config.select is not None:
        check_out(out, config, cache, ignore=("features", "recipe"))  # before the scoring run, not after it
        config = _select(config, cache, out, stop, ranks)
    features, recipe = _resolve(config, cache)
    stage = Stage(config.stage_dir, stop)
    if config.views:
        features = with_views(cache, features, recipe.kinds())
    config = config.model_copy(
        update={
            "features": resolved_choices(features),
            "recipe": recipe.model_dump(mode="json"),
            "augment": augment.words(augment.resolve(config.augment)),
            "stage_dir": None,
        }
    )
    dense = None
    if config.task in DENSE_TASKS:
        dense = open_targets(cache, config.task, config.head, features, training=True)
    supply = CachedSupply(config, cache, features, dense=dense, stage=stage)
    return run_training(config, out, supply, recipe, stop, grown, ranks)


def run_training(
    config: TrainConfig,
    out: Path,
    supply: Supply,
    recipe: Recipe,
    stop: process.StopFlag,
    grown: Mapping[str, int] = {},
    ranks: RanksChoice = "auto",
) -> dict[str, Any]:
    """What a training is, whatever feeds it: from a resolved configuration to results on all splits to measure.

    Args:
        recipe: that of `config`, parsed.
        grown: how the image set has grown since the run began, for its results.
    """
    check_out(out, config, supply.cache)
    paths = RunPaths(out)
    if _is_trained(paths, config) and all(paths.results(split).exists() for split in _measured_on(config)):
        results = read_results(paths.results(config.test_on))
        if open_run(out)[1].cache != config.cache:  # moved since
            with suppress(LofftaError):  # a run that may not be written is read back all the same
                start_run(out, config, supply.cache)
        return {**results, "images": results.get("images", {}) | grown}
    chosen, rank = _check_splits(config, supply, recipe, paths), this_rank()
    sharing = choose_sharing(ranks, rank, config, paths) if rank.of > 1 or paths.deal.exists() else "batches"
    device = process.resolve_device(config.device)
    if not rank.leads:
        session = Session(config, supply, device, paths, RunLog(None), stop, Claim(paths, 0), rank=rank)
        return _follow(session, sharing, chosen, recipe)
    with claimed(paths) as claim:
        start_run(out, config, supply.cache)
        if chosen.held is not None:
            record_holdout(paths, supply.table, config, chosen.held)
        if chosen.turns is not None:
            record_turns(paths, supply.table, config, chosen.turns)
        session = Session(config, supply, device, paths, RunLog(paths.log), stop, claim, rank=rank)
        if grown:
            session.log.write(f"{growth(**grown)}: the training goes on with those", show=True)
        return _finish(session, sharing, chosen, recipe)


def _as_known(paths: RunPaths, config: TrainConfig) -> tuple[Cache, dict[str, int]]:
    """The cache as the run in `paths`, if there is one, has known it; and how it has grown since, for its results."""
    cache = Cache.open(config.cache)
    if config.select is not None and not has_work(paths.root):
        paths = RunPaths(
            paths.scoring
        )  # the backbones that are kept are trained on the images that they were scored on
    if not has_work(paths.root):
        return (cache if config.labels is None else cache.with_labels(config.labels)), {}
    now, cache = cache, as_trained(paths, cache)
    known = read_known(paths)
    view = None if known is None else known.view(cache)
    if known is None or view is None:
        return cache, {}
    with suppress(LofftaError):  # a set or a file that is gone is as good as another one
        now = now if config.labels is None else now.with_labels(config.labels)
    if not known.begins(now):
        say("the labels have changed since this run began: it keeps its own; another --out trains on those of now")
    return view, known.growth_in(cache)


def _finish(session: Session, sharing: RanksChoice, chosen: _Rows, recipe: Recipe) -> dict[str, Any]:
    """Trains what is not trained, and evaluates."""
    config, paths = session.config, session.paths
    try:
        with shared(session, sharing, lambda: _is_trained(paths, config)) as own:
            if own is not None:
                _train(own, chosen, recipe)
        paths.checkpoint.unlink(missing_ok=True)
        seconds = read_json(paths.training, Training).seconds
        for split in _measured_on(config):
            session.claim.check()
            results = session.supply.evaluate(paths, split, seconds, session.stop)
    except LofftaError as error:
        session.log.write(f"ended: {error.what}")  # train-ddp.sbatch looks for it: torchrun hides exit codes
        raise
    return results


def _follow(session: Session, sharing: RanksChoice, chosen: _Rows, recipe: Recipe) -> dict[str, Any]:
    """What the other ranks do: they train along, and wait for the results of the first."""
    config, paths = session.config, session.paths
    with silenced(sharing == "batches"):  # the first one tells all that there is to tell
        wait_for_begin(session)
        with shared(session, sharing, lambda: _is_trained(paths, config)) as own:
            if own is not None:
                _train(own, chosen, recipe)
        wait_for_end(session, [paths.results(split) for split in _measured_on(config)])
    return read_results(paths.results(config.test_on))


def _is_trained(paths: RunPaths, config: TrainConfig) -> bool:
    """Whether all weights are there; one file that was deleted, because it was damaged, is trained again.

    Of a training online, an older version left no training.json: its results say that it is finished.
    """
    ended = paths.training.exists() or (config.online is not None and paths.results(config.test_on).exists())
    return ended and all(has_weights(home, config, range(config.seeds)) for home in homes(paths, config))


def _train(session: Session, chosen: _Rows, recipe: Recipe) -> None:
    """From the search to the heads' files."""
    rows, held, turns = chosen
    config, log = session.config, session.log
    log.write(f"versions {process.versions()}, device {session.device}")
    _warn(session, rows, held)
    if config.search:
        recipe = search(session, rows, recipe)
    if turns is None:
        train_heads(session, rows, recipe)
    else:
        train_turns(session, turns, recipe)


def _select(config: TrainConfig, cache: Cache, out: Path, stop: process.StopFlag, ranks: RanksChoice) -> TrainConfig:
    """ComBo's selection: a run with the penalty scores all backbones; what is returned trains on the best without it.

    A head that has the penalty unasked, as its regulariser (smp), keeps it, with the same weight in both runs.
    Which backbones were kept stands in the run's features, the scores in scoring/results.json.
    """
    fields = find_head(config.head).recipe.model_fields
    if "relevance_weight" not in fields:
        able = " or ".join(name for name, entry in HEADS.items() if "relevance_weight" in entry.recipe.model_fields)
        raise UsageError(f"head '{config.head}' gives no relevance", where="--select", remedy=f"use --head {able}")
    features, recipe = _resolve(config, cache)
    labels = list(dict.fromkeys(feature.spec.backbone for feature in features))
    assert config.select is not None
    if config.select >= len(labels):
        raise UsageError(
            f"cannot select {config.select} of {len(labels)} backbones",
            where="--select",
            remedy=f"choose {'1' if len(labels) == 2 else f'1 to {len(labels) - 1}'}, or leave --select out"
            if len(labels) > 1
            else "leave --select out, or give the features of several backbones",
        )
    penalised = {**config.recipe, "relevance_weight": recipe.model_dump()["relevance_weight"] or SCORING_WEIGHT}
    # the scores are ComBo's by its own recipe; a search is for the head that is kept
    scoring = config.model_copy(update={"select": None, "search": False, "recipe": penalised})
    scored = train(scoring, RunPaths(out).scoring, stop, ranks)
    kept = {entry["backbone"] for entry in scored["relevance"]["backbones"][: config.select]}
    chosen = resolved_choices([feature for feature in features if feature.spec.backbone in kept])
    final = config.recipe if fields["relevance_weight"].default else {**config.recipe, "relevance_weight": 0.0}
    return config.model_copy(update={"features": chosen, "recipe": final})


def _resolve(config: TrainConfig, cache: Cache) -> tuple[list[Feature], Recipe]:
    """The features and the whole recipe, with everything filled in that depends on the features."""
    entry = find_head(config.head)
    recipe = parse(entry.recipe, config.recipe, where=f"recipe of head '{config.head}'")
    if config.task not in DENSE_TASKS:
        recipe = fit_to_task(recipe, config.task, config.recipe)
    features = choose_features(cache, config.features, recipe.kinds(), default_taps=entry.head.default_taps)
    specs = [feature.spec for feature in features]
    return features, with_upsampler(recipe.resolve(specs), specs)


def _absolute(config: TrainConfig) -> TrainConfig:
    """With the whole paths of the cache, and of a file of labels: `evaluate` may be called from another folder."""
    labels = config.labels
    if labels is not None and Path(labels).suffix.lower() in SUFFIXES:
        labels = str(Path(labels).absolute())
    return config.model_copy(update={"cache": config.cache.absolute(), "labels": labels})


def _measured_on(config: TrainConfig) -> list[str]:
    """Splits to evaluate; `test_on` last: its results say that the run is finished."""
    extra = HOLDOUT if config.holdout is not None else config.validate_on
    return [split for split in (extra,) if split not in (None, config.test_on)] + [config.test_on]


def _check_splits(config: TrainConfig, supply: Supply, recipe: Recipe, paths: RunPaths) -> _Rows:
    """Rows to train on, and rows to hold out; all splits are looked at: what is wrong shows before the training."""
    process.resolve_device(config.device)
    table = supply.table
    drawn = {HOLDOUT} if config.holdout is not None else {OUT_OF_FOLD} if config.folds is not None else set()
    for split in [name for name in _measured_on(config) if name not in drawn] + [config.train_on]:
        rows = supply.rows(split)
        if config.task == "regression":
            spread_of(table, rows, split)
    if supply.dense is None:
        if not config.one_class:
            all_the_same = "; --one-class trains on one class all the same"
            refuse_one_class(table, rows, config.train_on, all_the_same)
        check_weights(recipe, read_targets(table, config.task))
    if config.holdout is None:
        return _Rows(rows, None, draw_turns(paths, config, table, rows))
    held = hold_out(paths, config, table, rows)
    check_part(np.isin(rows, held), table.labels[rows], table, "--holdout")
    rows = np.setdiff1d(rows, held)
    return _Rows(rows, held, draw_turns(paths, config, table, rows))


def _warn(session: Session, rows: NDArray[np.int64], held: NDArray[np.int64] | None) -> None:
    """Says what a user may not have meant: classes without images to learn from or to measure on."""
    table, config = session.supply.table, session.config
    for line in session.objective.warnings(rows, config.train_on):
        session.log.write(line, show=True)
    settings = augment.resolve(config.augment)
    if (settings.moves or settings.token_drop) and all(spec.kind != "grid" for spec in session.supply.specs):
        session.log.write(
            f"head '{config.head}' reads no grids here: of --augment only mixing and noise reach it", show=True
        )
    if {*config.test_on.split("+")} & {*config.train_on.split("+")}:
        session.log.write(
            f"split '{config.test_on}' is trained on, too: its results say nothing about new images",
            show=True,
        )
    if held is not None:
        everything = np.union1d(rows, held)
        warning = check_part(np.isin(everything, held), table.labels[everything], table, "--holdout")
        session.log.write(f"--holdout: {len(held)} of the {len(everything)} images of {config.train_on}")
        if warning is not None:
            session.log.write(warning, show=True)

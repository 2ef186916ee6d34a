"""Training without a cache: images -> augmentation -> backbone -> head at every step. The honest rival of the cache.

In: a TrainConfig with its `online` part.   Out: a run with the results of a cached one. LOFF-TA's reference rows are
`online-linear` with the backbone frozen and with it trained; any head of HEADS trains this way, too. Seeds come one
after the other; `fit` trains each.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loffta.config import OnlineConfig, TrainConfig, parse
from loffta.dataset.targets import choose_task, fit_to_task, read_targets, refuse_one_class
from loffta.errors import LofftaError, UsageError
from loffta.evaluation.evaluate import count_left_out, score
from loffta.evaluation.measure import measure, prediction_columns
from loffta.extraction.jobs import Load
from loffta.heads import find_head
from loffta.heads.recipe import Recipe
from loffta.images.sources import ImageSource
from loffta.look import Look
from loffta.machine import process
from loffta.online.evaluate import rows_to_use
from loffta.online.fit import ONLINE_LINEAR, Setting, fit_seed, head_of, is_trained
from loffta.online.network import linear_network, network_for
from loffta.online.stream import BATCH_SIZE
from loffta.runs.claims import claimed
from loffta.runs.folder import check_out, start_run
from loffta.runs.records import Epoch
from loffta.runs.run import (
    RunLog,
    RunPaths,
    load_head,
    open_run,
    read_lines,
    read_results,
    save_results,
)
from loffta.store.recipe import recipe_hash
from loffta.training.loss import check_weights
from loffta.training.optim import fit_to_images
from loffta.zoo.names import ZOO

_LESS_MEMORY = "a smaller batch (--set batch_size=...), a smaller --image-px or --device cpu need less"
# Options of TrainConfig that are about a cache, or that this training has not: they would do nothing
_OF_THE_CACHE = (
    *("features", "validate_on", "holdout", "augment", "search", "select"),
    *("feed", "order", "checkpoint_s", "partial"),
)


def train_online(
    config: TrainConfig, out: Path, source: ImageSource, load: Load, stop: process.StopFlag
) -> dict[str, Any]:
    """Trains on images as they come, and evaluates; a finished run is read back, not repeated.

    Args:
        load: makes a backbone on the device of `config`.
    Raises:
        UsageError: unknown head, key, tap or split; a head of several phases; a backbone that cannot be trained; an
            option that is for caches alone; class weights of labels that have none.
        LofftaError: labels that cannot be used, another run in `out`, a loss that is not finite.
        TooManyBadImages: over `max_bad_frac`, after the first epoch or when the results are written.
        Stopped: a signal came; the same command continues behind the last finished epoch.
    """
    assert config.online is not None, "the caller wants to train online"
    online = config.online
    _refuse_options(config)
    with stop.at_once("listing the images"):
        listing = source.listing()
    config = config.model_copy(update={"task": choose_task(listing, config.task)})
    named = online.backbone.model_copy(update={"name": ZOO.get(online.backbone.name, online.backbone.name)})
    online = _with_look(online.model_copy(update={"backbone": named}), out)
    entry = find_head(head_of(config.head))
    recipe = parse(entry.recipe, config.recipe, where=f"recipe of head '{config.head}'")
    recipe = fit_to_task(recipe, config.task, config.recipe)
    if entry.head.n_phases > 1:
        raise UsageError(
            f"head '{config.head}' trains in several phases", where="--online", remedy="train it on a cache"
        )
    device = process.resolve_device(config.device)
    with stop.at_once("loading the backbone"):
        rows = {split: rows_to_use(listing, split, config.task) for split in (config.train_on, config.test_on)}
        listing.refuse_alike()
        if not config.one_class:
            refuse_one_class(listing, rows[config.train_on], config.train_on)
        check_weights(recipe, read_targets(listing, config.task))
        backbone = load(online.backbone)
    if config.head == ONLINE_LINEAR:
        network = linear_network(backbone, online)
    else:
        network = network_for(backbone, online, recipe.kinds(), entry.head.default_taps)
    initial = copy.deepcopy(network.model.state_dict()) if online.unfrozen else {}
    recipe = recipe.resolve(network.specs)
    online = online.model_copy(
        update={"images_digest": listing.digest, "backbone_hash": recipe_hash(network.info.recipe)}
    )
    config = config.model_copy(update={"online": online, "recipe": recipe.model_dump(mode="json")})
    check_out(out, config)
    paths = RunPaths(out)
    results_path = paths.results(config.test_on)
    if results_path.exists() and all(is_trained(paths, seed, online) for seed in range(config.seeds)):
        return read_results(results_path)
    with claimed(paths) as claim, process.explain_memory(device, out, _LESS_MEMORY):
        start_run(out, config)
        log = RunLog(paths.log)
        setting = Setting(config, online, recipe, network, source, listing, device, paths, log, stop, claim, initial)
        results = _fit_all(setting, rows[config.train_on], rows[config.test_on])
    setting.refuse_bad(rows[config.test_on], done=f"the results of {out} are written")
    return results


def _with_look(online: OnlineConfig, out: Path) -> OnlineConfig:
    """What is not named is as the run that is there has it, which says nothing if it is of old; else as new caches."""
    there = open_run(out)[1].online if RunPaths(out).config.exists() else None
    known = there or online.model_copy(update=Look()._asdict())
    return online.model_copy(update={n: getattr(known, n) for n in Look._fields if getattr(online, n) is None})


def _seconds(metrics: Path) -> float:
    """What a seed's training took."""
    epochs = read_lines(metrics, Epoch)
    if not epochs:
        raise LofftaError(
            "there is no epoch in this file", where=metrics, remedy="delete the seed's folder: it is trained anew"
        )
    return epochs[-1].seconds


def _refuse_options(config: TrainConfig) -> None:
    for name in _OF_THE_CACHE:
        if getattr(config, name) != TrainConfig.model_fields[name].default:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} is for training on a cache",
                where=f"{option}, with --online",
                remedy="use --augment-images for images" if name == "augment" else "leave it out, or train on a cache",
            )


def _fit_all(setting: Setting, train_rows: NDArray[np.int64], test_rows: NDArray[np.int64]) -> dict[str, Any]:
    config, paths, log = setting.config, setting.paths, setting.log
    log.write(f"versions {process.versions()}, device {setting.device}, {torch.get_num_threads()} threads")
    state = "trained, too" if setting.online.unfrozen else "frozen"
    log.write(f"{config.head} online: {len(train_rows)} images, {setting.network.info.label} {state}", show=True)
    try:
        for seed in range(config.seeds):
            if not is_trained(paths, seed, setting.online):
                fit_seed(setting, seed, train_rows)
    except LofftaError as error:
        log.write(f"ended: {error.what}")
        raise
    seconds = sum(_seconds(paths.metrics(seed)) for seed in range(config.seeds))
    log.write(f"trained in {seconds:.1f} s")
    start = time.monotonic()
    rows, logits = _predict(setting, test_rows)
    keys, targets = [setting.listing.keys[row] for row in rows], setting.targets[rows].numpy()
    fitted = fit_to_images(setting.recipe, len(train_rows))
    results = _describe(setting, fitted, len(rows), len(test_rows) - len(rows))
    results |= measure(setting.task, logits, targets, setting.listing.classes, keys=keys, seed=config.data_seed)
    results |= {"seconds": time.monotonic() - start, "peak_rss_mib": process.peak_rss_mib()}
    results |= {"versions": process.versions(), "train_seconds": seconds}
    setting.claim.check()
    save_results(paths, config.test_on, results, prediction_columns(setting.task, logits, targets, rows, keys))
    return results


def _predict(setting: Setting, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The good rows, and every seed's logits [S, B, C] of them.

    One pass serves all seeds where the backbone is frozen, else each has its own.
    """
    seeds = range(setting.config.seeds)
    groups = [[seed] for seed in seeds] if setting.online.unfrozen else [list(seeds)]
    parts = [_predict_seeds(setting, group, rows) for group in groups]
    return parts[0][0], torch.cat([part for _, part in parts]).numpy()


def _predict_seeds(
    setting: Setting, seeds: Sequence[int], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Float[Tensor, "S B C"]]:
    """The good rows, and the seeds' logits, from the weights as they are on disk."""
    heads = [setting.build_head(seed) for seed in seeds]
    for head, seed in zip(heads, seeds, strict=True):
        head.load_state_dict(load_head(setting.paths.head(seed)))
        head.eval()
    if setting.online.unfrozen:
        setting.network.model.load_state_dict(load_head(setting.paths.backbone(seeds[0])))
        setting.network.model.eval()
    geometry = setting.network.geometry
    good: list[int] = []
    found: list[Tensor] = []
    for batch in setting.read(rows.tolist(), geometry, min(setting.recipe.batch_size, BATCH_SIZE)):
        if batch is not None:
            pixels = torch.from_numpy(batch.pixels[geometry]).permute(0, 3, 1, 2)
            with torch.no_grad(), setting.network_precision():
                features = setting.network.features(pixels, gradients=False)
            found.append(score(heads, features, setting.recipe))
            good += batch.rows
    if not found:
        setting.refuse_bad(rows, done="no results were written")
        raise LofftaError("no image of the test split can be used", where=setting.listing.source, remedy="mend them")
    return np.array(good, dtype=np.int64), torch.cat(found, dim=1)


def _describe(setting: Setting, fitted: Recipe, n_used: int, n_bad: int) -> dict[str, Any]:
    config, online, info = setting.config, setting.online, setting.network.info
    label = f"{info.label} (trained, too)" if online.unfrozen else info.label
    n_unlabelled = len(setting.listing.rows_of(config.test_on)) - n_used - n_bad
    return {
        "task": config.task,
        "head": config.head,
        "split": config.test_on,
        "n": n_used,
        "features": [
            {"store": info.name, "label": label, "recipe_hash": recipe_hash(info.recipe), "taps": list(spec.taps)}
            for spec in setting.network.specs
        ],
        "images": {"used": n_used, **count_left_out(n_bad, n_unlabelled)},
        "recipe": config.recipe,
        "training": {"epochs": fitted.epochs, "batch_size": fitted.batch_size},
        "online": {
            "source": setting.listing.source,
            "digest": setting.listing.digest,
            "unfrozen": online.unfrozen,
            "augment": online.augment,
            "backbone": info.recipe,
        },
    }

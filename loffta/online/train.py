"""Training without a cache: images -> augmentation -> backbone -> head at every step. The honest rival of the cache.

In: a TrainConfig with its `online` part.   Out: a run with the results of a cached one. LOFF-TA's reference rows are
`online-linear` with the backbone frozen and with it trained; any head of HEADS trains this way, too, and what dense
ones learn is cut as the images are. Here the images
are listed and the network is loaded; the training itself is that of `training.train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loffta import augment
from loffta.config import OnlineConfig, TrainConfig, parse
from loffta.dataset.parts import choose_parts
from loffta.dataset.splits import choose_splits
from loffta.dataset.targets import choose_task, fit_to_task
from loffta.errors import LofftaError, UsageError
from loffta.extraction.jobs import Load
from loffta.heads import find_head
from loffta.heads.dense import DenseRecipe
from loffta.images.sources import ImageSource
from loffta.look import Look
from loffta.machine import process
from loffta.online import ONLINE_LINEAR, head_of
from loffta.online.dense_learning import FreshTargets, choose_fresh_task, fresh_targets, rows_with_paths
from loffta.online.evaluate import rows_to_use
from loffta.online.feed import OnlineImages
from loffta.online.network import linear_network, network_for
from loffta.online.supply import OnlineSupply
from loffta.runs.run import RunPaths, open_run
from loffta.store.recipe import recipe_hash
from loffta.training.ranks import RanksChoice
from loffta.training.train import run_training
from loffta.zoo.names import ZOO

# Options of TrainConfig that are about a cache: they would do nothing
_OF_THE_CACHE = ("features", "views", "select", "feed", "order", "partial")


def train_online(
    config: TrainConfig,
    out: Path,
    source: ImageSource,
    load: Load,
    stop: process.StopFlag,
    ranks: RanksChoice = "auto",
) -> dict[str, Any]:
    """Trains on images as they come, and evaluates; a finished run is read back, not repeated.

    Args:
        ranks: as `training.train` has it; batches cannot be shared.
    Raises:
        UsageError: unknown head, key, tap or split; a backbone that cannot be trained, or not with this head; an option
            that is for caches alone; class weights of labels that have none.
        LofftaError: labels that cannot be used, another run in `out`, a loss that is not finite.
        TooManyBadImages: over `max_bad_frac`, after an epoch or when the results are written.
        Stopped: a signal came; the same command goes on with the training.
    """
    process.cap_threads()
    assert config.online is not None, "the caller wants to train online"
    _refuse_options(config, config.online, out)
    online = _resolve(config.online, out)
    with stop.at_once("listing the images"):
        listing = source.listing()
        listing.refuse_alike()
    entry = find_head(head_of(config.head))
    recipe = parse(entry.recipe, config.recipe, where=f"recipe of head '{config.head}'")
    task = choose_fresh_task(config, listing) if entry.dense else choose_task(listing, config.task)
    config = choose_parts(config.model_copy(update={"task": task}), listing)
    targets: FreshTargets | None = None
    if isinstance(recipe, DenseRecipe):
        targets = fresh_targets(task, source, listing, recipe)
        config = choose_splits(config, listing, listing.source, targets.has)
        rows_with_paths(targets, listing, config.train_on)  # a mistake shows before a network is loaded
    else:
        config = choose_splits(config, listing, listing.source)
        recipe = fit_to_task(recipe, task, config.recipe)
        rows_to_use(listing, config.train_on, task)
    with stop.at_once("loading the backbone"):
        backbone = load(online.backbone)
    if config.head == ONLINE_LINEAR:
        network = linear_network(backbone, online)
    else:
        network = network_for(backbone, online, recipe.kinds(), entry.head.default_taps)
    if online.unfrozen:
        network.refuse_untrainable()
    recipe = recipe.resolve(network.specs)
    online = online.model_copy(
        update={"images_digest": listing.digest, "backbone_hash": recipe_hash(network.info.recipe)}
    )
    config = config.model_copy(
        update={
            "online": online,
            "recipe": recipe.model_dump(mode="json"),
            "augment": augment.words(augment.resolve(config.augment)),
        }
    )
    images = OnlineImages(source, listing, network, online, process.resolve_device(config.device), targets)
    supply = OnlineSupply(config, online, recipe, images)
    results = run_training(config, out, supply, recipe, stop, ranks=ranks)
    supply.refuse_bad(done=f"the results of {out} are written")
    return results


def _resolve(online: OnlineConfig, out: Path) -> OnlineConfig:
    """With the backbone's whole name.

    What is not named of the look is as the run that is there has it, which says nothing if it is of old; else as new
    caches.
    """
    paths = RunPaths(out)
    there = open_run(out)[1].online if paths.config.exists() else None
    known = there or online.model_copy(update=Look()._asdict())
    changes = {n: getattr(known, n) for n in Look._fields if getattr(online, n) is None}
    named = online.backbone.model_copy(update={"name": ZOO.get(online.backbone.name, online.backbone.name)})
    return online.model_copy(update={"backbone": named} | changes)


def _refuse_options(config: TrainConfig, online: OnlineConfig, out: Path) -> None:
    for name in _OF_THE_CACHE:
        if getattr(config, name) != TrainConfig.model_fields[name].default:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} is for training on a cache",
                where=f"{option}, with --online",
                remedy="leave it out, or train on a cache",
            )
    if online.unfrozen and augment.resolve(config.augment) != augment.AugmentConfig():
        raise UsageError(
            "the features of a backbone that is trained cannot be augmented: no gradient passes",
            where="--augment, with --unfrozen",
            remedy="use --augment-images for images",
        )
    if online.unfrozen and find_head(head_of(config.head)).head.n_phases > 1:
        raise UsageError(
            f"head '{config.head}' chooses features and then trains anew: its backbone cannot be trained along",
            where="--unfrozen",
            remedy="leave it out, or use another head",
        )
    if old := RunPaths(out).old_online_checkpoints:
        raise LofftaError(
            "this training was begun by an older loffta, whose checkpoint cannot be gone on with",
            where=old[0],
            remedy="choose another --out, or delete this run's folder to begin anew",
        )

"""Configurations and stores as `loffta` command lines: what one would type to get the same.

In: an ExtractConfig, a TrainConfig, or a store and taps.   Out: the words behind `loffta`, options at their default
left out. Called by `pipeline` and by errors that name a way out; tests parse every field back with the commands.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from loffta.config import ExtractConfig, OnlineConfig, TrainConfig
from loffta.look import Look, look_of
from loffta.store.cache import Cache, Store
from loffta.tokens import KINDS, Kind


def extract_arguments(config: ExtractConfig) -> list[str]:
    """The command line of an extraction, defaults left out."""
    arguments = ["extract", config.source, "--cache", str(config.cache)]
    for backbone in config.backbones:  # every value for every backbone, so that they pair by position
        arguments += ["--backbone", backbone.name, "--weights", backbone.weights, "--taps", backbone.taps]
        if any(other.image_px is not None for other in config.backbones):
            arguments += ["--image-px", str(backbone.image_px or "native")]
    look = ("resize", "interpolation", "background", "range", "views", "view_seed", "target_px", "palette")
    work = ("precision", "dtype", "batch_size", "device", "unit_images")
    changed = _changed(config, (*look, *work, "splits", "limit", "gone", "stagger", "max_bad_frac"))
    if config.pool:
        changed["pool"] = "{}x{}".format(*config.pool)
    if config.share != (0, 1):
        changed["shard"] = config.share if config.share == "auto" else "/".join(map(str, config.share))
    if "kinds" in config.model_fields_set:
        changed["kinds"] = ",".join(config.kinds)
    if config.targets:
        changed["targets"] = ",".join(config.targets)
    flags = ["--ignore-space"] if config.ignore_space else []
    if config.help_others is not None:
        flags.append("--help-others" if config.help_others else "--no-help-others")
    return arguments + _options(changed) + flags


def train_arguments(config: TrainConfig, run: Path) -> list[str]:
    """The command line of a training, defaults left out."""
    cache = [] if config.online else [str(config.cache)]
    arguments = ["train", *cache, "--head", config.head, "--out", str(run)]
    for feature in config.features:
        arguments += ["--features", feature]
    augment = {"preset": config.augment} if isinstance(config.augment, str) else dict(config.augment)
    preset = augment.pop("preset", "none")
    settings = config.recipe | {f"augment.{key}": value for key, value in augment.items()}
    for key, value in settings.items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    arguments += [] if preset == "none" else ["--augment", str(preset)]
    splits = ("train_on", "validate_on", "holdout", "test_on")
    turns = ("folds", "group", "draws", "seeds", "data_seed")
    work = ("device", "feed", "order", "checkpoint_s", "stage_dir")
    plain = ("labels", "task", *splits, *turns, "select", "protocol", *work)
    arguments += _options(_changed(config, plain))
    arguments += ["--shots", ",".join(map(str, config.shots))] if config.shots else []
    flags = ("views", "search", "partial", "one_class")
    arguments += [f"--{name.replace('_', '-')}" for name in flags if getattr(config, name)]
    return arguments + (_online_arguments(config.online) if config.online else [])


def _online_arguments(online: OnlineConfig) -> list[str]:
    """The options of `train` that make images its input."""
    backbone = online.backbone
    changed = _changed(backbone, ("weights", "image_px"))
    if backbone.taps:  # without the option: the head's own
        changed["taps"] = backbone.taps
    changed |= _changed(online, ("pooling", "resize", "background", "range", "lr_backbone", "max_bad_frac"))
    if "augment" in _changed(online, ("augment",)):
        changed["augment_images"] = online.augment
    arguments = ["--online", online.source, "--backbone", backbone.name, *_options(changed)]
    return arguments + (["--unfrozen"] if online.unfrozen else [])


def extract_command(cache: Cache, store: Store, taps: Sequence[str], kind: Kind | None = None) -> str:
    """The command that adds taps to a store, also as another kind, or finishes it."""
    request = store.info.request
    given = [k for k in KINDS if store.stored_taps(k)]  # no more than the store has and what is needed
    missing = [kind] if kind and kind not in given and not (kind == "mean" and "grid" in given) else []
    kinds = ",".join([*given, *missing])
    words = ["loffta", "extract", cache.table.source, "--cache", str(cache.paths.root)]
    words += ["--backbone", request["backbone"], "--weights", request["weights"], "--taps", ",".join(taps)]
    return shlex.join([*words, *_recipe_options(request, cache.look), "--kinds", kinds, "--dtype", request["dtype"]])


def _recipe_options(request: dict[str, Any], look: Look) -> list[str]:
    """What else of a request is not the default of `extract` in a cache of this look."""
    words = ["--image-px", str(request["image_px"])] if request["image_px"] else []
    for name, default in (("resize", "squash"), ("interpolation", "model"), ("precision", "fp32")):
        if request.get(name, default) != default:
            words += [f"--{name}", request[name]]
    asked = look_of(request)._asdict()
    words += [word for n, value in asked.items() if value != getattr(look, n) for word in (f"--{n}", value)]
    if request.get("pool"):
        words += ["--pool", "x".join(map(str, request["pool"]))]
    if view := request.get("view"):
        words += ["--views", str(view["index"] + 1), "--view-seed", str(view["seed"])]
    return words


def _changed(config: BaseModel, names: tuple[str, ...]) -> dict[str, Any]:
    fields = type(config).model_fields
    return {name: getattr(config, name) for name in names if getattr(config, name) != fields[name].default}


def _options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]

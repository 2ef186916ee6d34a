"""Configurations as `loffta` command lines: what one would type to get the same.

In: an ExtractConfig or a TrainConfig.   Out: the words behind `loffta`, options at their default left out. Called by
`pipeline`; a test parses every field back with the commands themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from loffta.config import ExtractConfig, OnlineConfig, TrainConfig


def extract_arguments(config: ExtractConfig) -> list[str]:
    """The command line of an extraction, defaults left out."""
    arguments = ["extract", config.source, "--cache", str(config.cache)]
    for backbone in config.backbones:  # every value for every backbone, so that they pair by position
        arguments += ["--backbone", backbone.name, "--weights", backbone.weights, "--taps", backbone.taps]
        if any(other.image_px is not None for other in config.backbones):
            arguments += ["--image-px", str(backbone.image_px or "native")]
    plain = ("resize", "interpolation", "views", "view_seed", "precision", "dtype", "batch_size", "device")
    changed = _changed(config, (*plain, "unit_images", "limit", "max_bad_frac"))
    if config.pool:
        changed["pool"] = "{}x{}".format(*config.pool)
    if config.share != (0, 1):
        changed["shard"] = "/".join(map(str, config.share))
    if "kinds" in config.model_fields_set:
        changed["kinds"] = ",".join(config.kinds)
    return arguments + _options(changed) + (["--ignore-space"] if config.ignore_space else [])


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
    plain = ("task", *splits, "seeds", "data_seed", "select", "device", "feed", "order", "checkpoint_s")
    arguments += _options(_changed(config, plain))
    arguments += [f"--{name}" for name in ("search", "partial") if getattr(config, name)]
    return arguments + (_online_arguments(config.online) if config.online else [])


def _online_arguments(online: OnlineConfig) -> list[str]:
    """The options of `train` that make images its input."""
    backbone = online.backbone
    changed = _changed(backbone, ("weights", "image_px"))
    if backbone.taps:  # without the option: the head's own
        changed["taps"] = backbone.taps
    changed |= _changed(online, ("pooling", "resize", "lr_backbone", "max_bad_frac"))
    if "augment" in _changed(online, ("augment",)):
        changed["augment_images"] = online.augment
    arguments = ["--online", online.source, "--backbone", backbone.name, *_options(changed)]
    return arguments + (["--unfrozen"] if online.unfrozen else [])


def _changed(config: BaseModel, names: tuple[str, ...]) -> dict[str, Any]:
    fields = type(config).model_fields
    return {name: getattr(config, name) for name in names if getattr(config, name) != fields[name].default}


def _options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]

"""`loffta train --online`: the options that a training without a cache takes, and its one library call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import opened_source, opening_options, take_opened

if TYPE_CHECKING:
    from loffta.machine.process import StopFlag

_OPTIONS = (
    click.option("--online", metavar="SOURCE", help="No cache: images run through --backbone at every step."),
    opening_options,
    click.option("--backbone", metavar="NAME", help="With --online: short name, timm model or custom:..."),
    click.option("--weights", metavar="SPEC", help="With --online, as extract has it.  [hub]"),
    click.option("--image-px", metavar="PX", help="With --online, as extract has it.  [native]"),
    click.option("--taps", metavar="SET", help="With --online, as extract has it.  [the head's own]"),
    click.option("--pooling", type=click.Choice(["auto", "class", "mean"]), help="Of online-linear.  [auto]"),
    click.option("--resize", type=click.Choice(["squash", "crop"]), help="With --online, as extract has it.  [squash]"),
    click.option("--background", metavar="COLOUR", help="With --online, as extract has it.  [white]"),
    click.option("--range", metavar="LOW..HIGH", help="With --online, as extract has it.  [auto]"),
    click.option("--augment-images", type=click.Choice(["none", "crop-flip"]), help="With --online.  [crop-flip]"),
    click.option("--unfrozen", is_flag=True, help="With --online: train the backbone, too, one for each seed."),
    click.option("--lr-backbone", type=float, metavar="RATE", help="With --unfrozen.  [1e-5]"),
    click.option("--max-bad-frac", type=float, help="With --online: more bad images: exit code 3.  [0.01]"),
)
_NAMES = (
    *("backbone", "weights", "image_px", "taps", "pooling", "resize", "background", "range"),
    *("augment_images", "unfrozen", "lr_backbone", "max_bad_frac"),
)


def online_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_online(options: dict[str, Any]) -> dict[str, Any]:
    """Takes these options out of `options`; what they come to as keys of a TrainConfig, nothing without --online.

    Raises:
        UsageError: one of them without --online, or --online without a backbone.
    """
    from loffta.errors import UsageError

    source = options.pop("online")
    opened = take_opened(options)
    taken = {name: options.pop(name) for name in _NAMES}
    given = {name: value for name, value in taken.items() if value is not None and value is not False}  # 0 is given
    if source is None:
        if given or opened:
            option = "--" + next(iter(given | opened)).replace("_", "-")
            raise UsageError(f"{option} is for training without a cache", where=option, remedy="add --online SOURCE")
        return {}
    if options["cache"] is not None:
        raise UsageError(
            "a cache and --online SOURCE exclude each other", where=f"CACHE {options['cache']}", remedy="leave one out"
        )
    if "lr_backbone" in given and "unfrozen" not in given:
        raise UsageError("a frozen backbone has no learning rate", where="--lr-backbone", remedy="add --unfrozen")
    if "backbone" not in given:
        raise UsageError("--online needs a backbone", where="--online", remedy="add --backbone NAME")
    backbone = {"name": given.pop("backbone"), "taps": given.pop("taps", "")}
    backbone |= {key: given.pop(key) for key in ("weights", "image_px") if key in given}
    if "augment_images" in given:
        given["augment"] = given.pop("augment_images")
    source = opened_source(source, opened)
    options["head"] = options["head"] or "online-linear"
    return {"cache": Path(source), "online": {"source": source, "backbone": backbone, **given}}


def run_online(config: Any, out: Path, stop: StopFlag) -> dict[str, Any]:
    """Trains; a finished run is read back."""
    from loffta.extraction.begin import backbone_loader
    from loffta.images.sources import open_source
    from loffta.machine import process
    from loffta.online.train import train_online

    device = process.resolve_device(config.device)
    return train_online(config, out, open_source(config.online.source), backbone_loader(device), stop)

"""`loffta train --online`: the options that a training without a cache takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .common import opening_options

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


def online_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command

"""`loffta extract`: options in, one call of loffta.extraction.extract.run, a summary out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loffta.words import human_size, plural

from .common import emit, json_option, merge_config, opening_options, seen_line, show, targets_line

if TYPE_CHECKING:
    from loffta.config import ExtractConfig

_SHOWN = 8  # of other jobs' shares
_REQUIRED = {"source": "SOURCE", "cache": "--cache DIR", "backbones": "--backbone NAME"}  # or in the --config file


@click.command("extract")
@click.argument("source", required=False)
@click.option(
    "--cache", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the cache; made when it is not there."
)
@click.option("--backbone", "backbones", multiple=True, metavar="NAME", help="Short name, timm model or custom:...")
@click.option("--weights", multiple=True, metavar="SPEC", help="hub, a file, package:MODULE, random:SEED.  [hub]")
@click.option(
    "--taps", multiple=True, metavar="SET", help="last, last4, four-even, all, norm2, alf, final, every; names.  [last]"
)
@click.option("--image-px", multiple=True, metavar="PX", help="Side of the square input, or native.  [native]")
@click.option("--kinds", default="grid,prefix", show_default=True, help="Of grid, prefix, mean; with commas.")
@click.option("--resize", type=click.Choice(["squash", "crop"]), default="squash", show_default=True)
@click.option(
    "--interpolation", type=click.Choice(["model", "bilinear", "bicubic"]), default="model", show_default=True
)
@click.option("--background", metavar="COLOUR", help="Behind transparency: white, black, grey, #rrggbb.  [white]")
@click.option("--range", metavar="LOW..HIGH", help="Black and white of more than 8 bits; auto, clip.  [auto]")
@opening_options
@click.option("--pool", metavar="RxC", help="Average windows of R x C tokens before storing, for example 2x2.")
@click.option("--views", type=int, default=0, help="Random crops and flips of every image, a store each.  [0]")
@click.option("--view-seed", type=int, default=0, help="What the views are drawn from.  [0]")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--dtype", type=click.Choice(["float16", "float32", "int8"]), default="float16", show_default=True)
@click.option("--batch-size", default="auto", show_default=True, help="Images per forward pass.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--unit-images", type=int, help="Rows per unit of a new cache, a power of two.  [256]")
@click.option("--shard", "share", metavar="I/N", help="Only the units u with u % N == I; auto: by rank under srun.")
@click.option("--help-others/--no-help-others", default=None, help="Then those that other shares lack.  [with auto]")
@click.option(
    "--stagger",
    type=float,
    is_flag=False,
    flag_value=60.0,
    metavar="[SECONDS]",
    help="Shares load weights one after the other, over SECONDS or 60.",
)
@click.option("--splits", metavar="SPLIT", help="Only the images of this split, or of several joined by +.")
@click.option("--limit", type=int, help="Only N images, a share of every split; then train --partial.")
@click.option("--gone", type=click.Choice(["keep", "drop"]), help="Images whose files are gone: keep, or of no split.")
@click.option("--targets", default="", metavar="KINDS", help="Of mask, instances, depth, boxes; with commas.  [none]")
@click.option("--target-px", type=int, metavar="PX", help="Side of their squares for training.  [224]")
@click.option("--palette", type=click.Path(path_type=Path), help="Masks are colours; FILE has r,g,b,class a line.")
@click.option("--max-bad-frac", type=float, default=0.01, show_default=True, help="More bad images: exit code 3.")
@click.option("--ignore-space", is_flag=True, help="Begin though there is no room for all of it.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file with any of these options.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, file: Path | None, as_json: bool, **options: Any) -> None:
    """Run frozen backbones over SOURCE once and cache their tokens.

    A second run continues, and does nothing when all is there. --weights, --taps and --image-px are given once for all
    backbones or once for each, in order.
    """
    from loffta.extraction.extract import run
    from loffta.machine.process import StopFlag
    from loffta.machine.usage import Cost

    config = read_options(ctx, file, options)
    report = run(config, StopFlag().listen())
    for store in report.stores:
        taps = f"{len(store.taps)} {plural(len(store.taps), 'tap')}"
        show(f"{store.label}: {taps}, {human_size(store.bytes)}, store {store.store}")
    for target in report.targets:
        show(targets_line(asdict(target)))
    done = "nothing to do"
    if report.target_units:
        done = f"{report.target_units} {plural(report.target_units, 'unit')} of targets in {report.seconds:.1f} s"
    if report.units:
        images = f"{report.images} {plural(report.images, 'image')}"
        done = f"{report.units} {plural(report.units, 'unit')}, {images} in {report.seconds:.1f} s"
    of = "of this share" if report.unwritten_of else "in the cache"
    show(f"{done}; {report.bad} bad {plural(report.bad, 'image')} {of}")
    if report.helped or report.twice:
        units = f"{report.helped} {plural(report.helped, 'unit')} of other shares written"
        show(f"{units}; {report.twice} {plural(report.twice, 'unit')} begun here that others finished first")
    if seen := seen_line(asdict(report)):
        show(seen)
    if report.units:
        show(str(Cost.of_json(report.cost)))
    if report.unwritten_of:
        images = f"{report.unwritten_images} {plural(report.unwritten_images, 'image has', 'images have')}"
        listed = ", ".join(report.unwritten_of[:_SHOWN]) + (", ..." if len(report.unwritten_of) > _SHOWN else "")
        show(f"{images} no features yet: they are those of --shard {listed}")
    emit(asdict(report), as_json)


def read_options(ctx: click.Context, file: Path | None, options: dict[str, Any]) -> ExtractConfig:
    """The configuration that options and file give; `loffta plan` takes the same.

    Raises:
        UsageError: an unknown key, a missing one, or a value of the wrong kind.
    """
    from loffta.config import ExtractConfig, parse
    from loffta.door.options import open_up, pair_backbones, parse_share, parse_targets

    opened = options.pop("image_root"), options.pop("follow_links")
    options["backbones"] = pair_backbones(
        options["backbones"], **{name: options.pop(name) for name in ("weights", "taps", "image_px")}
    )
    options["kinds"] = tuple(kind.strip() for kind in options["kinds"].split(","))
    options["targets"] = parse_targets(options["targets"])
    options["share"] = parse_share(options["share"]) if options["share"] else None
    values = merge_config(ctx, file, options)
    if isinstance(values.get("source"), str):  # else `parse` says what is wrong with it
        values["source"] = open_up(values["source"], *opened)
    return parse(ExtractConfig, values, where=file or ctx.command_path, options=_REQUIRED)

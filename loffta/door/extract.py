"""`loffta.extract`: runs frozen backbones over images once and caches their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from loffta.config import ExtractConfig, parse
from loffta.door.options import PathLike, given, many, open_up, pair_backbones, parse_share, parse_targets
from loffta.extraction.extract import Report, run
from loffta.machine.borrowed import borrowed
from loffta.machine.process import StopFlag
from loffta.targets import TargetKind
from loffta.tokens import Kind


def extract(
    source: PathLike,
    *,
    cache: PathLike,
    backbone: str | Sequence[str],
    weights: str | Sequence[str] | None = None,
    taps: str | Sequence[str] | None = None,
    image_px: int | str | Sequence[int | str] | None = None,
    kinds: str | Sequence[Kind] = ("grid", "prefix"),
    resize: Literal["squash", "crop"] = "squash",
    interpolation: Literal["model", "bilinear", "bicubic"] = "model",
    background: str | None = None,
    range: str | None = None,
    image_root: PathLike | None = None,
    follow_links: bool = False,
    pool: str | tuple[int, int] | None = None,
    views: int = 0,
    view_seed: int = 0,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    dtype: Literal["float16", "float32", "int8"] = "float16",
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    unit_images: int | None = None,
    shard: str | None = None,
    help_others: bool | None = None,
    stagger: float | int | None = None,
    splits: str | None = None,
    limit: int | None = None,
    gone: Literal["keep", "drop"] | None = None,
    targets: str | Sequence[TargetKind] = (),
    target_px: int | None = None,
    palette: PathLike | None = None,
    max_bad_frac: float | int = 0.01,
    ignore_space: bool = False,
    progress: bool = True,
) -> Report:
    """Runs frozen backbones over `source` once and caches their tokens; a second call continues.

    >>> done = loffta.extract("photos", cache="cache", backbone="test_vit", weights="random:0", taps="all", image_px=64)
    >>> done.images, done.bad, done.stores[0].taps
    (150, 0, ['blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'blocks.4', 'blocks.5'])

    Args:
        source: a folder, a table, or `<kind>:<what>`, as `loffta extract` takes it.
        cache: the folder of the cache; made when it is not there.
        backbone: short name, timm model or custom:MODULE:FUNCTION; or several.
        weights, taps, image_px: one for all backbones, or one for each. None: hub, last, the model's own size.
        kinds: of grid, prefix, mean.
        shard: I/N, only the units u with u % N == I; or auto, by this process's rank under srun, torchrun or in a job
            array.
        help_others: when its own units are done, write those that other shares lack. None: with auto.
        stagger: seconds over which the shares begin to load weights.
        limit: only so many images, a share of every split; what is trained on them needs `partial`.
        gone: what becomes of images whose files are gone: keep them as they are, or drop them from every split.
        targets: of mask, instances, depth, boxes: dense targets that are written beside the features, or alone where
            these are there.
        target_px: side of their squares for training. None: the cache's own, 224 for new ones.
        palette: a file of red,green,blue,class for masks that are colours.
        max_bad_frac: a share; more bad images are an error.
        progress: show progress and notes on stderr.
    Returns:
        What this call did and what the cache holds; sizes in bytes, times in seconds.
    Raises:
        UsageError: an option, name or value that cannot be used.
        TooManyBadImages: over `max_bad_frac`; all good images are in the cache.
        LofftaError: another recipe under the same name, images that are gone or altered, no space.
    """
    config = make_config(locals())
    with borrowed(progress=progress):
        return run(config, StopFlag())


def make_config(arguments: dict[str, Any]) -> ExtractConfig:
    """From the arguments of `extract`; those of others are left out."""
    values = given(arguments)
    for name in ("progress", "sample"):
        values.pop(name, None)
    source = open_up(values.pop("source"), values.pop("image_root", None), values.pop("follow_links"))
    backbones = pair_backbones(
        many(values.pop("backbone")), **{name: many(values.pop(name, None)) for name in ("weights", "taps", "image_px")}
    )
    kinds = values.pop("kinds")
    kinds = tuple(kind.strip() for kind in kinds.split(",")) if isinstance(kinds, str) else tuple(kinds)
    values["targets"] = parse_targets(values["targets"])
    if "shard" in values:
        values["share"] = parse_share(values.pop("shard"))
    values |= {"source": source, "backbones": backbones, "kinds": kinds}
    return parse(ExtractConfig, values, where="loffta.extract")

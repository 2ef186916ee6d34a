"""`loffta.plan`: what an extraction would take, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from loffta.door.extract import make_config
from loffta.door.options import PathLike
from loffta.extraction.plan import Plan, run
from loffta.machine.borrowed import borrowed
from loffta.targets import TargetKind
from loffta.tokens import Kind


def plan(
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
    sample: int | None = None,
    progress: bool = True,
) -> Plan:
    """What `extract` with the same arguments would take; nothing is written to the cache.

    >>> planned = loffta.plan("photos", cache="cache", backbone="resnet10t", weights="random:0", image_px=64, sample=0)
    >>> planned.images_missing, planned.arrays[1].taps, planned.arrays[1].shape
    (150, ('stages.4',), (1, 2, 2, 512))

    Args:
        sample: time about so many images; 0: none. None: three batches.
    Returns:
        Bytes, files, seconds, and after how many epochs the cache pays; where the cache exists, of what is missing.
    Raises:
        UsageError: an option, name or value that cannot be used.
        LofftaError: another recipe under the same name, images that are gone or altered.
    """
    config = make_config(locals())
    with borrowed(progress=progress):
        return run(config, sample=sample)

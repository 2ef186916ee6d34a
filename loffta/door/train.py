"""`loffta.train`: trains a head on cached tokens, or on images without a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from loffta.config import TrainConfig, parse
from loffta.door.options import PathLike, given, many, open_up, split_settings
from loffta.errors import UsageError
from loffta.machine.borrowed import borrowed
from loffta.machine.process import StopFlag
from loffta.runs.results_text import Results

Ranks: TypeAlias = Literal["auto", "members", "batches"]
_OF_BACKBONE = ("weights", "image_px", "taps")
_OF_ONLINE = ("pooling", "resize", "background", "range", "unfrozen", "lr_backbone", "max_bad_frac")


def train(
    cache: PathLike | None = None,
    *,
    head: str | None = None,
    out: PathLike,
    features: str | Sequence[str] = (),
    views: bool = False,
    labels: PathLike | None = None,
    task: str = "auto",
    train_on: str = "train",
    validate_on: str | None = None,
    holdout: float | None = None,
    test_on: str = "test",
    folds: int | None = None,
    group: str | None = None,
    shots: int | str | Sequence[int] = (),
    draws: int | None = None,
    seeds: int = 1,
    data_seed: int = 0,
    set: Mapping[str, Any] | None = None,
    augment: str | None = None,
    search: bool = False,
    select: int | None = None,
    feed: Literal["auto", "device", "host", "stream"] = "auto",
    order: Literal["auto", "uniform", "windowed"] = "auto",
    checkpoint_s: float | int = 60.0,
    stage_dir: PathLike | None = None,
    device: str = "auto",
    ranks: Ranks = "auto",
    partial: bool = False,
    one_class: bool = False,
    protocol: str | None = None,
    online: PathLike | None = None,
    image_root: PathLike | None = None,
    follow_links: bool = False,
    backbone: str | None = None,
    weights: str | None = None,
    image_px: int | str | None = None,
    taps: str | None = None,
    pooling: Literal["auto", "class", "mean"] | None = None,
    resize: Literal["squash", "crop"] | None = None,
    background: str | None = None,
    range: str | None = None,
    augment_images: Literal["none", "crop-flip"] | None = None,
    unfrozen: bool = False,
    lr_backbone: float | None = None,
    max_bad_frac: float | int | None = None,
    progress: bool = True,
) -> Results:
    """Trains a head on `cache` and evaluates it; with `online` on images, without a cache.

    A finished run is read back, not repeated; one that was cut off goes on from its last checkpoint.

    >>> results = loffta.train("cache", head="linear", out="runs/linear", set={"epochs": 2}, device="cpu")
    >>> 0 < results.metrics["top1"].mean <= 1, results.features[0].taps, results.images.used
    (True, ['blocks.5'], 50)

    Args:
        out: the folder of the run.
        features: STORE[:TAPS], or several; none: all stores.
        views: train on the random views of the images, too, that the cache has (`extract`'s `views`).
        labels: a set of annotations of the cache (`loffta.label`), or a file; None: what the image set says.
        holdout: keep so much of `train_on` out, as split `holdout`: 0.2.
        folds: cross-validation: `train_on` is parted, and each part tested by heads of the others.
        group: with `folds`: a column whose groups, patients or sites, are never on both sides.
        shots: train on so many images of every class, for each size: [1, 2, 5, 10].
        draws: with `shots`: times that each size is drawn anew. None: 5.
        set: changes of the head's recipe: `{"epochs": 12, "augment.rotate": 5}`.
        checkpoint_s: seconds between two checkpoints.
        stage_dir: a folder on this machine's own disk that features are copied to before they are read.
        ranks: where torchrun or srun have started several processes: deal `members` out to them, or let each take its
            share of all `batches`; auto: members where there are enough of them.
        protocol: of a dense task: a word that its results carry, for comparisons.
        online: a source of images, run through `backbone` at every step; it and all that follows are for this.
        progress: show progress and notes on stderr.
    Returns:
        The results on `test_on`: metrics as fractions from 0 to 1, times in seconds.
    Raises:
        UsageError: an option, name or value that cannot be used.
        LofftaError: the cache lacks features, `out` holds another run, the loss is not finite, memory ran out.
        NotSaved: trained and measured, but the results could not be written; the error has them.
    """
    config = make_config(locals())
    with borrowed(progress=progress):
        return Results.model_validate(run(config, Path(out), StopFlag(), ranks))


def run(config: TrainConfig, out: Path, stop: StopFlag, ranks: Ranks = "auto") -> dict[str, Any]:
    """Trains from the cache or from images, as the configuration says."""
    if config.online is not None and config.labels is not None:
        raise UsageError("images that are not cached bring their own labels", where="--labels", remedy="leave it out")
    if config.online is not None and config.stage_dir is not None:
        raise UsageError(
            "images that are not cached are read where they are", where="--stage-dir", remedy="leave it out"
        )
    if config.online is None:
        from loffta.training.train import train as train_cached

        return train_cached(config, out, stop, ranks)
    from loffta.extraction.begin import backbone_loader
    from loffta.images.sources import open_source
    from loffta.machine import process
    from loffta.online.train import train_online

    load = backbone_loader(process.resolve_device(config.device))
    return train_online(config, out, open_source(config.online.source), load, stop, ranks)


def make_config(arguments: dict[str, Any]) -> TrainConfig:
    """From the arguments of `train`."""
    values = given(arguments)
    for name in ("out", "progress", "ranks"):
        values.pop(name)
    values["features"] = many(values["features"])
    values["shots"] = values["shots"] if isinstance(values["shots"], str) else many(values["shots"])
    values |= {name: str(values[name]) for name in ("labels", "stage_dir") if name in values}
    values |= take_online(values)
    settings = values.pop("set", {})
    config = parse(TrainConfig, values, where="loffta.train", options={"cache": "cache or online", "head": "head"})
    recipe, augmentation = split_settings(settings, config.augment)
    return config.model_copy(update={"recipe": recipe, "augment": augmentation})


def take_online(values: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of a training without a cache out of `values`; as keys of a TrainConfig, none without online.

    The head, where none is given, is a linear probe.

    Raises:
        UsageError: one of them without online, or online without a backbone.
    """
    source = values.pop("online", None)
    names = ("backbone", *_OF_BACKBONE, *_OF_ONLINE, "augment_images", "image_root", "follow_links")
    found = {name: value for name in names if (value := values.pop(name, None)) is not None and value is not False}
    if source is None:
        if found:
            option = "--" + next(iter(found)).replace("_", "-")
            raise UsageError(f"{option} is for training without a cache", where=option, remedy="add --online SOURCE")
        return {}
    if values.get("cache") is not None:
        raise UsageError(
            "a cache and --online SOURCE exclude each other", where=f"CACHE {values['cache']}", remedy="leave one out"
        )
    if "lr_backbone" in found and "unfrozen" not in found:
        raise UsageError("a frozen backbone has no learning rate", where="--lr-backbone", remedy="add --unfrozen")
    if "backbone" not in found:
        raise UsageError("--online needs a backbone", where="--online", remedy="add --backbone NAME")
    values["head"] = values.get("head") or "online-linear"
    source = open_up(source, found.pop("image_root", None), found.pop("follow_links", False))
    taken = {"name": found.pop("backbone"), "taps": found.pop("taps", "")}
    taken |= {name: found.pop(name) for name in ("weights", "image_px") if name in found}
    if "augment_images" in found:
        found["augment"] = found.pop("augment_images")
    return {"cache": Path(source), "online": {"source": source, "backbone": taken, **found}}

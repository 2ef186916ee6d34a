"""Frozen, strict configurations: YAML or options in, resolved YAML out.

Units are in the names, None means off, and every unknown key is an error that names its nearest neighbour. Numbers have
an end: what nobody means is refused before a minute is spent on it, with the range that makes sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PositiveFloat, ValidationError

from loffta.errors import LofftaError, UsageError, unknown_name
from loffta.files.documents import MAX_YAML_BYTES, from_yaml, read_bytes
from loffta.files.os_words import guard
from loffta.limits import MANY, MAX_UNIT_IMAGES, BatchSize, Count, Pixels, Seed, Views, between
from loffta.look import parse_background, parse_range
from loffta.targets import TargetKind
from loffta.tokens import Kind
from loffta.words import brief, printable

Model = TypeVar("Model", bound=BaseModel)
_SHOWN = 100  # characters of a key in a message


class StrictModel(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of every configuration: immutable, no key passes unknown, and every number is one."""


def _power_of_two(value: int) -> int:
    if not 1 <= value <= MAX_UNIT_IMAGES or value & (value - 1):
        raise ValueError(f"it must be a power of two from 1 to {MAX_UNIT_IMAGES:,}")
    return value


def _share(value: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= value[0] < value[1]:
        raise ValueError("it must be (i, n) with 0 <= i < n")
    return value


def _window(value: object) -> object:
    """`2x2` as a pair."""
    if isinstance(value, str):
        rows, times, columns = value.partition("x")
        if not (times and rows.isdecimal() and columns.isdecimal()):
            raise ValueError("it must be ROWSxCOLUMNS, for example 2x2")
        return int(rows), int(columns)
    return value


Window: TypeAlias = Annotated[tuple[Count, Count], BeforeValidator(_window)]  # (rows, columns), or 2x2


def _numbers(value: object) -> object:
    """`1,2,5` as numbers."""
    if isinstance(value, str):
        if not all(part.strip().isdecimal() for part in value.split(",")):
            raise ValueError("it must be numbers with commas between them, for example 1,2,5")
        return [int(part) for part in value.split(",")]
    return value


Shots: TypeAlias = Annotated[
    tuple[Count, ...], BeforeValidator(_numbers), AfterValidator(lambda n: tuple(sorted({*n})))
]


def _word_for_none(word: str) -> BeforeValidator:
    """None can be written as `word`."""
    return BeforeValidator(lambda value: None if value == word else value)


def _free_word(value: str) -> str:
    if not 0 < len(value) <= _SHOWN or printable(value) != value:
        raise ValueError(f"it must be a word of up to {_SHOWN} characters that can be printed")
    return value


Background: TypeAlias = Annotated[str, AfterValidator(parse_background)]
Range: TypeAlias = Annotated[str, AfterValidator(parse_range)]


class BackboneConfig(StrictModel, frozen=True):
    """One backbone of an extraction."""

    name: str  # timm id
    weights: str = "hub"  # hub | random:SEED | package:MODULE | a .safetensors, .pth or .pt file
    taps: str = "last"  # sets and names, separated by commas
    # side of the square input
    image_px: Annotated[Pixels | None, _word_for_none("native")] = None


class ExtractConfig(StrictModel, frozen=True):
    """All that stage one needs."""

    source: str
    cache: Path
    backbones: tuple[BackboneConfig, ...] = Field(min_length=1, max_length=MANY)
    kinds: tuple[Kind, ...] = Field(("grid", "prefix"), min_length=1)
    resize: Literal["squash", "crop"] = (
        "squash"  # the whole image to the square; or `crop`: timm's evaluation transform
    )
    interpolation: Literal["model", "bilinear", "bicubic"] = "model"
    background: Background | None = None  # behind transparency; None: the cache's own, white for a new one
    range: Range | None = None  # black and white of more than 8 bits; None: the cache's own, `auto` for a new one
    pool: Window | None = None  # tokens that are averaged into one before they are stored
    views: Views = 0  # random crops and flips of every image, a store each, beside the plain one
    view_seed: Seed = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the forward pass; fp32 on every device unless asked
    dtype: Literal["float16", "float32", "int8"] = "float16"  # of the stored tokens
    batch_size: Annotated[BatchSize | None, _word_for_none("auto")] = None
    device: str = "auto"
    unit_images: Annotated[int, AfterValidator(_power_of_two)] | None = None  # None: the cache's own, 256 for a new one
    # (i, n): this process owns the units u with u % n == i; auto: by its rank, see `machine.place`
    share: Annotated[tuple[int, int], AfterValidator(_share)] | Literal["auto"] = (0, 1)
    help_others: bool | None = None  # when its own units are done, take what others lack; None: with `auto`
    stagger: float | None = Field(None, gt=0, le=3600)  # seconds over which the shares begin to load weights
    splits: str | None = None  # one split or several joined by +; None: all
    limit: int | None = Field(None, gt=0)  # so many images, a share of every split
    gone: Literal["keep", "drop"] | None = None  # rows whose files are gone: as before, or in no split; None: an error
    targets: tuple[TargetKind, ...] = ()  # dense targets that are written beside the features
    target_px: Pixels | None = None  # side of their squares for training; None: the cache's own, 224 for new ones
    palette: Path | None = None  # which colour of masks stands for which class; None: masks are numbers, or as before
    max_bad_frac: float = Field(0.01, ge=0, le=1)
    ignore_space: bool = False  # begin though the file system or the quota has no room for all of it


class OnlineConfig(StrictModel, frozen=True):
    """Training without a cache: what the features are made from at every step."""

    source: str
    # `train` puts both in: a training goes on with the same images and the same network
    images_digest: str | None = None
    backbone_hash: str | None = None  # of its recipe
    backbone: BackboneConfig  # its taps: empty for the head's own
    unfrozen: bool = False  # the backbone is trained, too
    pooling: Literal["auto", "class", "mean"] = "auto"  # of `online-linear`; auto: the class token where there is one
    resize: Literal["squash", "crop"] = "squash"  # of images that are not augmented
    background: Background | None = None  # as in ExtractConfig; None: the run's own, white for a new one
    range: Range | None = None
    augment: Literal["none", "crop-flip"] = "crop-flip"  # of training images, the same for all seeds
    lr_backbone: PositiveFloat = 1e-5  # where it is trained; ours: a hundredth of the linear head's rate
    max_bad_frac: float = Field(0.01, ge=0, le=1)


# a folder of the node that features are copied to before they are read; variables are expanded where the job runs
StageDir: TypeAlias = Annotated[str | None, Field(max_length=4096, exclude=True)]


class TrainConfig(StrictModel, frozen=True):
    """All that stage two needs; `recipe` is checked against the head's own recipe."""

    cache: Path
    head: str
    features: tuple[str, ...] = Field((), max_length=MANY)  # STORE[:TAPS]; none: all stores
    views: bool = False  # train on all random views of the images that the cache has, too, one at a time
    labels: str | None = None  # a set of annotations of the cache, or a file; None: what the image set says
    task: str = "auto"  # or a task by name; `train` resolves it by the kind of labels
    train_on: str = "train"
    validate_on: str | None = None  # measured too; what --search chooses by
    holdout: float | None = Field(None, gt=0, lt=1)  # this share of train_on becomes the split "holdout"
    test_on: str = "test"
    folds: int | None = Field(None, ge=2, le=MANY)  # train_on is parted; each part is tested by heads of the others
    group: str | None = None  # the column whose groups (patients, sites) are never on both sides of a fold
    shots: Shots = Field((), max_length=20)  # train on so many images of every class, instead of all
    draws: Count | None = None  # of each such size; None: 5
    seeds: Count = 1
    data_seed: Seed = 0  # order of the images, shared by all seeds
    recipe: dict[str, Any] = Field(default_factory=dict)  # what differs from the head's defaults
    augment: str | dict[str, Any] = "none"  # a preset, or settings of `loffta.augment` on top of one
    search: bool = False  # try the recipe's learning rates and weight decays first
    select: Count | None = None  # score the backbones first, then train on the K best
    device: str = "auto"
    feed: Literal["auto", "device", "host", "stream"] = "auto"  # where features wait for their batches
    order: Literal["auto", "uniform", "windowed"] = "auto"  # of the images; see `feed.order`
    checkpoint_s: float = Field(60.0, gt=0, le=30 * 86_400)  # seconds between two checkpoints
    partial: bool = False  # train on the rows that are there, though the cache is not finished
    one_class: bool = False  # train though all images are of one class
    stage_dir: StageDir = None  # of this start, and no part of what the run is
    # of a dense task: what its results are to be compared with, a word of the user's that they carry
    protocol: Annotated[str, AfterValidator(_free_word)] | None = None
    online: OnlineConfig | None = None  # no cache: `cache` is the source's name, and nothing is read there


HeadName: TypeAlias = Literal["knn", "ncm", "ridge", "logreg"]
Pooling: TypeAlias = Literal["mean", "cls", "cls+mean"]


class ScanConfig(StrictModel, frozen=True):
    """What `scan` measures: every layer with heads that need no training loop."""

    cache: Path
    features: tuple[str, ...] = Field((), max_length=MANY)  # STORE[:TAPS]; none: all stores, all that they hold
    labels: str | None = None  # as in TrainConfig
    heads: Annotated[tuple[HeadName, ...], Field(min_length=1)] | None = None  # None: the quick ones that fit
    pooling: tuple[Pooling, ...] = Field(("mean",), min_length=1)  # as in `heads.linear`; each is a layer of its own
    train_on: str = "train"
    validate_on: str | None = None  # chooses the strengths of penalties; None: a fifth of the training images
    holdout: float | None = Field(None, gt=0, lt=1)  # this share of train_on becomes the split "holdout"
    test_on: str = "test"
    folds: Annotated[int, between(3, MANY)] | None = None  # test all images of train_on, each by heads of other folds
    group: str | None = None  # what the groups are called that are never on both sides of a fold: patient
    shots: tuple[Count, ...] = Field((), max_length=MANY)  # train on so many images of each class
    draws: Count = 5  # of `shots`
    k: Annotated[int, between(1, 1 << 20)] | None = None  # neighbours; None: DINO's 20, or all of fewer images
    temperature: PositiveFloat = 0.07  # of a neighbour's vote; DINO's
    standardise: bool = False  # features to standard deviation 1, for ridge and logreg
    data_seed: Seed = 0  # of what is held out or drawn
    device: str = "auto"
    partial: bool = False
    stage_dir: StageDir = None


def parse(
    model: type[Model], values: Mapping[str, Any], *, where: str | Path, options: Mapping[str, str] | None = None
) -> Model:
    """Builds a configuration.

    Args:
        options: by key, what a missing one is called where `values` come from a command line.
    Raises:
        UsageError: an unknown key (the nearest one is named), a missing one, or a value of the wrong kind.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors()  # a misspelt key explains the missing one
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            owner = _model_at(model, problem["loc"][:-1])
            key = str(problem["loc"][-1])[:_SHOWN]
            raise unknown_name("key", key, owner.model_fields, where=f"{where}: {path[:_SHOWN]}") from error
        if problem["type"] == "missing":
            name = (options or {}).get(path, path)
            raise UsageError(f"'{name}' is missing", where=where, remedy=f"give {name}") from error
        fault = problem["msg"].removeprefix("Value error, ").lower()
        raise UsageError(
            f"{path[:_SHOWN] or 'value'}: {fault} (got {brief(problem['input'])})",
            where=where,
            remedy="give a value that fits",
        ) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping, with the safe loader alone.

    Raises:
        LofftaError: the file is missing, or is not a mapping.
    """
    try:
        with guard(path):
            values = from_yaml(_read(path).decode())
        if not isinstance(values, dict):
            raise ValueError("the file is not a mapping of keys to values")
    except ValueError as error:
        raise LofftaError(
            f"cannot read the configuration: {error}", where=path, remedy="check the path and the YAML syntax"
        ) from error
    return values


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_YAML_BYTES)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"there is no such file ({error.strerror})") from error


def to_yaml(config: BaseModel) -> bytes:
    """The resolved configuration, as saved beside a result."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode()


def _model_at(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The nested model that a location inside `model` belongs to."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        nested = next((a for a in (annotation, *getattr(annotation, "__args__", ())) if _is_model(a)), None)
        model = nested or model
    return model


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)

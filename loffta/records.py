"""What a run's small files say, as types: one that was edited or damaged is refused before anyone computes with it.

In: JSON that `runs` read.   Out: Training, SearchTable, Holdout, Epoch, OriginsText; Results, of which only what others
compute with is named. Numbers are numbers here, and nothing is turned into them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field, ValidationError

from loffta.limits import MANY, MAX_PX, RECIPE_LIMITS
from loffta.tokens import Kind
from loffta.words import brief

Natural: TypeAlias = Annotated[int, Field(ge=0)]
Side: TypeAlias = Annotated[int, Field(ge=1, le=1 << 24)]  # of a tensor


class Record(BaseModel, strict=True):
    """Base: what is not named is let be, for another version may have more to say."""


def problem_of(error: ValidationError) -> str:
    """The first thing that a file says and cannot mean."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{brief(place)} is {brief(problem['input'])}: {problem['msg'].lower()}"


class Training(Record):
    """training.json: how long a finished training took, and what it came to."""

    seconds: float
    epochs: int = Field(ge=1, le=RECIPE_LIMITS["min_steps"])
    batch_size: int = Field(ge=1, le=RECIPE_LIMITS["batch_size"])
    precision: Literal["fp32", "bf16"] | None = None  # None: of an older version, see `evaluate.trained_recipe`


class Chosen(Record):
    """The setting that a search found best."""

    lr: float = Field(gt=0, allow_inf_nan=False)
    weight_decay: float = Field(ge=0, allow_inf_nan=False)
    score: float


class Setting(Record):
    """One setting of a search; it has a score, or diverged, or waits."""

    lr: float = Field(gt=0, allow_inf_nan=False)
    weight_decay: float = Field(ge=0, allow_inf_nan=False)
    score: float | None = None
    diverged_at: int | None = None


class SearchTable(Record):
    """search.json."""

    metric: str
    validated_on: str
    images: dict[str, str]  # digests of those trained and scored on
    seconds: float = 0.0
    order: dict[str, Any] | None = None  # of the feed, for all settings
    group: Annotated[Natural, Field(le=MANY * MANY)] = 0  # settings in training now: the next that have no score
    settings: list[Setting] = Field(min_length=1, max_length=MANY * MANY)
    chosen: Chosen | None = None


class Holdout(Record):
    """holdout.json: the images that a run keeps out of its training."""

    of: str  # the split
    fraction: float
    seed: int
    keys_digest: str
    rows: list[Natural]


class Epoch(Record):
    """One line of an online training's metrics."""

    epoch: int
    step: int
    loss: float
    lr: float
    seconds: float


class Spec(Record):
    """stores.json: what a head is fed of one store; a FeatureSpec."""

    backbone: str
    taps: list[str] = Field(min_length=1, max_length=MANY)
    kind: Kind
    shape: list[Side] = Field(min_length=1, max_length=3)
    image_px: int = Field(ge=1, le=MAX_PX)
    registers_only: bool = False


class ScalesText(Record):
    """What decodes an int8 array: base64 of little-endian float32."""

    shape: list[Side] = Field(min_length=2, max_length=2)
    scale: str
    zero: str


class FeatureText(Record):
    """One array that a head is fed from."""

    store: str
    array: str
    kind: Kind
    dtype: Literal["float16", "float32", "int8"]
    shape: list[Side] = Field(min_length=2, max_length=4)
    scales: ScalesText | None
    spec: Spec


class OriginsText(Record):
    """stores.json."""

    format: Natural
    classes: list[str]
    stores: dict[str, dict[str, Any]]
    features: list[FeatureText] = Field(min_length=1, max_length=MANY)


class Metric(Record):
    """One metric of results.json, over seeds and images."""

    mean: float
    std: float | None
    per_seed: list[float] = Field(min_length=1)
    ci95: list[float] = Field(min_length=2, max_length=2)


class Used(Record):
    """A store that a head was fed from."""

    store: str
    label: str | None = None
    recipe_hash: str = ""
    taps: list[str] = []


class Relevance(Record):
    """How much a head relies on a backbone or a tap."""

    backbone: str
    tap: str | None = None
    score: float
    raw_score: float = 0.0
    inputs: int = 1


class SearchTold(Record):
    """What results.json repeats of a search."""

    metric: str
    validated_on: str
    seconds: float
    chosen: Chosen


class Results(Record):
    """results.json and its likes."""

    metrics: dict[str, Metric]
    n: Natural
    task: str = "classification"
    head: str = ""
    split: str = ""
    features: list[Used] = []
    images: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    training: dict[str, Any] | None = None
    train_seconds: float | None = None
    notes: dict[str, str] = {}
    search: SearchTold | None = None
    relevance: dict[str, list[Relevance]] = {}
    versions: dict[str, str] = {}

"""What a run's small files say, as types: one that was edited or damaged is refused before anyone computes with it.

In: JSON that `runs` read.   Out: Training, SearchTable, Holdout; Results are in `results_text`. Numbers are numbers
here, and nothing is turned into them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field, ValidationError

from loffta.limits import MANY, RECIPE_LIMITS
from loffta.words import brief

Natural: TypeAlias = Annotated[int, Field(ge=0)]


class Record(BaseModel, strict=True):
    """Base: what is not named is let be, for another version may have more to say."""


def problem_of(error: ValidationError) -> str:
    """The first thing that a file says and cannot mean."""
    problem = error.errors()[0]
    if problem["type"] == "value_error":  # of a check of ours, which names the place
        return str(problem["ctx"]["error"])
    place = ".".join(str(part) for part in problem["loc"])
    return f"{brief(place)} is {brief(problem['input'])}: {problem['msg'].lower()}"


class Training(Record):
    """training.json: how long a finished training took, and what it came to."""

    seconds: float
    cost: dict[str, float | None] = {}  # as `machine.usage` has it; older versions did not keep it
    epochs: int = Field(ge=1, le=RECIPE_LIMITS["min_steps"])
    batch_size: int = Field(ge=1, le=RECIPE_LIMITS["batch_size"])
    precision: Literal["fp32", "bf16"] | None = None  # None: of an older version, see `evaluate.trained_recipe`


class Dealt(Record):
    """deal.json: into how many packages the members of a run are dealt, one for each of its first ranks."""

    ranks: int = Field(ge=1, le=MANY * MANY)


class Ordering(Record):
    """order.json: the order of the images that all packages of a training have, as `feed.order` describes it."""

    order: dict[str, Any]


class Chosen(Record, extra="allow"):
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
    cost: dict[str, float | None] = {}  # as that of a training
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

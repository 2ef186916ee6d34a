"""What a page needs of results.json, checked at the door: a value of another kind would end a page of ten runs.

`records.Results` holds what any reader computes with; here is all that sections draw, and that it goes together.

In: the mapping that `runs.read_results` gives.   Out: the same with every value of the kind that it should be; keys
that no report reads are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from loffta.errors import LofftaError
from loffta.records import problem_of
from loffta.tasks import find_task

Seeds = Annotated[list[FiniteFloat], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Metric(_Part):
    mean: FiniteFloat
    std: FiniteFloat | None
    per_seed: Seeds
    ci95: tuple[FiniteFloat, FiniteFloat]


class _Feature(_Part):
    store: str
    label: str = ""
    recipe_hash: str
    taps: list[str] = Field(min_length=1)


class _Images(_Part):
    used: NonNegativeInt
    bad: NonNegativeInt
    unlabelled: NonNegativeInt = 0


class _Relevance(_Part):
    backbone: str
    tap: str | None
    score: FiniteFloat
    per_seed: Seeds
    raw_score: FiniteFloat
    inputs: PositiveInt


class _Relevances(_Part):
    backbones: list[_Relevance] = Field(min_length=1)
    taps: list[_Relevance] = Field(min_length=1)


class _Layer(_Part):
    backbone: str
    tap: str
    kind: str = ""
    mean: FiniteFloat


class _Confusion(_Part):
    classes: list[str] = Field(min_length=1)
    counts: list[list[NonNegativeInt]]


class _Pair(_Part):
    label: str
    predicted: str
    count: NonNegativeInt
    of: PositiveInt


class _ClassPrecision(_Part):
    """An entry of per_class."""

    images: NonNegativeInt
    ap: FiniteFloat | None


class _Training(_Part):
    epochs: NonNegativeInt | None = None


class _Recipe(_Part):
    epochs: NonNegativeInt | None = None
    grid: NonNegativeInt | None = None


class _Online(_Part):
    source: str


class _Results(_Part):
    task: str = "classification"
    head: str
    split: str
    n: PositiveInt
    metrics: dict[str, _Metric]
    features: list[_Feature] = Field(min_length=1)
    images: _Images
    recipe: _Recipe = _Recipe()
    training: _Training = _Training()
    train_seconds: FiniteFloat | None = None
    versions: dict[str, str] = {}
    notes: dict[str, str] = {}
    relevance: _Relevances | None = None
    attention: list[_Layer] = []
    kept: list[_Layer] = []
    confusion: _Confusion | None = None
    confused_pairs: list[_Pair] = []
    per_class: list[_ClassPrecision] = []
    online: _Online | None = None


def check_results(results: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The results with numbers that are numbers.

    Raises:
        LofftaError: something is missing or of another kind; the first such key is named.
    """
    try:
        checked = _Results.model_validate(results)
        _check_sizes(checked)
    except ValidationError as error:
        raise _refusal(problem_of(error), where) from error
    except ValueError as error:
        raise _refusal(str(error), where) from error
    return checked.model_dump(exclude_unset=True)


def _check_sizes(results: _Results) -> None:
    """What belongs together has one size."""
    headline = find_task(results.task).headline
    if headline not in results.metrics:
        raise ValueError(f"metrics.{headline}: it is missing")
    sizes = {len(metric.per_seed) for metric in results.metrics.values()}
    if len(sizes) > 1:
        raise ValueError("metrics: not of one number of seeds")
    confusion = results.confusion
    if confusion is not None and {len(confusion.classes)} != {len(confusion.counts), *map(len, confusion.counts)}:
        raise ValueError("confusion: counts are not classes by classes")
    if results.relevance is not None:
        known = {entry.backbone for entry in results.relevance.backbones}
        if {entry.backbone for entry in results.relevance.taps} - known:
            raise ValueError("relevance: taps of a backbone that has no score")


def _refusal(fault: str, where: Path) -> LofftaError:
    return LofftaError(
        f"these results cannot be reported: {fault}",
        where=where,
        remedy="was the run made by this version? `loffta evaluate RUN` writes them anew",
    )

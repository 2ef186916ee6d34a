"""What a run's results.json says, as types: all that anyone computes with, prints or draws.

In: JSON that `runs` read.   Out: Results. What else a file says is handed on by its name.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from loffta.runs.records import Chosen, Natural, Record
from loffta.tasks import TASKS
from loffta.tasks.dense import DENSE_TASKS
from loffta.words import brief


class Part(Record, extra="allow", allow_inf_nan=False):
    """Base of what results.json holds: all of it is handed on, and nothing is drawn of what is no number."""

    model_config = ConfigDict(frozen=True)


class OverSeeds(Part):
    """One figure."""

    mean: float
    std: float | None
    per_seed: list[float] = Field(min_length=1)


class Metric(OverSeeds):
    """One metric, over seeds and images."""

    ci95: list[float] = Field(min_length=2, max_length=2)


class Used(Part):
    """A store that a head was fed from."""

    store: str
    label: str = ""
    recipe_hash: str
    taps: list[str] = Field(min_length=1)


class Counted(Part):
    """How many images of a split were measured, and how many were left out."""

    used: Natural
    bad: Natural
    unlabelled: Natural = 0
    trained_on: Natural = 0  # of those used


class Relevance(Part):
    """How much a head relies on a backbone or a tap."""

    backbone: str
    tap: str | None
    score: float
    per_seed: list[float] = Field(min_length=1)
    raw_score: float
    inputs: int = Field(ge=1)


class Relevances(Part):
    """The same of all of them."""

    backbones: list[Relevance] = Field(min_length=1)
    taps: list[Relevance] = Field(min_length=1)

    @model_validator(mode="after")
    def _belongs_together(self) -> Relevances:
        if {entry.backbone for entry in self.taps} - {entry.backbone for entry in self.backbones}:
            raise ValueError("relevance: taps of a backbone that has no score")
        return self


class Layer(Part):
    """What a head made of one tap: attention that it pays, features that it keeps."""

    backbone: str
    tap: str
    kind: str = ""
    mean: float


class Confusion(Part):
    """Counts [C, C]: rows are the true classes, columns the predicted."""

    classes: list[str] = Field(min_length=1)
    counts: list[list[Natural]]

    @model_validator(mode="after")
    def _is_square(self) -> Confusion:
        if {len(self.classes)} != {len(self.counts), *map(len, self.counts)}:
            raise ValueError("confusion: counts are not classes by classes")
        return self


class ConfusedPair(Part):
    """Two classes of which one is often taken for the other."""

    label: str
    predicted: str
    count: Natural
    of: int = Field(ge=1)


class ClassPrecision(Part):
    """One class of several per image."""

    images: Natural
    ap: float | None


class Spread(Part):
    """Of the values that were measured on."""

    mean: float
    std: float
    min: float
    max: float


class Schedule(Part):
    """What reports tell of a recipe or a training."""

    epochs: Natural | None = None
    grid: Natural | None = None


class SearchTold(Part):
    """What results.json repeats of a search."""

    metric: str
    validated_on: str
    seconds: float
    chosen: Chosen


class Online(Part):
    """What there is of a training without a cache."""

    source: str


class FoldMetric(Part):
    """One metric on the images of each fold, by the heads that have not seen them; mean over seeds."""

    mean: float
    std: float | None  # over folds
    per_fold: list[float | None] = Field(min_length=2)  # None: not defined on a fold's images


class Folds(Part):
    """What results.json says of a cross-validation, beside the metrics of all its predictions together."""

    n: int = Field(ge=2)
    group: str | None = None
    groups: Natural | None = None  # how many
    images: list[Natural]  # tested, per fold
    metrics: dict[str, FoldMetric]


class FoldHeads(Part):
    """Whose the figures are where heads of all folds meet all images: `per_seed` has a value for every head."""

    folds: int = Field(ge=2)
    seeds: int = Field(ge=1)  # of each fold


class Point(Part):
    """A size of a learning curve: the headline metric, mean over draws and seeds."""

    shots: int = Field(ge=1)
    images: int = Field(ge=1)  # of all classes
    metrics: dict[str, Metric]
    interval: list[float] = Field(min_length=2, max_length=2)  # of the headline, over images, draws and seeds


class FittedCurve(Part):
    """A power law of the error, a + b n^-c, n images a class; and how far off it was where it was not fitted."""

    a: float
    b: float
    c: float
    predicted: float  # at the largest size, by a fit to the others
    off: float  # that less what was seen
    holds: bool
    more_per_point: float | None = None  # labels a class; None: the law does not hold, or none or too many are enough


class LearningCurve(Part):
    """How the headline metric rises with labels a class."""

    metric: str
    draws: int = Field(ge=1)
    points: list[Point] = Field(min_length=1)
    fit: FittedCurve | None = None
    told: str  # in words


class ReliabilityBin(Part):
    """Images, of all seeds, that are about as sure; no mean where there are none."""

    images: Natural
    confidence: float | None
    accuracy: float | None


class Believed(Part):
    """How far the heads' probabilities can be believed."""

    figures: dict[str, OverSeeds]
    bins: list[ReliabilityBin] = Field(min_length=1)
    risks: list[float] = Field(min_length=1)  # of the surest images, at equal steps of coverage up to all


class FittedOn(Part):
    """Images that temperatures were fitted on."""

    split: str
    images: Natural


class TemperatureTold(FittedOn):
    """What logits were divided by."""

    per_seed: list[float] = Field(min_length=1)
    of_mean: float


class Calibration(Part):
    """Of heads as they were trained; and with a temperature, where one was fitted."""

    as_trained: Believed
    calibrated: Believed | None = None
    temperature: TemperatureTold | None = None

    @model_validator(mode="after")
    def _belongs_together(self) -> Calibration:
        if (self.calibrated is None) != (self.temperature is None):
            raise ValueError("calibration: calibrated without a temperature, or the reverse")
        return self


class DenseTold(Part):
    """What decides the figures of a dense head beside features and weights; and what its task keeps beside metrics."""

    target: str
    classes: list[str]
    targets: str  # a digest of those that were measured on
    output_px: int = Field(ge=1)
    settings: dict[str, Any]
    adapter_parameters: Natural


class Timing(Part):
    """What a head took for an image, and where."""

    device: str
    threads: int
    head_ms: float = Field(ge=0, le=1e12)  # of an image


class Staging(Part):
    """Copies that features were read from, on the node's own disk."""

    folder: str  # as it was asked for
    shards: Natural
    bytes: Natural
    copied_bytes: Natural  # by this job; the others were there
    seconds: float
    given_up: str | None  # why the cache itself was read


class Results(Part):
    """results.json and its likes: all that others compute with, print or draw.

    Metrics are fractions from 0 to 1, or in the unit of the values; seconds are seconds. What else the file says is
    there by its name, too.
    """

    task: str = "classification"
    head: str
    split: str
    n: int = Field(ge=1)
    metrics: dict[str, Metric]
    features: list[Used] = Field(min_length=1)
    images: Counted
    recipe: Schedule = Schedule()
    training: Schedule = Schedule()
    train_seconds: float | None = None
    cost: dict[str, float | None] = Field(default_factory=dict)  # as `machine.usage` has it
    versions: dict[str, str] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)
    search: SearchTold | None = None
    relevance: Relevances | None = None
    attention: list[Layer] = Field(default_factory=list)
    kept: list[Layer] = Field(default_factory=list)
    confusion: Confusion | None = None
    confused_pairs: list[ConfusedPair] = Field(default_factory=list)
    per_class: list[ClassPrecision] = Field(default_factory=list)
    calibration: Calibration | None = None
    values: Spread | None = None
    online: Online | None = None
    labels: str | None = None  # the set or file of annotations that says what is right; None: the image set's own
    folds: Folds | None = None
    heads: FoldHeads | None = None
    learning_curve: LearningCurve | None = None
    protocol: str | None = None  # a dense task's: what its figures may be compared with, as the user says
    dense: DenseTold | None = None
    timing: Timing | None = None
    staging: Staging | None = None

    def as_json(self) -> dict[str, Any]:
        """As in the file: what it does not say is left out."""
        return self.model_dump(exclude_unset=True)

    @model_validator(mode="after")
    def _has_its_headline(self) -> Results:
        known = TASKS.get(self.task) or DENSE_TASKS.get(self.task)
        if known is None:
            raise ValueError(f"task: {brief(self.task)} is none that this version knows")
        headline = known.headline
        if headline not in self.metrics:
            raise ValueError(f"metrics.{headline}: it is missing")
        if len({len(metric.per_seed) for metric in self.metrics.values()}) > 1:
            raise ValueError("metrics: not of one number of seeds")
        return self

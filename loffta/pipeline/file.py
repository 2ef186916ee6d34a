"""A pipeline file turned into stages, each a `loffta` command line, for one image set or for many.

In: a YAML file and a folder.   Out: a Pipeline: the stages for `stages`, the runs and reports that they make.
Every image set has a folder of its own with its caches, runs and report, so that it can fail, or be deleted, alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from loffta import augment
from loffta.config import ExtractConfig, StrictModel, TrainConfig, parse, read_yaml
from loffta.dataset.command_lines import extract_arguments, train_arguments
from loffta.dataset.splits import OUT_OF_FOLD
from loffta.errors import UsageError, unknown_name
from loffta.heads import HEADS
from loffta.online import ONLINE_LINEAR, head_of
from loffta.pipeline.stages import Stage
from loffta.runs.run import RunPaths
from loffta.words import brief, file_name

FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
DATA = "{data}"  # in a source: where the user keeps the image sets
BACKBONE = "{backbone}"  # in a run's features: the run is made for each backbone of its cache


# what a pipeline asks of a run before it is a TrainConfig; the rest is checked then
_ASKED = {"cache": str, "train_on": str, "validate_on": str, "features": list, "online": dict}


def _can_be_asked(values: dict[str, Any]) -> dict[str, Any]:
    for key, kind in _ASKED.items():
        if values.get(key) is not None and not isinstance(values[key], kind):
            raise ValueError(f"{key} must be a {'text' if kind is str else kind.__name__}, not {brief(values[key])}")
    return {key: value for key, value in values.items() if not (key in _ASKED and value is None)}


RunValues = Annotated[dict[str, Any], AfterValidator(_can_be_asked)]


class TaskConfig(StrictModel, frozen=True):
    """One image set of a pipeline."""

    name: FolderName
    source: str
    group: str | None = None  # of the summary's mean over groups
    metric: str = "top1"  # what the summary shows
    train_on: str | None = None  # splits, in place of the runs'
    test_on: str | None = None

    @property
    def splits(self) -> dict[str, str]:
        """The keys of a TrainConfig that the task decides."""
        return {key: split for key in ("train_on", "test_on") if (split := getattr(self, key))}


class PipelineConfig(StrictModel, frozen=True):
    """A pipeline file."""

    tasks: tuple[TaskConfig, ...] | None = None  # None: the extractions name their source
    extract: dict[FolderName, dict[str, Any]] = Field(min_length=1)  # by the cache's folder: ExtractConfigs without it
    train: dict[FolderName, RunValues]  # by the run's folder: TrainConfigs, whose `cache` is one of the above
    optional: tuple[FolderName, ...] = ()  # runs that are made only where they are asked for by name
    test: Literal["cached", "online"] = "cached"  # online: test images are seen once for each run, and not cached
    report: str = "report.html"
    scan: str | None = None  # every cache is scanned before anything is trained, into a file of this name


@dataclass(frozen=True)
class PlannedRun:
    """A run that a stage will make."""

    task: TaskConfig | None
    name: str  # as in the file
    backbone: str | None  # of which it is the run, where the file asks for one for each
    path: Path
    split: str = "test"  # that it is measured on

    @property
    def results(self) -> Path:
        """What it will be worth."""
        return RunPaths(self.path).results(self.split)


@dataclass
class Pipeline:
    """What a pipeline file comes to."""

    stages: list[Stage] = field(default_factory=list)
    runs: list[PlannedRun] = field(default_factory=list)
    reports: dict[Path, list[Path]] = field(default_factory=dict)  # runs by the report that shows them


def read_pipeline(path: Path) -> PipelineConfig:
    """Reads a pipeline file; `tasks` may be the name of a YAML file beside it that holds the list.

    Raises:
        LofftaError: a file that cannot be read.
        UsageError: an unknown key, a missing one, a value of the wrong kind, or an optional run that there is not.
    """
    values = read_yaml(path)
    if isinstance(values.get("tasks"), str):
        values["tasks"] = read_yaml(path.parent / values["tasks"]).get("tasks")
    config = parse(PipelineConfig, values, where=path)
    for name in config.optional:
        if name not in config.train:
            raise unknown_name("run", name, config.train, where=f"{path}: optional")
    return config


def choose(config: PipelineConfig, *, tasks: Sequence[str] = (), runs: Sequence[str] = ()) -> PipelineConfig:
    """The pipeline with these tasks and runs alone, and the caches that they need.

    Args:
        tasks: none given: all.
        runs: none given: all but the optional ones.

    Raises:
        UsageError: an unknown name, with its nearest neighbours.
    """
    known = [task.name for task in config.tasks or ()]
    for kind, names, there in (("task", tasks, known), ("run", runs, list(config.train))):
        for name in names:
            if name not in there:
                raise unknown_name(kind, name, there, where=f"--{kind}s")
    wanted = runs or [name for name in config.train if name not in config.optional]
    train = {name: values for name, values in config.train.items() if name in wanted}
    cached = [values for values in train.values() if "online" not in values]
    needed = {values.get("cache", cache) for values in cached for cache in config.extract}
    return config.model_copy(
        update={
            "tasks": config.tasks and tuple(task for task in config.tasks if not tasks or task.name in tasks),
            "extract": {name: values for name, values in config.extract.items() if name in needed},
            "train": train,
        }
    )


def overrule_recipes(config: PipelineConfig, changes: Mapping[str, Any]) -> PipelineConfig:
    """Changes every recipe that names one of these keys, for example {"epochs": 100}."""
    train = {
        name: values | {"recipe": {key: changes.get(key, value) for key, value in values.get("recipe", {}).items()}}
        for name, values in config.train.items()
    }
    return config.model_copy(update={"train": train})


def make_pipeline(config: PipelineConfig, out: Path, *, where: Path, data: Path | None = None) -> Pipeline:
    """The stages in order: task after task, and of each the caches, then the runs.

    Args:
        out: folder that a task's folder goes into; without tasks, caches and runs go there themselves.
        where: the pipeline file, for messages.
        data: what stands for {data}.
    Raises:
        UsageError: the file asks for something that there is not, or a head's recipe is wrong.
    """
    if config.test == "online" and not config.tasks:
        raise UsageError(
            "test images are left out of the caches of tasks alone, and this pipeline has none",
            where=f"{where}: test",
            remedy="test on cached images (`test: cached`), or name the image set as a task",
        )
    if config.test == "online" and config.scan is not None:
        raise UsageError(
            "a scan tests on cached images, and this pipeline caches none of them",
            where=f"{where}: scan",
            remedy="test on cached images (`test: cached`), or leave scan out",
        )
    pipeline = Pipeline()
    for task in config.tasks or (None,):
        folder = out / task.name if task else out
        caches = {name: _extraction(config, task, name, folder / name, data, where) for name in config.extract}
        pipeline.stages += [
            Stage(_stage_name(task, "extract", name if len(caches) > 1 else ""), extract_arguments(extract))
            for name, extract in caches.items()
        ]
        if config.scan is not None:
            pipeline.stages += [
                _scan(task, name if len(caches) > 1 else "", extract.cache, folder / config.scan)
                for name, extract in caches.items()
            ]
        cached: dict[str, list[tuple[PlannedRun, Stage]]] = {name: [] for name in caches}
        made: list[Path] = []
        for name, values in config.train.items():
            for backbone, train in _trainings(config, task, name, values, caches, data, where):
                _check_head(train, f"{where}: train.{name}")
                label = file_name(f"{name}-{backbone}") if backbone else name  # of custom ones a path
                cache = "" if train.online else train.cache.name
                split = OUT_OF_FOLD if train.folds else train.test_on
                if task and cache and config.test == "online":
                    split = task.test_on or "test"
                run = PlannedRun(task, name, backbone, folder / "runs" / label, split)
                needs = (_stage_name(task, "extract", cache if len(caches) > 1 else ""),) if cache else ()
                stage = Stage(_stage_name(task, label), train_arguments(train, run.path), needs)
                pipeline.stages.append(stage)
                pipeline.runs.append(run)
                made.append(run.path)
                if cache:
                    cached[cache].append((run, stage))
        if task and config.test == "online":
            pipeline.stages += [
                _online_test(task, name if len(caches) > 1 else "", caches[name].source, found)
                for name, found in cached.items()
                if found
            ]
        pipeline.reports[folder / config.report] = made
    return pipeline


def _scan(task: TaskConfig | None, name: str, cache: Path, out: Path) -> Stage:
    """Which layer; its table is shown, and written beside the runs."""
    out = out.with_stem(f"{out.stem}-{name}") if name else out
    arguments = ["scan", str(cache), "--out", str(out)]
    return Stage(_stage_name(task, "scan", name), arguments, (_stage_name(task, "extract", name),), shows=True)


def _online_test(task: TaskConfig, cache: str, source: str, trained: Sequence[tuple[PlannedRun, Stage]]) -> Stage:
    """All runs of a cache share one pass over the test images; once all have results, it is not repeated."""
    runs = [str(run.path) for run, _ in trained]
    return Stage(
        _stage_name(task, "test", cache),
        ["evaluate", *runs, "--online", source, "--split", trained[0][0].split],
        tuple(stage.name for _, stage in trained),
        tuple(run.results for run, _ in trained),
    )


def _stage_name(task: TaskConfig | None, *parts: str) -> str:
    words = " ".join(part for part in parts if part)
    return f"{task.name}/{words}" if task else words


def _extraction(
    config: PipelineConfig, task: TaskConfig | None, name: str, cache: Path, data: Path | None, where: Path
) -> ExtractConfig:
    values = config.extract[name] | {"cache": cache}
    if task:
        values["source"] = task.source
        if config.test == "online":
            values["splits"] = _trained_splits(config, task, name)
    if "source" in values:
        values["source"] = _find_source(str(values["source"]), data, where)
    return parse(ExtractConfig, values, where=f"{where}: extract.{name}")


def _find_source(source: str, data: Path | None, where: Path) -> str:
    """The source with the user's folder in the place of {data}."""
    if DATA not in source:
        return source
    if data is None:
        raise UsageError(
            f"the sources of this pipeline lie in a folder of yours: {source}",
            where=where,
            remedy="say with --data FOLDER where it is; its layout is in the head of the file",
        )
    return source.replace(DATA, str(data))


def _trainings(
    config: PipelineConfig,
    task: TaskConfig | None,
    name: str,
    values: dict[str, Any],
    caches: Mapping[str, ExtractConfig],
    data: Path | None,
    where: Path,
) -> Iterator[tuple[str | None, TrainConfig]]:
    """(backbone, configuration): of a run, or of one for each backbone of its cache."""
    place = f"{where}: train.{name}"
    values = {**values, **(task.splits if task else {})}
    if "online" in values:
        yield None, _without_cache(task, values, data, where, place)
        return
    cache = values.get("cache", next(iter(caches)) if len(caches) == 1 else None)
    if cache is None:
        raise UsageError("'cache' is missing", where=place, remedy=f"give one of {', '.join(caches)}")
    if cache not in caches:
        raise unknown_name("cache", str(cache), caches, where=place)
    values["cache"] = caches[cache].cache
    if config.test == "online":
        values["test_on"] = values.get("train_on", "train").split("+")[-1]  # the test images are not in the cache
    features = [str(feature) for feature in values.get("features", ())]
    if not any(BACKBONE in feature for feature in features):
        yield None, parse(TrainConfig, values, where=place)
        return
    for backbone in caches[cache].backbones:
        chosen = {"features": [feature.replace(BACKBONE, backbone.name) for feature in features]}
        yield backbone.name, parse(TrainConfig, values | chosen, where=place)


def _without_cache(
    task: TaskConfig | None, values: dict[str, Any], data: Path | None, where: Path, place: str
) -> TrainConfig:
    """A run of `train --online`: on the task's own images, test images too, wherever those of the others are."""
    if "cache" in values:
        raise UsageError("'cache' and 'online' exclude each other", where=place, remedy="leave one out")
    online = dict(values["online"]) | ({"source": task.source} if task else {})
    if "source" in online:
        online["source"] = _find_source(str(online["source"]), data, where)
    return parse(TrainConfig, values | {"cache": online.get("source", ""), "online": online}, where=place)


def _check_head(config: TrainConfig, place: str) -> None:
    """Raises now what `train` would raise behind the extraction, hours later."""
    known = (*HEADS, ONLINE_LINEAR) if config.online else tuple(HEADS)
    if config.head not in known:
        raise unknown_name("head", config.head, known, where=place)
    parse(HEADS[head_of(config.head)].recipe, config.recipe, where=f"{place}.recipe")
    augment.resolve(config.augment, where=f"{place}.augment")


def _trained_splits(config: PipelineConfig, task: TaskConfig, cache: str) -> str | None:
    """The splits that the runs of a cache train or validate on: all that it needs where test images are not cached."""
    runs = [values | task.splits for values in config.train.values() if "online" not in values]
    runs = [values for values in runs if values.get("cache", cache) == cache]
    named = [values.get(key) for values in runs for key in ("train_on", "validate_on")]
    parts = [
        part
        for split in (*named, *("train" for v in runs if "train_on" not in v))
        if split
        for part in split.split("+")
    ]
    return "+".join(dict.fromkeys(parts)) or None

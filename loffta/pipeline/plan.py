"""A pipeline's configuration turned into stages, each a `loffta` command line, for one image set or for many.

In: a PipelineConfig and a folder.   Out: a Pipeline: the stages for the launchers, the runs and reports that they make.
Every image set has a folder of its own with its caches, runs and report, so that it can fail, or be deleted, alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loffta import augment
from loffta.config import ExtractConfig, TrainConfig, parse
from loffta.dataset.command_lines import extract_arguments, train_arguments
from loffta.dataset.splits import OUT_OF_FOLD
from loffta.errors import UsageError, unknown_name
from loffta.heads import HEADS
from loffta.online import ONLINE_LINEAR, head_of
from loffta.online.windows import parse_windows
from loffta.pipeline.file import BACKBONE, DATA, PipelineConfig, TaskConfig
from loffta.pipeline.stages import Stage, link
from loffta.runs.run import RunPaths
from loffta.words import file_name


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
    suffix: str = ""  # of its own reports and summary, in a folder that pipelines share


def make_pipeline(
    config: PipelineConfig, out: Path, *, where: Path, data: Path | None = None, shards: int = 1, suffix: str = ""
) -> Pipeline:
    """The stages in order: task after task, and of each the caches, then the runs, each behind those that it needs.

    Args:
        out: folder that a task's folder goes into; without tasks, caches and runs go there themselves.
        where: the pipeline file, for messages.
        data: what stands for {data}.
        shards: parts of every extraction, for as many processes.
        suffix: of its own files, see `loffta.pipeline.shared`.
    Raises:
        UsageError: the file asks for something that there is not, a head's recipe is wrong, two stages write the same
            folder, or stages wait for each other.
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
    pipeline = Pipeline(suffix=suffix)
    stages: list[Stage] = []
    for task in config.tasks or (None,):
        of_task = _stages_of(pipeline, config, task, out / task.name if task else out, data, where, shards)
        names: dict[str, list[str]] = {}
        for entry, stage in of_task:
            names.setdefault(entry, []).append(stage.name)
        for entry, stage in of_task:
            after = _after(config, entry) if stage.kind in ("extract", "train") else ()
            waits = [name for other in after for name in names.get(other, ())]
            stages.append(replace(stage, needs=tuple(waits)))
    pipeline.stages = link(stages, where=where)
    return pipeline


def _after(config: PipelineConfig, entry: str) -> Sequence[str]:
    return [name for part in (config.extract, config.train) for name in part.get(entry, {}).get("after", ())]


def _stages_of(
    pipeline: Pipeline,
    config: PipelineConfig,
    task: TaskConfig | None,
    folder: Path,
    data: Path | None,
    where: Path,
    shards: int,
) -> list[tuple[str, Stage]]:
    """The stages of one image set, each with its entry in the file; its runs and report are added to `pipeline`."""
    caches = {name: _extraction(config, task, name, folder / name, data, where) for name in config.extract}
    names = {name: name if len(caches) > 1 else "" for name in caches}
    stages = [
        (name, stage)
        for name, extract in caches.items()
        for stage in _parts(_stage_name(task, "extract", names[name]), extract, shards)
    ]
    if config.scan is not None:
        scan = _own(folder / config.scan, pipeline)
        stages += [(name, _scan(task, names[name], e.cache, scan)) for name, e in caches.items()]
    cached: dict[str, list[PlannedRun]] = {name: [] for name in caches}
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
            reads = (train.cache,) if cache else ()
            arguments = train_arguments(train, run.path)
            stages.append((name, Stage(_stage_name(task, label), arguments, reads=reads, writes=(run.path,))))
            pipeline.runs.append(run)
            made.append(run.path)
            if cache:
                cached[cache].append(run)
    if task and config.test == "online":
        tested = {name: runs for name, runs in cached.items() if runs}
        for name, runs in tested.items():
            stages.append((name, _online_test(task, names[name], caches[name].source, runs, config.windows)))
    pipeline.reports[_own(folder / config.report, pipeline)] = made
    return stages


def _own(path: Path, pipeline: Pipeline) -> Path:
    return path.with_stem(path.stem + pipeline.suffix)


def _parts(name: str, config: ExtractConfig, shards: int) -> list[Stage]:
    """An extraction, or that many parts of it; one that the file itself shares out stays as it is."""
    stage = Stage(name, extract_arguments(config), writes=(config.cache,))
    if shards == 1 or config.share != (0, 1):
        return [stage]
    return [replace(stage, name=f"{name} {i}/{shards}", part=(i, shards)) for i in range(shards)]


def _scan(task: TaskConfig | None, name: str, cache: Path, out: Path) -> Stage:
    """Which layer; its table is shown, and written beside the runs."""
    out = out.with_stem(f"{out.stem}-{name}") if name else out
    arguments = ["scan", str(cache), "--out", str(out)]
    return Stage(_stage_name(task, "scan", name), arguments, shows=True, reads=(cache,), writes=(out,))


def _online_test(
    task: TaskConfig, cache: str, source: str, trained: Sequence[PlannedRun], windows: str | None
) -> Stage:
    """All runs of a cache share one pass over the test images; once all have results, it is not repeated."""
    paths = tuple(run.path for run in trained)
    how = [] if windows is None else ["--windows", str(parse_windows(windows))]
    return Stage(
        _stage_name(task, "test", cache),
        ["evaluate", *map(str, paths), "--online", source, "--split", trained[0].split, *how],
        makes=tuple(run.results for run in trained),
        reads=paths,
    )


def _stage_name(task: TaskConfig | None, *parts: str) -> str:
    words = " ".join(part for part in parts if part)
    return f"{task.name}/{words}" if task else words


def _extraction(
    config: PipelineConfig, task: TaskConfig | None, name: str, cache: Path, data: Path | None, where: Path
) -> ExtractConfig:
    values = _without_after(config.extract[name]) | {"cache": cache}
    if task:
        values["source"] = task.source
        if config.test == "online":
            values["splits"] = _trained_splits(config, task, name)
    if "source" in values:
        values["source"] = _find_source(str(values["source"]), data, where)
    return parse(ExtractConfig, values, where=f"{where}: extract.{name}")


def _without_after(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "after"}


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
    values = {**_without_after(values), **(task.splits if task else {})}
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

"""A pipeline file: what is extracted from one image set or from many, and which heads are trained on it.

In: YAML.   Out: a PipelineConfig for `plan`, whole or in part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from loffta.config import StrictModel, parse, read_yaml
from loffta.errors import UsageError, unknown_name
from loffta.pipeline.resources import Resources
from loffta.words import brief

FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
DATA = "{data}"  # in a source: where the user keeps the image sets
BACKBONE = "{backbone}"  # in a run's features: the run is made for each backbone of its cache


# what a pipeline asks of an entry before it is a configuration; the rest is checked then
_ASKED = {"cache": str, "train_on": str, "validate_on": str, "features": list, "online": dict, "after": list}


def _can_be_asked(values: dict[str, Any]) -> dict[str, Any]:
    for key, kind in _ASKED.items():
        if values.get(key) is not None and not isinstance(values[key], kind):
            raise ValueError(f"{key} must be a {'text' if kind is str else kind.__name__}, not {brief(values[key])}")
    return {key: value for key, value in values.items() if not (key in _ASKED and value is None)}


EntryValues = Annotated[dict[str, Any], AfterValidator(_can_be_asked)]


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
    extract: dict[FolderName, EntryValues] = Field(min_length=1)  # by the cache's folder: ExtractConfigs without it
    train: dict[FolderName, EntryValues]  # by the run's folder: TrainConfigs, whose `cache` is one of the above
    optional: tuple[FolderName, ...] = ()  # runs that are made only where they are asked for by name
    test: Literal["cached", "online"] = "cached"  # online: test images are seen once for each run, and not cached
    windows: str | None = None  # with `test: online`: dense runs are tested by windows that slide, "512/341"
    report: str = "report.html"
    scan: str | None = None  # every cache is scanned before anything is trained, into a file of this name
    slurm: Resources = Resources()  # what the jobs of a cluster ask for


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
    if config.windows is not None and config.test != "online":
        raise UsageError(
            "windows slide over images, and this pipeline tests on cached features",
            where=f"{path}: windows",
            remedy="add `test: online`, or leave it out",
        )
    _check_after(config, path)
    return config


def _check_after(config: PipelineConfig, path: Path) -> None:
    known = [*config.extract, *config.train]
    for part in ("extract", "train"):
        for entry, values in getattr(config, part).items():
            for name in values.get("after", ()):
                if name not in known:
                    raise unknown_name("cache or run", str(name)[:100], known, where=f"{path}: {part}.{entry}.after")


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

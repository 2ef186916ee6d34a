"""A pipeline file turned into stages, each a `loffta` command line, run one after the other as local processes.

In: a YAML file and a folder.   Out: cache, runs and report below the folder. A second run continues: every stage does.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from loffta.config import ExtractConfig, StrictModel, TrainConfig, parse, read_yaml
from loffta.errors import LofftaError
from loffta.store.files import replace_file


class PipelineConfig(StrictModel, frozen=True):
    """A pipeline file; its paths are relative to the output folder."""

    cache: str = "cache"
    extract: dict[str, Any]  # an ExtractConfig without its cache
    train: dict[str, dict[str, Any]]  # TrainConfigs without their cache, by the name of the run
    report: str = "report.html"


@dataclass(frozen=True)
class Stage:
    """One command line of a pipeline."""

    name: str
    arguments: list[str]  # behind `loffta`

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["loffta", *self.arguments])


@dataclass
class StageResult:
    """What a stage cost; kept in stages.json, so that a second run that has nothing to do does not hide it."""

    name: str
    command: str
    seconds: float  # wall clock of the whole process
    bytes: int  # that the stage added to the cache
    result: dict[str, Any]  # the JSON object that the command printed


def load_pipeline(
    path: Path, out: Path, *, recipe: dict[str, Any] | None = None
) -> tuple[list[Stage], list[Path], Path]:
    """Reads a pipeline file.

    Args:
        recipe: values that overrule every recipe that names them, for example {"epochs": 100}.
    Returns:
        The stages in order, the runs that they make, and where the report goes.
    """
    pipeline = parse(PipelineConfig, read_yaml(path), where=path)
    cache = out / pipeline.cache
    extract = parse(ExtractConfig, pipeline.extract | {"cache": cache}, where=f"{path}: extract")
    stages, runs = [Stage("extract", extract_arguments(extract))], []
    for name, values in pipeline.train.items():
        config = parse(TrainConfig, values | {"cache": cache}, where=f"{path}: train.{name}")
        changed = {key: value for key, value in (recipe or {}).items() if key in config.recipe}
        config = config.model_copy(update={"recipe": config.recipe | changed})
        runs.append(out / "runs" / name)
        stages.append(Stage(name, train_arguments(config, runs[-1])))
    return stages, runs, out / pipeline.report


def run_local(stages: list[Stage], out: Path, say: Callable[[str], None]) -> list[StageResult]:
    """Runs the stages in order, each in a process of its own; its log goes to this process's stderr.

    Raises:
        LofftaError: a stage failed; its exit code is passed on.
    """
    kept_path = out / "stages.json"
    kept = {entry["command"]: entry for entry in json.loads(kept_path.read_text())} if kept_path.exists() else {}
    results = []
    for stage in stages:
        say(f"$ {stage.command}")
        start = time.monotonic()
        result = _run(stage)
        done = StageResult(stage.name, stage.command, time.monotonic() - start, _bytes_of(result), result)
        if stage.command in kept:
            done.seconds = max(done.seconds, kept[stage.command]["seconds"])
        say(f"  {done.seconds:.0f} s")
        results.append(done)
        kept[stage.command] = asdict(done)
        out.mkdir(parents=True, exist_ok=True)
        replace_file(kept_path, json.dumps(list(kept.values()), indent=2).encode())
    return results


def extract_arguments(config: ExtractConfig) -> list[str]:
    """The command line of an extraction, options at their default left out."""
    arguments = ["extract", config.source, "--cache", str(config.cache)]
    for backbone in config.backbones:  # every value for every backbone, so that they pair by position
        arguments += ["--backbone", backbone.name, "--weights", backbone.weights, "--taps", backbone.taps]
        if any(other.image_px is not None for other in config.backbones):
            arguments += ["--image-px", str(backbone.image_px or "native")]
    plain = ("resize", "interpolation", "views", "view_seed", "precision", "dtype", "batch_size", "device")
    changed = _changed(config, (*plain, "unit_images", "limit", "max_bad_frac"))
    if config.pool:
        changed["pool"] = "{}x{}".format(*config.pool)
    if config.share != (0, 1):
        changed["shard"] = "/".join(map(str, config.share))
    if "kinds" in config.model_fields_set:
        changed["kinds"] = ",".join(config.kinds)
    return arguments + _options(changed) + (["--ignore-space"] if config.ignore_space else [])


def train_arguments(config: TrainConfig, run: Path) -> list[str]:
    """The command line of a training, options at their default left out."""
    arguments = ["train", str(config.cache), "--head", config.head, "--out", str(run)]
    for feature in config.features:
        arguments += ["--features", feature]
    for key, value in config.recipe.items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    names = ("task", "train_on", "validate_on", "holdout", "test_on", "seeds", "data_seed", "select", "device", "feed")
    flags = [f"--{name}" for name in ("search", "partial") if getattr(config, name)]
    return arguments + _options(_changed(config, (*names, "checkpoint_s"))) + flags


def _changed(config: BaseModel, names: tuple[str, ...]) -> dict[str, Any]:
    fields = type(config).model_fields
    return {name: getattr(config, name) for name in names if getattr(config, name) != fields[name].default}


def _options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _run(stage: Stage) -> dict[str, Any]:
    command = [sys.executable, "-m", "loffta_cli", *stage.arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        error = LofftaError(
            f"stage '{stage.name}' ended with exit code {done.returncode}",
            where=stage.command,
            remedy="its message is above; mend that and run the pipeline again: finished stages are kept",
        )
        error.exit_code = done.returncode if done.returncode > 0 else 1
        raise error
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _bytes_of(result: dict[str, Any]) -> int:
    return sum(store["bytes"] for store in result.get("stores", []))

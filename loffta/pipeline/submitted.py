"""What was submitted from a folder: the stages of each pipeline, so that `--status` needs the folder alone.

In: stages at a submission.   Out: OUT/slurm/plans/, and the same stages when asked for. Called by `loffta run`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from loffta.config import StrictModel
from loffta.errors import LofftaError
from loffta.files.documents import from_json, read_bytes
from loffta.files.durable import make_folder, replace_file
from loffta.pipeline.jobs import SlurmPaths
from loffta.pipeline.stages import Stage


class _Kept(StrictModel, frozen=True):
    """A stage, as a Stage says it; paths are absolute, for a status may be asked for from another folder."""

    name: str
    arguments: Annotated[list[str], Field(min_length=1)]
    needs: tuple[str, ...] = ()
    makes: tuple[Path, ...] = ()
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()
    part: tuple[int, int] | None = None
    always: bool = False


class _Plan(StrictModel, frozen=True):
    stages: list[_Kept]


def keep_plan(stages: Sequence[Stage], out: Path, suffix: str, *, whole: bool) -> None:
    """Keeps what is submitted.

    Args:
        suffix: of the pipeline, among those of the folder.
        whole: these are all stages of the pipeline; else they stand beside those that were submitted before.
    """
    path = SlurmPaths(out).plan(suffix)
    wholes = {stage.whole for stage in stages}
    before = [] if whole or not path.exists() else [stage for stage in _read(path) if stage.whole not in wholes]
    kept = [_kept(stage).model_dump(mode="json") for stage in (*before, *stages)]
    make_folder(path.parent)
    replace_file(path, json.dumps({"stages": kept}).encode())


def read_plans(out: Path, suffix: str | None = None) -> list[Stage]:
    """The stages that were submitted from a folder, of one pipeline or of all; none where none was.

    Raises:
        LofftaError: what was kept cannot be read.
    """
    paths = SlurmPaths(out)
    files: Iterable[Path] = sorted(paths.plan("").parent.glob("plan*.json")) if suffix is None else [paths.plan(suffix)]
    return [stage for path in files if path.exists() for stage in _read(path)]


def _kept(stage: Stage) -> _Kept:
    folders = {name: tuple(path.absolute() for path in getattr(stage, name)) for name in ("makes", "reads", "writes")}
    return _Kept(
        name=stage.name,
        arguments=stage.arguments,
        needs=stage.needs,
        part=stage.part,
        always=stage.always,
        **folders,
    )


def _read(path: Path) -> list[Stage]:
    try:
        return [Stage(**dict(kept)) for kept in _Plan.model_validate(from_json(read_bytes(path))).stages]
    except (ValueError, ValidationError) as error:
        raise LofftaError(
            f"cannot read which stages were submitted ({str(error).splitlines()[0]})",
            where=path,
            remedy="delete the file, and give the PIPELINE with the options of the submission to --status",
        ) from error

"""What the jobs of a cluster ask for: partition, account, GPUs, time, CPUs, memory; for all stages, or for one kind.

In: the key `slurm` of a pipeline file, a site file, options.   Out: for each kind of stage what its jobs ask for.
All of it is written into batch scripts: values are single words, and only a site file, which is the user's own, may
bring lines of shell.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from loffta.config import StrictModel, parse, read_yaml

HOME = "LOFFTA_HOME"


def _no_number(value: object) -> object:
    """YAML 1.1 reads 4:00:00 as 14400, which SLURM takes for minutes: ten days."""
    if isinstance(value, int | float):
        raise ValueError("write it with quotes, as sbatch takes it: '4:00:00', or '30' for minutes")
    return value


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Word = Annotated[
    str,
    BeforeValidator(_as_text),
    StringConstraints(pattern=r"^[A-Za-z0-9_.,:=+*&|()\[\]@/-]+$", max_length=200),
]
Folder = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,/$+{}-]+$", max_length=500)]
Time = Annotated[str, BeforeValidator(_no_number), StringConstraints(pattern=r"^(\d+-)?\d+(:\d+){0,2}$")]
Memory = Annotated[str, BeforeValidator(_as_text), StringConstraints(pattern=r"^\d+[KMGT]?$")]
Line = Annotated[str, StringConstraints(pattern=r"^--[a-z][ -~]*$", max_length=500)]


class Asked(StrictModel, frozen=True):
    """What a job asks for; None: nothing is said, and the cluster's own default holds."""

    partition: Word | None = None
    account: Word | None = None
    gres: Word | None = None
    time: Time | None = None
    cpus: Annotated[int, Field(ge=1, le=4096)] | None = None  # of a task
    mem: Memory | None = None
    constraint: Word | None = None

    def over(self, other: Asked) -> Asked:
        """What either asks for; where both do, this one."""
        asked = {name: getattr(source, name) for source in (other, self) for name in source.model_fields_set}
        return Asked(**{name: value for name, value in asked.items() if name in Asked.model_fields and value})


class Resources(Asked, frozen=True):
    """What jobs ask for, and those of one kind in place of it."""

    extract: Asked = Asked()
    scan: Asked = Asked()
    train: Asked = Asked()
    evaluate: Asked = Asked()
    report: Asked = Asked()
    shards: Annotated[int, Field(ge=1, le=100_000)] | None = None  # parts of every extraction
    # --stage-dir of what reads caches; its variables are expanded by loffta on the node, never by a shell
    stage_dir: Folder | None = None


class Site(Resources, frozen=True):
    """A site file: what holds for all pipelines of a user."""

    options: tuple[Line, ...] = ()  # further options of sbatch: --qos=long
    setup: str = ""  # lines of shell at the head of every script: module load cuda


def read_site() -> Site:
    """The site file, $LOFFTA_HOME/site.yaml; an empty one where there is none.

    Raises:
        LofftaError: it cannot be read.
        UsageError: an unknown key, or a value of the wrong kind.
    """
    home = os.environ.get(HOME)
    path = Path(home) / "site.yaml" if home else None
    return parse(Site, read_yaml(path), where=path) if path and path.exists() else Site()


def read_options(values: Mapping[str, Any]) -> Asked:
    """What the options of the command line ask for.

    Raises:
        UsageError: a value that no script may hold.
    """
    return parse(Asked, {key: value for key, value in values.items() if value is not None}, where="loffta run")


def resolve(kind: str, options: Asked, pipeline: Resources, site: Site) -> Asked:
    """What the jobs of one kind ask for: options, else the pipeline file, else the site file; there the kind first.

    Args:
        kind: extract, scan, train, evaluate or report.
    """
    of_kind: Asked = getattr(pipeline, kind)
    site_kind: Asked = getattr(site, kind)
    return options.over(of_kind.over(pipeline.over(site_kind.over(site))))

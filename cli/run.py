"""`loffta run`: a pipeline file as processes of this machine or as jobs of a cluster, then reports and a summary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loffta.words import printable

from .common import emit, json_option, show_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loffta.pipeline.plan import Pipeline
    from loffta.pipeline.resources import Resources
    from loffta.pipeline.stages import Stage
    from loffta.pipeline.status import State

_TRAINING = ("scan", "train", "evaluate")


@click.command("run")
@click.argument("file", metavar="PIPELINE", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of caches, runs and reports.")
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="What {data} in the file stands for.")
@click.option("--tasks", default="", metavar="NAME,...", help="Only these of the file's tasks.")
@click.option("--runs", default="", metavar="NAME,...", help="Only these runs, and the caches that they need.")
@click.option("--only", type=click.Choice(["extract", "train", "report"]), help="Half of the stages; or none of them.")
@click.option("--test", type=click.Choice(["cached", "online"]), help="In place of what the file says.")
@click.option("--small", is_flag=True, help="Tiny random networks, small images, two epochs: proves that all runs.")
@click.option("--launcher", type=click.Choice(["local", "slurm"]), default="local", show_default=True)
@click.option("--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, help="Local: processes at a time.")
@click.option("--shards", type=click.IntRange(1, 100_000), help="Parts of every extraction, a process each.  [1]")
@click.option("--partition", metavar="NAME", help="SLURM: as sbatch takes it; so are the next six.")
@click.option("--account", metavar="NAME")
@click.option("--gres", metavar="GRES", help="gpu:1")
@click.option("--time", metavar="LIMIT", help="4:00:00")
@click.option("--cpus", type=int, metavar="N", help="CPUs of a job.")
@click.option("--mem", metavar="SIZE", help="32G")
@click.option("--constraint", metavar="LIST")
@click.option("--dry-run", is_flag=True, help="Print the commands; with SLURM, all scripts. Writes nothing.")
@click.option("--status", is_flag=True, help="SLURM: how every stage stands, and why.")
@click.option("--cancel", is_flag=True, help="SLURM: take back what waits or runs of this folder.")
@json_option
def command(file: Path | None, out: Path, as_json: bool, **options: Any) -> None:
    """Run PIPELINE, a YAML file of extractions and trainings, from images to a report.

    PIPELINE is a path, or the name of a file that comes with loffta: demo.yaml, vtab1k/single.yaml. A second run
    continues: what is finished is not repeated. On a cluster it submits only what is missing. --status and --cancel
    need the folder alone.
    """
    if options["cancel"]:
        emit(_cancel(out), as_json)
    elif options["status"]:
        emit(_look(_submitted(file, out, options), out), as_json)
    elif file is None:
        raise click.UsageError("Missing argument 'PIPELINE'.")
    elif options["launcher"] == "slurm":
        emit(_submit(file, out, options), as_json)
    else:
        emit(_run(file, out, options), as_json)


def _path(file: Path) -> Path:
    from importlib.resources import files

    return file if file.exists() else Path(str(files("loffta_pipelines"))) / file


def _plan(file: Path, out: Path, options: dict[str, Any], *, on_cluster: bool) -> tuple[Pipeline, Resources]:
    """The pipeline of the file and the options, its stages those that are asked for; on a cluster a report as well."""
    from loffta.pipeline.file import choose, read_pipeline
    from loffta.pipeline.plan import make_pipeline
    from loffta.pipeline.resources import read_site
    from loffta.pipeline.shared import find_suffix
    from loffta.pipeline.small import shrink

    path = _path(file)
    config = choose(read_pipeline(path), tasks=_names(options["tasks"]), runs=_names(options["runs"]))
    if options["test"]:
        config = config.model_copy(update={"test": options["test"]})
    if options["small"]:
        config = shrink(config)
    shards = options["shards"] or (on_cluster and (config.slurm.shards or read_site().shards)) or 1
    suffix = find_suffix(out, path)
    pipeline = make_pipeline(config, out, where=path, data=options["data"], shards=shards, suffix=suffix)
    if options["only"] in ("extract", "train"):
        half = options["only"] == "train"
        pipeline.stages = [stage for stage in pipeline.stages if (stage.kind in _TRAINING) == half]
    if on_cluster and options["only"] != "extract":
        pipeline.stages.append(_report_stage(path, pipeline, out, options | {"shards": shards}))
    return pipeline, config.slurm


def _run(file: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """All stages on this machine, then what they come to."""
    from loffta.pipeline.jobs import collect
    from loffta.pipeline.local import Outcome, run_local
    from loffta.pipeline.results import write_results
    from loffta.pipeline.shared import keep_suffix
    from loffta.reporting import StageCost

    pipeline, _ = _plan(file, out, options, on_cluster=False)
    stages = pipeline.stages
    if options["dry_run"]:
        for stage in stages:
            _say(stage.command)
        return {"stages": [stage.command for stage in stages]}
    keep_suffix(out, _path(file))
    if options["only"] == "report":
        outcome, costs = Outcome(), collect(stages, out)
    else:
        outcome = run_local(stages, out, _say, jobs=options["jobs"])
        costs = [vars(result) for result in outcome.results]
    written: dict[str, Any] = {}
    if options["only"] != "extract":
        shown = [StageCost(cost["name"], cost["command"], cost["seconds"], cost["bytes"]) for cost in costs]
        written = write_results(pipeline, shown, out, _say)
    outcome.check(out)
    return {**written, "stages": costs}


def _submit(file: Path, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What is missing, as jobs; the last of them writes report and summary."""
    from loffta.pipeline.resources import Asked, read_options, read_site
    from loffta.pipeline.shared import keep_suffix
    from loffta.pipeline.slurm import Wishes, show_all, submit_missing
    from loffta.pipeline.submitted import keep_plan

    pipeline, resources = _plan(file, out, options, on_cluster=True)
    asked = read_options({name: options[name] for name in Asked.model_fields})
    wishes = Wishes(asked, resources, read_site())
    if options["dry_run"]:
        show_all(pipeline.stages, out, wishes, _say)
        return {"stages": [stage.command for stage in pipeline.stages]}

    def keep() -> None:
        whole = not any(options[name] for name in ("tasks", "runs", "only"))
        keep_suffix(out, _path(file))
        keep_plan(pipeline.stages, out, pipeline.suffix, whole=whole)

    return submit_missing(pipeline.stages, out, wishes, _say, keep)


def _submitted(file: Path | None, out: Path, options: dict[str, Any]) -> Sequence[Stage]:
    """The stages that were submitted from the folder, or those that the file and the options come to."""
    from loffta.errors import LofftaError
    from loffta.pipeline.shared import find_suffix
    from loffta.pipeline.submitted import read_plans

    chosen = any(options[name] for name in ("data", "tasks", "runs", "only", "test", "small", "shards"))
    stages = [] if chosen else read_plans(out, None if file is None else find_suffix(out, _path(file)))
    if not stages and file is None:
        raise LofftaError(
            "nothing was submitted from this folder",
            where=out,
            remedy="look whether it is the --out of the submission; or give the PIPELINE, too",
        )
    return stages if stages or file is None else _plan(file, out, options, on_cluster=True)[0].stages


def _report_stage(path: Path, pipeline: Pipeline, out: Path, options: dict[str, Any]) -> Stage:
    """This command once more, for what the stages come to."""
    from loffta.pipeline.stages import Stage

    words = ["run", str(path), "--out", str(out), "--only", "report"]
    for name in ("data", "tasks", "runs", "test"):
        if options[name]:
            words += [f"--{name}", str(options[name])]
    words += ["--small"] if options["small"] else []
    words += ["--shards", str(options["shards"])] if options["shards"] > 1 else []
    return Stage("report", words, tuple(stage.name for stage in pipeline.stages), always=True)


def _look(stages: Sequence[Stage], out: Path) -> dict[str, Any]:
    """One line a stage, below a failed one why and the end of its log; and what all of them cost."""
    from dataclasses import asdict

    from loffta.machine.terminal import Table
    from loffta.machine.usage import FREE
    from loffta.pipeline.status import FAILED, look

    states = look(stages, out)
    cells = [[s.stage, s.state, _units(s), s.job, s.why if s.state != FAILED else "", _cost(s)] for s in states]
    table = Table(cells, right={2})
    for state, row in zip(states, cells, strict=True):
        notes = [state.why, *state.last_lines, f"log: {state.log}"] if state.state == FAILED else []
        show_lines(table.lines(row, *notes))
    counts: dict[str, int] = {}
    for state in states:
        counts[state.state] = counts.get(state.state, 0) + 1
    show_lines(["", ", ".join(f"{n} {word}" for word, n in counts.items())])
    total = sum((s.cost for s in states), FREE)
    show_lines([f"all together: {total}"] if total.cpu_s else [])
    shown = [asdict(state) | {"cost": state.cost.as_json()} for state in states]
    return {"counts": counts, "cost": total.as_json(), "stages": shown}


def _units(state: State) -> str:
    """Of a stage that is done the finished ones alone: with --limit or --splits it never had to do them all."""
    if state.units is None:
        return ""
    done, there = state.units
    return f"{done} units" if state.state == "done" else f"{done}/{there} units"


def _cost(state: State) -> str:
    """Of all starts; nothing where nobody has told."""
    starts = f" in {state.starts} starts" if state.starts > 1 else ""
    return f"{state.cost}{starts}" if state.cost.cpu_s else ""


def _cancel(out: Path) -> dict[str, Any]:
    from loffta.pipeline.slurm import cancel

    jobs = cancel(out)
    _say(f"cancelled: {', '.join(jobs)}" if jobs else "nothing waits or runs")
    return {"cancelled": jobs}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _say(line: str) -> None:
    """A line as it is: a command or a table that a terminal's width must not break."""
    show_lines([printable(line)])

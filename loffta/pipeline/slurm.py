"""Stages as job arrays of SLURM, submitted where something is missing; and taken back.

In: stages and what their jobs ask for.   Out: a script and a record for every array, and its jobs. A second call
submits what is neither done nor waits nor runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loffta.errors import UsageError
from loffta.files.durable import make_folder, replace_file
from loffta.pipeline import engine
from loffta.pipeline.jobs import Array, SlurmPaths, arrays_of, find_active, find_done, write_record
from loffta.pipeline.resources import Asked, Resources, Site, resolve
from loffta.pipeline.script import write_script
from loffta.pipeline.stages import Stage
from loffta.words import plural, printable


@dataclass(frozen=True)
class Wishes:
    """What jobs ask for, from the three places that say it."""

    options: Asked
    pipeline: Resources
    site: Site

    def of(self, stage: Stage) -> Asked:
        """What the jobs of a stage ask for."""
        return resolve("report" if stage.always else stage.kind, self.options, self.pipeline, self.site)

    @property
    def stage_dir(self) -> str | None:
        """Where jobs copy what they read."""
        return self.pipeline.stage_dir or self.site.stage_dir


def submit_missing(
    stages: Sequence[Stage],
    out: Path,
    wishes: Wishes,
    say: Callable[[str], None],
    keep: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Submits every stage that is neither done nor waits nor runs, behind those that it needs.

    Args:
        stages: in an order that keeps their needs.
        keep: writes down what is submitted; called when SLURM has answered, before anything is submitted.
    Returns:
        How many stages are `done` and `active`, and which `jobs` were submitted.
    Raises:
        LofftaError: SLURM refused; what is submitted stays.
    """
    paths = SlurmPaths(out)
    done, active = find_done(stages, out), find_active(paths)
    ids = {stage.name: active[stage.mark].id for stage in stages if stage.mark in active}
    counts = {"done": len(done), "active": len(ids)}
    jobs: dict[str, list[str]] = {}  # of this call: the stages of each
    arrays = arrays_of(stages, engine.most_tasks())
    keep()
    for array in arrays:
        todo = _todo(array, done, ids, bool(jobs))
        if not todo:
            continue
        for folder in (paths.logs, paths.results, paths.usage):
            make_folder(folder)
        replace_file(paths.script(array.name), script_of(array, paths, wishes).encode())
        after = dependency(array.stages[0], ids, jobs)
        job = engine.submit(paths.script(array.name), paths.prefix + array.name, todo, after)
        write_record(paths, array, [job])
        jobs[job] = [array.stages[index].name for index in todo]
        ids |= {array.stages[index].name: f"{job}_{index}" for index in todo}
        say(f"submitted job {job}: {_names(array, todo)}{', behind ' + after if after else ''}")
    say(
        f"{len(jobs)} {plural(len(jobs), 'job')} submitted; of {len(stages)} stages {counts['done']} "
        f"{plural(counts['done'], 'is', 'are')} done, {counts['active']} waited or ran already"
    )
    return {**counts, "stages": len(stages), "jobs": list(jobs)}


def show_all(stages: Sequence[Stage], out: Path, wishes: Wishes, say: Callable[[str], None]) -> None:
    """Says what `submit_missing` would write and submit, without a word to SLURM."""
    paths, done = SlurmPaths(out), find_done(stages, out)
    ids: dict[str, str] = {}
    jobs: dict[str, list[str]] = {}
    for array in arrays_of(stages, engine.MOST_TASKS):
        todo = _todo(array, done, ids, bool(jobs))
        if todo:
            say(f"==> {paths.script(array.name)}")
            for line in script_of(array, paths, wishes).splitlines():
                say(line)
            after = dependency(array.stages[0], ids, jobs)
            job = array.name
            jobs[job] = [array.stages[index].name for index in todo]
            ids |= {array.stages[index].name: f"{job}_{index}" for index in todo}
            behind = f" --dependency={after}" if after else ""
            say(f"$ sbatch --array={engine.spans(todo)}{behind} {paths.script(array.name)}")
            say("")


def script_of(array: Array, paths: SlurmPaths, wishes: Wishes) -> str:
    """The batch script of an array.

    Raises:
        UsageError: a path that no script may hold.
    """
    for path in (paths.root, Path.cwd()):
        if not str(path).isprintable():
            raise UsageError(
                "a path with control characters fits no batch script", where=printable(path), remedy="rename the folder"
            )
    return write_script(
        array.stages,
        paths.prefix + array.name,
        wishes.of(array.stages[0]),
        wishes.site,
        where=Path.cwd(),
        log=paths.log(array.name, 0),
        results=paths.results,
        usage=paths.usage,
        stage_dir=wishes.stage_dir,
    )


def cancel(out: Path) -> list[str]:
    """Takes back the jobs of this folder that wait or run, and no others; gives their ids."""
    jobs = [job.id for job in engine.queue(SlurmPaths(out).prefix)]
    if jobs:
        engine.call("scancel", *jobs)
    return jobs


def _todo(array: Array, done: set[str], ids: Mapping[str, str], submitted: bool) -> list[int]:
    """Which elements are to be submitted; a report is made again behind whatever is."""
    if array.stages[0].always and submitted:
        return [0]
    return [i for i, stage in enumerate(array.stages) if stage.name not in done and stage.name not in ids]


def dependency(stage: Stage, ids: Mapping[str, str], jobs: Mapping[str, Sequence[str]]) -> str:
    """Of sbatch's --dependency: elements that must succeed, or for a report only end; whole arrays where all are meant.

    Args:
        ids: of stages that wait or run.
        jobs: arrays that were submitted just now, and all stages of each.
    """
    needed = {name: ids[name] for name in stage.needs if name in ids}
    terms = []
    for job, members in jobs.items():
        if all(name in needed for name in members):
            terms.append(job)
            for name in members:
                del needed[name]
    terms += needed.values()
    return ":".join(["afterany" if stage.always else "afterok", *terms]) if terms else ""


def _names(array: Array, todo: Sequence[int]) -> str:
    first = array.stages[todo[0]]
    if first.part is not None:
        return f"{first.whole}, {len(todo)} of {first.part[1]} parts"
    return first.name + (f" and {len(todo) - 1} more" if len(todo) > 1 else "")

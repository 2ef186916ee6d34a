"""Runs a pipeline over one image set or many: caches, heads, a report for each set, one summary of all.

    python -m loffta_pipelines.run vtab1k/single.yaml --data VTAB --out OUT [--tasks cifar,dtd] [--runs combo]
        [--only extract|train] [--test cached|online] [--dry-run] [--small]

FILE is a path, or the name of a file that comes with loffta. What failed is named at the end, with the exit code of the
first failure; a second call continues. --small proves that everything runs: see standin.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from loffta.errors import LofftaError
from loffta.files.durable import replace_file
from loffta.files.os_words import explain
from loffta.machine.streams import secure_streams
from loffta.pipeline.file import Pipeline, choose, make_pipeline, read_pipeline
from loffta.pipeline.stages import Outcome, run_local
from loffta.reporting import StageCost, read_good_runs, write_report
from loffta.words import printable

from .standin import shrink
from .summary import format_summary, summarise

HERE = Path(__file__).parent
TRAINING = ("scan", "train", "evaluate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, runs, and turns errors into messages and exit codes."""
    secure_streams()
    parser = argparse.ArgumentParser(prog="run", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the image sets, as the file's head describes it")
    parser.add_argument("--out", type=Path, required=True, help="folder of caches, runs, reports and the summary")
    parser.add_argument("--tasks", type=_names, default=[], help="only these, with commas")
    parser.add_argument("--runs", type=_names, default=[], help="only these, with commas")
    parser.add_argument("--only", choices=["extract", "train"], help="half of the stages")
    parser.add_argument("--test", choices=["cached", "online"], help="in place of what the file says")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--small", action="store_true", help="tiny random networks, small images, two epochs")
    try:
        run(parser.parse_args(arguments))
    except LofftaError as error:
        _say(f"error: {error}", error=True)
        return error.exit_code
    except OSError as error:
        _say(f"error: {explain(error)}", error=True)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Runs what the options ask for.

    Raises:
        LofftaError: stages failed; reports and summary show what there is.
    """
    path = options.file if options.file.exists() else HERE / options.file
    config = choose(read_pipeline(path), tasks=options.tasks, runs=options.runs)
    if options.test:
        config = config.model_copy(update={"test": options.test})
    if options.small:
        config = shrink(config)
    pipeline = make_pipeline(config, options.out, where=path, data=options.data)
    stages = pipeline.stages
    if options.only:
        stages = [stage for stage in stages if (stage.arguments[0] in TRAINING) == (options.only == "train")]
    if options.dry_run:
        _say("\n".join(stage.command for stage in stages))
        return
    outcome = run_local(stages, options.out, _say)
    if options.only != "extract":
        _write_results(pipeline, outcome, options.out)
    outcome.check(options.out)


def _write_results(pipeline: Pipeline, outcome: Outcome, out: Path) -> None:
    """A report for each task that has results, and the summary of all; without tasks the report alone."""
    for report, runs in pipeline.reports.items():
        done = [run for run in pipeline.runs if run.path in runs and run.results.exists()]
        if done:
            of_task = f"{done[0].task.name}/" if done[0].task else ""
            costs = [
                StageCost(s.name, s.command, s.seconds, s.bytes) for s in outcome.results if s.name.startswith(of_task)
            ]
            (split, *others) = {run.split for run in done}
            found, left_out = read_good_runs([run.path for run in done], None if others else split)
            for bad in left_out:
                _say(f"left out: {bad.why}", error=True)
            write_report(found, report, stages=costs)
            _say(f"report: {report}")
    if any(run.task is None for run in pipeline.runs):
        return
    summary = summarise(pipeline.runs)
    text = format_summary(summary)
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "summary.json", json.dumps(summary, indent=2).encode())
    replace_file(out / "summary.txt", f"{text}\n".encode())
    _say(f"\n{text}\n\nsummary: {out / 'summary.json'}")


def _say(text: str, *, error: bool = False) -> None:
    """Lines for a person, harmless to a terminal whatever names of a file are in them."""
    print(printable(text, keep="\n"), file=sys.stderr if error else sys.stdout, flush=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())

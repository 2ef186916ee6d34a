"""Batch scripts for SLURM, readable and each complete in itself: one can be edited and submitted by hand.

In: the stages of one array and what they ask for.   Out: the text of a script. Called by `slurm`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from loffta.pipeline.resources import Asked, Site
from loffta.pipeline.stages import Stage
from loffta.words import printable

_READERS = ("scan", "train", "evaluate")  # of caches, in bulk
GRACE_S = 120  # ahead of the time limit comes a signal; of a short one, a quarter of it ahead
_BASH = """
trap : INT TERM USR1 USR2 HUP XCPU  # for the step, which keeps what it has; this shell stays and requeues
# when to have ended: no unit is begun that would take longer; newer SLURMs set the variable, others tell by squeue
end=${{SLURM_JOB_END_TIME:-}}
[ -n "$end" ] || {{ at=$(squeue -h -j "$SLURM_JOB_ID" -o %e) && [ -n "$at" ] && end=$(date -d "$at" +%s); }} 2>/dev/null
[ -z "$end" ] || export LOFFTA_END_TIME=$((end - {grace}))
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

{choice}
result={results}/$mark
export LOFFTA_USAGE={usage}/$mark.$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}.json  # what this start costs, for --status
printf '\\n[%s] job %s on %s, restart %s: %s\\n' "$(date '+%F %T')" "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" \\
    "$(hostname)" "${{SLURM_RESTART_COUNT:-0}}" "${{command[*]}}" >&2
part=$result.${{SLURM_RESTART_COUNT:-0}}.part
SECONDS=0
srun --ntasks=1 --kill-on-bad-exit=1 "${{command[@]}}" --json >"$part"
code=$?
if [[ $code = 0 && $(tail -n 1 "$part") = "{{"* ]]; then  # srun says 0 of a step that SLURM took away, too
    sed '$d' "$part"
    echo "$SECONDS" >>"$part" && mv "$part" "$result"
    exit 0
fi
cat "$part" && rm -f "$part"
if [ $code = 0 ]; then
    echo "the step ended without its answer: SLURM took it away" >&2
    code=1
elif [ $code = 75 ]; then  # stopped by a signal, with all that is finished kept: the same task goes on later
    again="scontrol requeue ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"  # the task's own id: not all of the array
    if [ "${{SLURM_RESTART_COUNT:-0}}" -ge 200 ]; then
        echo "stopped 200 times: not requeued. Is the time limit shorter than one unit takes?" >&2
    elif command -v scontrol >/dev/null; then
        echo "$again" >&2
        $again || echo "this script could not requeue it; a task that SLURM preempts SLURM requeues itself;" \\
            "else, where scontrol works, type: $again" >&2
    else
        echo "scontrol is not on this node; where it is, type: $again" >&2
    fi
elif [ $code = 137 ]; then
    echo "killed (SIGKILL), as SLURM and the kernel do where the job's memory is not enough: ask for more (mem);" \
        "a training takes less with --feed stream" >&2
fi
exit $code
"""


def write_script(
    stages: Sequence[Stage],
    name: str,
    asked: Asked,
    site: Site,
    *,
    where: Path,
    log: Path,
    results: Path,
    usage: Path,
    stage_dir: str | None = None,
) -> str:
    """The text of a script whose array has one element for each stage.

    Args:
        where: the folder that the command lines are typed in.
        log: absolute; of the first element, the others' have their number in place of its 0.
        results: absolute folder for the answers of elements that have succeeded.
        usage: absolute folder for what each start says of its cost.
        stage_dir: of stages that read a cache.
    """
    names = ", ".join(printable(stage.name) for stage in (stages if len(stages) < 4 else [stages[0], stages[-1]]))
    lines = [
        "#!/bin/bash",
        f"# {names}" if len(stages) < 4 else f"# {len(stages)} stages, {names.replace(', ', ' to ')}",
        "# Written by `loffta run`. Complete in itself: it can be edited, and submitted by hand with sbatch.",
        *(["# Behind (by hand: sbatch --dependency=afterok:JOB): " + _needs(stages[0])] if stages[0].needs else []),
        *(f"#SBATCH {option}" for option in _options(name, len(stages), asked, site, where, log)),
        "",
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        *site.setup.rstrip().splitlines(),
    ]
    return "\n".join(lines) + _BASH.format(
        choice=_choice(stages, stage_dir),
        results=shlex.quote(str(results)),
        usage=shlex.quote(str(usage)),
        grace=_grace(asked),
    )


def _grace(asked: Asked) -> int:
    """Seconds between the signal and the time limit."""
    limit = seconds_of(asked.time) if asked.time else 0  # 0: none
    return min(GRACE_S, limit // 4) if limit else GRACE_S


def seconds_of(limit: str) -> int:
    """A time limit as sbatch(1) has it: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s."""
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours = parts if dash or len(parts) == 3 else [0, *parts]
    h, m, s = [*hours, 0, 0][:3]
    return int(days or 0) * 86_400 + h * 3600 + m * 60 + s


def _needs(stage: Stage) -> str:
    shown = [printable(name) for name in stage.needs[:3]]
    return ", ".join(shown) + (f" and {len(stage.needs) - 3} more" if len(stage.needs) > 3 else "")


def _options(name: str, n: int, asked: Asked, site: Site, where: Path, log: Path) -> list[str]:
    given: dict[str, str | int | None] = {
        "partition": asked.partition,
        "account": asked.account,
        "gres": asked.gres,
        "time": asked.time,
        "cpus-per-task": asked.cpus,
        "mem": asked.mem,
        "constraint": asked.constraint,
    }
    return [
        f"--job-name={name}",
        f"--array=0-{n - 1}",
        "--ntasks=1",
        *(f"--{key}={value}" for key, value in given.items() if value is not None),
        f"--signal=USR1@{_grace(asked)}",
        "--requeue",
        "--open-mode=append",
        f"--chdir={_quoted(where)}",
        f"--output={_quoted(log, of_element=True)}",
        *site.options,
    ]


def _quoted(path: Path, *, of_element: bool = False) -> str:
    """In the double quotes that sbatch takes off; in the name of a log %% is a %, and %a the element's number."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    if of_element:
        text = text.replace("%", "%%").removesuffix("0.log") + "%a.log"
    return f'"{text}"'


def _choice(stages: Sequence[Stage], stage_dir: str | None) -> str:
    """Lines of bash that set `mark` and `command` by the element's index."""
    first = stages[0]
    if first.part is not None:
        start, count = first.part
        index = "$SLURM_ARRAY_TASK_ID" if start == 0 else f"$((SLURM_ARRAY_TASK_ID + {start}))"
        command = shlex.join(["loffta", *first.arguments])
        mark = f"{first.stem}.$shard-of-{count}"
        return f'shard={index}\nmark={mark}\ncommand=({command} --shard "$shard/{count}")'
    lines = ["case $SLURM_ARRAY_TASK_ID in"]
    for number, stage in enumerate(stages):
        lines.append(
            f"{number}) mark={shlex.quote(stage.mark)}\n   command=({stage.command}{_staged(stage, stage_dir)}) ;;"
        )
    return "\n".join([*lines, '*) echo "there is no such task in this script" >&2; exit 2 ;;', "esac"])


def _staged(stage: Stage, stage_dir: str | None) -> str:
    """Of a stage that reads a cache and does not say itself where to stage it; no part of the stage, which may move."""
    reads_cache = stage.kind in _READERS and not {"--online", "--stage-dir"}.intersection(stage.arguments)
    return f" --stage-dir {shlex.quote(stage_dir)}" if stage_dir and reads_cache else ""

"""Batch scripts, run by bash itself with stand-ins of srun and scontrol; and words of SLURM's that are parsed."""

import subprocess
from pathlib import Path

import pytest

from loffta.machine.usage import Cost
from loffta.pipeline import engine, jobs
from loffta.pipeline.engine import Ended, in_bytes, spans
from loffta.pipeline.jobs import Array, SlurmPaths, arrays_of, find_done
from loffta.pipeline.resources import Asked, Resources, Site
from loffta.pipeline.script import seconds_of
from loffta.pipeline.slurm import Wishes, dependency, script_of, show_all
from loffta.pipeline.stages import Stage
from loffta.pipeline.status import why

WISHES = Wishes(Asked(), Resources(mem="1G", time="1:00:00"), Site(options=("--qos=long",), setup="export SITE=yes"))


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("30", 1800), ("30:15", 1815), ("4:00:00", 14400), ("1-0", 86400), ("1-2:30", 95400), ("2-00:00:05", 172805)],
)
def test_time_limits_are_sbatchs(limit, seconds):
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize(("time", "signal"), [("1:00:00", 120), ("4", 60), (None, 120), ("0", 120)])
def test_the_head_of_a_script(tmp_path, monkeypatch, time, signal):
    folder = tmp_path / 'a "b" 100% c'
    folder.mkdir()
    monkeypatch.chdir(folder)
    wishes = Wishes(Asked(time=time), Resources(mem="1G"), WISHES.site)
    array = Array([Stage("x", ["train", "a b"], needs=("before",)), Stage("y", ["train", "$(id)"])])
    paths = SlurmPaths(Path("out"))
    lines = script_of(array, paths, wishes).splitlines()
    head = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    quoted = str(folder).replace('"', '\\"')
    log = f"{quoted}/out/slurm/logs/{paths.prefix}{array.name}".replace("%", "%%")
    assert head == [
        f"--job-name={paths.prefix}{array.name}",
        "--array=0-1",
        "--ntasks=1",
        *([f"--time={time}"] if time else []),
        "--mem=1G",
        f"--signal=USR1@{signal}",
        "--requeue",
        "--open-mode=append",
        f'--chdir="{quoted}"',
        f'--output="{log}.%a.log"',
        "--qos=long",
    ]
    assert "   command=(loffta train 'a b') ;;" in lines
    assert "   command=(loffta train '$(id)') ;;" in lines
    assert "export SITE=yes" in lines


SRUN = """#!/bin/bash
shift 2
printf '%s\\n' "$@" >>"$SAW"
echo "cpus $SRUN_CPUS_PER_TASK end $LOFFTA_END_TIME" >>"$SAW"
echo "usage $LOFFTA_USAGE" >>"$SAW"
printf "$PRINTS"
exit $CODE
"""


def run_script(
    tmp_path, monkeypatch, array, *, code=0, prints='words\\n{"a": 1}\\n', scontrol=True, index=1, wishes=WISHES, **more
):
    """As SLURM would run it; gives exit code, stderr, and what srun saw."""
    monkeypatch.chdir(tmp_path)
    paths = SlurmPaths(Path("out"))
    paths.results.mkdir(parents=True, exist_ok=True)
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    programs = {"srun": SRUN, "squeue": "#!/bin/bash\necho 2030-01-01T00:00:00\n"}
    programs |= {"scontrol": '#!/bin/bash\necho "$@" >>"$SAW"\n'} if scontrol else {}
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name in ("bash", "date", "hostname", "cat", "mv", "rm", "sed", "tail"):
        if not (tools / name).exists():
            (tools / name).symlink_to(f"/bin/{name}")
    script = tmp_path / "s.sbatch"
    lines = script_of(array, paths, wishes).splitlines()
    script.write_text("\n".join(line for line in lines if not line.startswith("export PATH")))
    ids = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index), "TZ": "UTC"}
    told = {"SAW": str(tmp_path / "saw"), "PRINTS": prints, "CODE": str(code), "PATH": str(tools)}
    done = subprocess.run(["bash", script], env={**ids, **told, **more}, capture_output=True, text=True, check=False)
    return done, (tmp_path / "saw").read_text().splitlines(), paths


PARTS = Array([Stage(f"extract {i}/9", ["extract", "a b"], part=(i, 9)) for i in (4, 5, 6)])


def test_a_task_that_succeeds_leaves_its_answer(tmp_path, monkeypatch):
    done, saw, paths = run_script(tmp_path, monkeypatch, PARTS, SLURM_CPUS_PER_TASK="3")
    assert done.returncode == 0, done.stderr
    end = 1893456000 - 120  # the first second of 2030, and when the signal comes
    assert saw[:-1] == ["loffta", "extract", "a b", "--shard", "5/9", "--json", f"cpus 3 end {end}"]
    assert saw[-1] == f"usage {paths.usage}/{PARTS.stages[1].mark}.9-0.json"
    assert done.stdout == "words\n"
    assert paths.result(PARTS.stages[1]).read_text().splitlines()[:2] == ["words", '{"a": 1}']
    assert [path.name for path in paths.results.iterdir()] == [PARTS.stages[1].mark]
    costs = jobs.collect([PARTS.stages[1]], Path("out"))
    assert [(cost["name"], cost["result"]) for cost in costs] == [("extract", {"a": 1})]


@pytest.mark.parametrize(
    ("pipeline", "site", "passed"),
    [({"stage_dir": "$NODE/x"}, {"stage_dir": "/far"}, "$NODE/x"), ({}, {"stage_dir": "${NODE}"}, "${NODE}")],
)
def test_a_folder_of_the_node_is_passed_on_as_it_is_written(tmp_path, monkeypatch, pipeline, site, passed):
    """The shell does not expand it: what it holds may hold anything. And it changes no stage."""
    array = Array(
        [Stage("y", ["train", "c", "--online", "x"]), Stage("x", ["train", "a b"]), Stage("z", ["scan", "c"])]
    )
    wishes = Wishes(Asked(), Resources(**pipeline), Site(**site))
    for index, typed in enumerate(
        (["c", "--online", "x"], ["a b", "--stage-dir", passed], ["c", "--stage-dir", passed])
    ):
        done, saw, paths = run_script(tmp_path, monkeypatch, array, index=index, wishes=wishes, NODE="$(touch y) *")
        assert done.returncode == 0
        assert saw[-len(typed) - 3 : -3] == typed  # then --json, and what the start sees and costs
    assert paths.result(array.stages[1]).exists()
    own = Array([Stage("x", ["train", "c", "--stage-dir", "/mine"]), Stage("y", ["extract", "c"])])
    assert "/far" not in script_of(own, paths, Wishes(Asked(), Resources(), Site(stage_dir="/far")))


def test_a_stopped_task_requeues_itself_and_no_other(tmp_path, monkeypatch):
    done, saw, paths = run_script(tmp_path, monkeypatch, PARTS, code=75, prints="half")
    assert done.returncode == 75
    assert saw[-1] == "requeue 7_1"
    assert list(paths.results.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"code": 75, "scontrol": False}, 75, "scontrol is not on this node; where it is, type: scontrol requeue 7_1"),
        ({"code": 75, "SLURM_RESTART_COUNT": "200"}, 75, "stopped 200 times: not requeued"),
        ({"code": 137}, 137, "killed (SIGKILL)"),
        ({"code": 0, "prints": ""}, 1, "the step ended without its answer"),  # what srun says of a step taken away
        ({"code": 3}, 3, "restart 0: loffta extract"),
    ],
)
def test_a_task_that_does_not_succeed(tmp_path, monkeypatch, options, code, said):
    done, saw, paths = run_script(tmp_path, monkeypatch, PARTS, **options)
    assert done.returncode == code
    assert said in done.stderr
    assert "requeue" not in saw[-1]
    assert list(paths.results.iterdir()) == []


def test_stages_become_arrays():
    """Of one kind, and behind the same; an array has its own parts alone, and no more than the site allows."""
    parts = [Stage(f"extract {i}/5", ["extract"], part=(i, 5)) for i in range(5)]
    one, two = (Stage(name, ["train", name], ("extract 0/5",)) for name in ("one", "two"))
    three = Stage("three", ["train", "three"])
    found = [[stage.name for stage in array.stages] for array in arrays_of([*parts, one, three, two], 2)]
    assert found == [
        ["extract 0/5", "extract 1/5"],
        ["extract 2/5", "extract 3/5"],
        ["extract 4/5"],
        ["one", "two"],
        ["three"],
    ]


def test_dependencies():
    stage = Stage("x", ["train"], ("a", "b", "c", "d"))
    ids = {"a": "1_0", "b": "1_1", "c": "2_5", "other": "9_0"}  # d is done
    assert dependency(stage, ids, {"1": ["a", "b"]}) == "afterok:1:2_5"
    assert dependency(stage, ids, {"1": ["a", "b", "other"]}) == "afterok:1_0:1_1:2_5"
    assert dependency(stage, {}, {}) == ""
    assert dependency(Stage("r", ["run"], ("a",), always=True), ids, {}) == "afterany:1_0"


def test_a_cache_that_nobody_needs_any_more_is_not_made_again(tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    extract = Stage("extract", ["extract"], writes=(cache,))
    train = Stage("train", ["train"], ("extract",), writes=(run,))
    report = Stage("report", ["run"], ("extract", "train"), always=True)
    stages, paths = [extract, train, report], SlurmPaths(tmp_path)
    assert find_done(stages, tmp_path) == set()
    paths.results.mkdir(parents=True)
    paths.result(extract).touch()
    assert find_done(stages, tmp_path) == set()  # its cache is gone
    cache.mkdir()
    assert find_done(stages, tmp_path) == {"extract"}
    paths.result(train).touch()
    run.mkdir()
    cache.rmdir()
    assert find_done(stages, tmp_path) == {"extract", "train"}


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    stages = [Stage("a", ["extract"]), Stage("b", ["train"], ("a",)), Stage("r", ["run"], ("a", "b"), always=True)]
    show_all(stages, Path("out"), WISHES, said.append)
    assert list(tmp_path.iterdir()) == []
    assert sum(line == "#!/bin/bash" for line in said) == 3
    typed = [line for line in said if line.startswith("$ sbatch")]
    names = [array.name for array in arrays_of(stages, 500)]
    assert f"--dependency=afterok:{names[0]} " in typed[1]
    assert f"--dependency=afterany:{names[0]}:{names[1]} " in typed[2]


@pytest.mark.parametrize(("indices", "text"), [([0], "0"), ([0, 1, 2], "0-2"), ([5, 0, 1, 7], "0-1,5,7"), ([], "")])
def test_spans(indices, text):
    assert spans(indices) == text


def test_what_sacct_says(monkeypatch):
    """A requeued element has a record for each start: times add up, and the highest peak of any step holds.

    Elements that never began come as a range.
    """
    text = """7_0|REQUEUED|0:0||4G|60|00:30.500|cpu=2,gres/gpu=2,mem=4G,node=1|n1
7_0.batch|CANCELLED|0:15|1536K||60|00:01.000|cpu=2,gres/gpu=2,mem=4G,node=1|n1
7_0.0|CANCELLED|0:15|3.5G||60|00:29.500|cpu=2,gres/gpu=2,mem=4G,node=1|n1
7_0|FAILED|9:0||4G|3600|1-01:00:02|billing=2,cpu=2,gres/gpu=2,mem=4G,node=1|n2
7_0.0|FAILED|9:0|1G||3600|1-01:00:02|cpu=2,gres/gpu=2,mem=4G,node=1|n2
7_[1-2,5%3]|CANCELLED by 0|0:0||4G|0|00:00:00||None assigned
"""
    monkeypatch.setattr(engine, "_run", lambda words: (0, text, ""))
    found = engine.ended(["7"])
    assert sorted(found) == ["7_0", "7_1", "7_2", "7_5"]
    cost = Cost(30.5 + 25 * 3600 + 2, 2.0 * (60 + 3600), 3.5 * 1024)
    assert found["7_0"] == Ended("FAILED", 9, 0, "4G", "n2", starts=2, cost=cost)
    assert found["7_5"] == Ended("CANCELLED", 0, 0, "4G", "None assigned", starts=0)
    assert why(found["7_0"]).startswith("killed (SIGKILL), most likely for memory: its memory peaked at 3.8 GB of 4.3")
    assert why(found["7_5"]).startswith("cancelled")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Ended("OUT_OF_MEMORY", 0, 125), r"most likely for memory; ask for more: --mem .*--feed stream"),
        (Ended("TIMEOUT", 0, 15), "ask for more: --time"),
        (Ended("NODE_FAIL", 0, 0, node="n3"), r"its node failed \(n3\)"),
        (Ended("COMPLETED", 0, 0), "its answer or what it made is gone"),
        (Ended("FAILED", 75, 0), "stopped, and not requeued"),
        (Ended("FAILED", 2, 0), "^exit code 2$"),
        (Ended("BOOT_FAIL", 1, 0), r"exit code 1 \(BOOT_FAIL\)"),
    ],
)
def test_why(how, words):
    with pytest.raises(ValueError, match=words):
        raise ValueError(why(how))


def test_sizes():
    assert [in_bytes(text) for text in ("", "12", "1.5K", "2Gn", "x")] == [0, 12, 1536, 2 << 30, 0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"marks": ["a"], "jobs": []}', '{"marks": ["a"], "jobs": ["x;y"]}'])
def test_records_that_cannot_be_read(tmp_path, text):
    paths = SlurmPaths(tmp_path)
    paths.root.mkdir(parents=True)
    paths.record("a").write_text(text)
    with pytest.raises(jobs.LofftaError, match=r"cannot read what was submitted(.|\n)*delete the file"):
        jobs.read_records(paths)


def test_without_slurm_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        jobs.LofftaError, match=r"squeue is not on this machine(.|\n)*login node(.|\n)*--launcher local"
    ):
        engine.queue("loffta-")

"""Pipelines on a real SLURM: order, what a second call submits, signals, preemption, and what it says of failures."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loffta_cli.main import main

from loffta.errors import LofftaError
from loffta.pipeline import engine
from loffta.pipeline.jobs import SlurmPaths
from loffta.pipeline.resources import Asked, Resources, Site
from loffta.pipeline.slurm import Wishes, cancel, submit_missing
from loffta.pipeline.stages import Stage
from loffta.pipeline.status import MORE_MEMORY, look
from loffta.words import human_size
from tests.fakes import cache_files

OUT = Path("out")
SMALL = Asked(cpus=1, mem="50M", time="5")


def wishes(**asked):
    return Wishes(Asked(**asked), Resources(**SMALL.model_dump(exclude_none=True)), Site())


def submit(stages, **asked):
    said = []
    return submit_missing(stages, OUT, wishes(**asked), said.append), said


def wait(stages, condition, seconds=60):
    """Until the states of the stages, by name, are as `condition` wants them."""
    end = time.monotonic() + seconds
    while not condition(states := {state.stage: state for state in look(stages, OUT)}):
        assert time.monotonic() < end, states
        time.sleep(0.3)
    return states


def are(*words):
    return lambda states: [state.state for state in states.values()] == list(words)


def test_a_second_call_submits_what_is_missing(fake):
    """One stage fails: what needs it is not begun, the rest is done, and its words can be read."""
    parts = [Stage(f"extract {i}/2", ["extract", "ok"], part=(i, 2)) for i in range(2)]
    needs = tuple(stage.name for stage in parts)
    good = Stage("good", ["train", "ok", "0"], needs)
    bad = Stage("bad", ["train", "fails"], needs)
    behind = Stage("behind", ["evaluate", "ok"], ("bad",))
    big = Stage("big", ["train", "killed"], needs)
    report = Stage("report", ["run", "ok"], ("good", "bad", "behind", "big"), always=True)
    stages = [*parts, good, bad, big, behind, report]
    result, said = submit(stages)
    assert len(result["jobs"]) == 4  # the parts together, the trainings together
    assert said[0] == f"submitted job {result['jobs'][0]}: extract, 2 of 2 parts"
    assert submit(stages)[0]["jobs"] == []  # all of them wait or run
    states = wait(stages, are("done", "done", "done", "failed", "failed", "failed", "done"))
    assert states["bad"].why == "exit code 2"
    assert states["bad"].last_lines[-1] == "error: no such head"
    assert states["behind"].why == "cancelled, by somebody or because a stage before it failed"
    assert states["big"].why.startswith("killed (SIGKILL), most likely for memory")
    assert "ask for more" in states["big"].last_lines[-1]
    assert json.loads(SlurmPaths(OUT).result(good).read_text().splitlines()[-2]) == {"answer": 3}
    Path("bin/loffta").write_text(
        Path("bin/loffta").read_text().replace("exit 2", "echo '{}'").replace("kill -9 $$", "echo '{}'")
    )
    again, said = submit(stages)
    assert [line.split(": ")[1].split(",")[0] for line in said[:-1]] == ["bad and 1 more", "behind", "report"]
    assert (again["done"], again["active"]) == (4, 0)
    wait(stages, are(*["done"] * 7))
    (script,) = OUT.glob("slurm/extract-*.sbatch")  # an image set has grown: its extraction once more, by hand
    answers = [SlurmPaths(OUT).result(part) for part in parts]
    before = [path.stat().st_mtime_ns for path in answers]
    subprocess.run(["sbatch", "--wait", script], check=True, capture_output=True, timeout=60)
    assert all(path.stat().st_mtime_ns > then for path, then in zip(answers, before, strict=True))
    assert submit(stages)[0]["jobs"] == []


def test_a_stopped_task_requeues_itself_alone(fake):
    stages = [Stage(name, ["train", "waits", name]) for name in ("one", "two")]
    submit(stages)
    states = wait(stages, lambda _: all(Path(stage.name).exists() for stage in stages))
    subprocess.run(["scancel", "--signal=USR1", states["one"].job], check=True)
    states = wait(stages, are("done", "running"))
    assert Path("one").read_text() == "started 0\nstarted 1\n"
    assert Path("two").read_text() == "started 0\n"  # the array's other task was let be
    log = Path(states["one"].log).read_text()
    assert f"scontrol requeue {states['one'].job}\n" in log
    assert log.count("restart") == 2  # appended, not written anew
    assert (states["one"].starts, states["two"].starts) == (2, 1)  # by sacct
    assert cancel(OUT) == [states["two"].job]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"partition": "nowhere"}, "[Ii]nvalid partition"),
        ({"account": "nobody"}, "Invalid account"),
        ({"gres": "fpga:1"}, "[Ii]nvalid"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_words(fake, asked, words):
    with pytest.raises(LofftaError, match=rf"sbatch refused: (.|\n)*{words}(.|\n)*nothing is submitted twice"):
        submit([Stage("one", ["train", "ok"])], **asked)
    assert engine.queue(SlurmPaths(OUT).prefix) == []


def test_an_answer_that_is_lost_submits_nothing_twice(fake, tmp_path, monkeypatch):
    """sbatch submits, and says that the controller did not answer."""
    real = shutil.which("sbatch")
    shim = tmp_path / "shim" / "sbatch"
    shim.parent.mkdir()
    lost = 'echo "error: Socket timed out on send/recv operation" >&2; exit 1'
    shim.write_text(f'#!/bin/bash\n{real} "$@" >&2\n{lost}\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(engine, "_PAUSE_S", 0.2)
    stages = [Stage("one", ["train", "ok", "1"])]
    result, _ = submit(stages)
    assert len({job.job for job in engine.queue(SlurmPaths(OUT).prefix)}) == len(result["jobs"]) == 1
    wait(stages, are("done"))


def test_cancel_takes_back_its_own_jobs_alone(fake):
    other = subprocess.run(
        ["sbatch", "--parsable", "--mem=50M", "--job-name=loffta-other", "--wrap=sleep 60", "-o/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    stages = [Stage("one", ["train", "waits", "one"]), Stage("two", ["evaluate", "ok"], ("one",))]
    submit(stages)
    assert len(cancel(OUT)) == 2
    left = subprocess.run(["squeue", "-h", "-t", "PD,R", "-o", "%A"], check=True, capture_output=True, text=True).stdout
    assert left.split() == [other]


EATS = """#!/bin/bash
exec %s -c 'import time; x = bytearray(300 << 20); time.sleep(60)'
"""


@pytest.mark.long
def test_a_job_killed_for_memory_says_so_and_what_it_had(fake):
    """By the step's own daemon, which takes what is over the job's `mem`; a site with cgroups has the kernel do it."""
    conf = fake / "slurm.conf"
    before = conf.read_text()
    often = before.replace("JobAcctGatherFrequency=task=5", "JobAcctGatherFrequency=task=1")
    Path("bin/loffta").write_text(EATS % shutil.which("python3"))
    try:
        conf.write_text(often + "JobAcctGatherParams=OverMemoryKill\n")
        subprocess.run(["scontrol", "reconfigure"], check=True)
        stages = [Stage("big", ["train", "eats"])]
        submit(stages, mem="60M")
        state = wait(stages, are("failed"))["big"]
    finally:
        conf.write_text(before)
        subprocess.run(["scontrol", "reconfigure"], check=True)
    assert 60 < state.cost.peak_rss_mib < 330  # it was met while it grew
    peaked = f"its memory peaked at {human_size(state.cost.peak_rss_mib * 2**20)} of 62.9 MB"
    assert state.why == f"killed (SIGKILL), most likely for memory: {peaked}; {MORE_MEMORY}"


@pytest.mark.long
@pytest.mark.parametrize(("partition", "how"), [("low", "waits"), ("lowgrace", "waits"), ("low", "deaf")])
def test_preempted_by_a_higher_partition(fake, partition, how):
    """With and without grace; and one that hears nothing and is killed."""
    stages = [Stage("one", ["train", how, "one"])]
    submit(stages, partition=partition, cpus=4, constraint=None)
    wait(stages, lambda _: Path("one").exists())
    fill = ["sbatch", "--parsable", "-phigh", "--mem=50M", "-c4", "-N3", "-n3", "--wrap=sleep 4", "-o/dev/null"]
    subprocess.run(fill, check=True, capture_output=True)
    wait(stages, are("done"), 90)
    assert Path("one").read_text() == "started 0\nstarted 1\n"


@pytest.mark.long
def test_a_node_that_dies(fake):
    stages = [Stage("one", ["train", "deaf", "one"])]
    submit(stages)
    (state,) = wait(stages, lambda _: Path("one").exists()).values()
    state = wait(stages, are("running"))["one"]
    node = state.why.rpartition(" ")[2]
    pid = int((fake / "run" / f"slurmd-{node}.pid").read_text())
    steps = subprocess.run(["pgrep", "-x", "slurmstepd"], capture_output=True, text=True, check=False).stdout.split()
    mine = [int(p) for p in steps if str(fake) in os.path.realpath(f"/proc/{p}/cwd")]
    try:
        for process in (pid, *mine):
            os.kill(process, 9)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=crash"], check=True)
        wait(stages, are("done"), 90)
    finally:
        subprocess.run([Path(__file__).parent / "slurm-up", fake], check=False, capture_output=False, timeout=60)
    assert Path("one").read_text() == "started 0\nstarted 1\n"


@pytest.mark.long
def test_a_time_limit_comes_with_a_signal_and_the_task_goes_on(fake):
    stages = [Stage("one", ["train", "waits", "one"])]
    submit(stages, time="1")
    wait(stages, are("done"), 120)
    assert Path("one").read_text() == "started 0\nstarted 1\n"


PIPELINE = """
tasks: [{name: digits, source: "demo:digits"}]
extract:
  cache:
    backbones: [{name: test_vit, weights: "random:0", image_px: 32}]
    kinds: [mean]
    splits: train+test
    unit_images: 256
    device: cpu
train:
  probe: {head: linear, recipe: {epochs: 2}, device: cpu}
slurm: {cpus: 1, mem: 1500M, time: "5", shards: 2}
"""


def run(*words):
    return main(["run", "p.yaml", *words])


def of_cache(out):
    return cache_files(out / "digits/cache", "stores/**/*", "done/**/*.parquet")


def same_results(one, other):
    for name in ("results.json", "seed0/head.safetensors"):
        a, b = (next((out / "digits/runs/probe").rglob(Path(name).name)) for out in (one, other))
        if name.endswith(".json"):
            assert json.loads(a.read_text())["metrics"] == json.loads(b.read_text())["metrics"]
        else:
            assert a.read_bytes() == b.read_bytes()


def wait_for(path, seconds):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.3)


def wait_for_jobs(out, seconds):
    """Until none waits or runs: the report's answer comes behind its files."""
    end = time.monotonic() + seconds
    while left := engine.queue(SlurmPaths(out).prefix):
        assert time.monotonic() < end, left
        time.sleep(0.3)


def test_a_pipeline_equals_its_local_run(cluster, monkeypatch, capfd):
    Path("p.yaml").write_text(PIPELINE)
    assert run("--out", "there", "--launcher", "slurm") == 0
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert run("--out", "here") == 0
    wait_for_jobs(Path("there"), 240)
    assert of_cache(Path("there")) == of_cache(Path("here"))
    same_results(Path("there"), Path("here"))
    assert json.loads(Path("there/summary.json").read_text()) == json.loads(Path("here/summary.json").read_text())
    assert "digits/extract" in Path("there/stages.json").read_text()
    capfd.readouterr()
    assert main(["run", "--out", "there", "--status", "--json"]) == 0
    *text, told = capfd.readouterr().out.splitlines()
    assert sum(" done " in line for line in text) == 4
    told = json.loads(told)
    assert text[-1].startswith("all together: CPU time ")
    assert told["cost"]["cpu_hours"] == pytest.approx(sum(stage["cost"]["cpu_hours"] for stage in told["stages"]))
    for stage in told["stages"]:  # the processes' own words: sacct looks every few seconds
        assert stage["cost"]["peak_rss_mib"] > 100
        assert stage["cost"]["cpu_hours"] * 3600 > 1


@pytest.mark.long
def test_interrupted_everywhere_it_equals_its_local_run(cluster, monkeypatch):
    """Requeued by hand in mid-extraction, stopped by a signal in mid-training: no bit is another."""
    text = PIPELINE.replace("unit_images: 256", "unit_images: 16").replace(
        "epochs: 2}", "epochs: 250}, checkpoint_s: 0.2"
    )
    Path("p.yaml").write_text(text)
    assert run("--out", "there", "--launcher", "slurm") == 0
    paths = SlurmPaths(Path("there"))
    end = time.monotonic() + 120
    while len(list(Path("there").glob("digits/cache/done/**/*.parquet"))) < 6:
        assert time.monotonic() < end
        time.sleep(0.1)
    for job in engine.queue(paths.prefix):
        if job.state == "RUNNING":
            subprocess.run(["scontrol", "requeue", job.id], check=True)
    wait_for(Path("there/digits/runs/probe/checkpoint.safetensors"), 240)
    (job,) = (job for job in engine.queue(paths.prefix) if "train" in job.name)
    subprocess.run(["scancel", "--signal=USR1", job.id], check=True)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert run("--out", "here") == 0
    wait_for_jobs(Path("there"), 240)
    assert of_cache(Path("there")) == of_cache(Path("here"))
    same_results(Path("there"), Path("here"))
    logs = "".join(path.read_text() for path in paths.logs.glob("*.log"))
    assert logs.count("restart 1") == 3  # both parts and the training
    assert "stopped by SIGUSR1 while training step" in logs


@pytest.mark.long
def test_the_template_of_an_array_runs_as_it_is(fake, tmp_path):
    """But for its site's words: partition, GPUs, memory."""
    template = Path(__file__).parent.parent.parent / "pipelines" / "slurm" / "extract.sbatch"
    small = ["--array=0-1", "--mem=50M", "--cpus-per-task=1", "--time=5", "--gres=gpu:1"]
    program = tmp_path / "bin" / "loffta"
    program.write_text('#!/bin/bash\n[ -n "$SLURM_RESTART_COUNT" ] || exit 75\necho "$@ on $CUDA_VISIBLE_DEVICES"\n')
    words = ["sbatch", "--wait", *small, template]
    more = {"PATH": f"{program.parent}:{os.environ['PATH']}", "SHARDS": "2", "SOURCE": "folder:a b", "CACHE": "c"}
    subprocess.run(words, check=True, env=os.environ | more, timeout=90, capture_output=True)
    for index in range(2):
        log = Path(f"extract-{index}.log").read_text().splitlines()
        words, _, gpu = log[-1].rpartition(" on ")
        assert words == f"extract folder:a b --cache c --backbone dinov2-b --taps all --shard {index}/2"
        assert gpu in ("0", "1")


def srun_template(words, **environment):
    """Submits the template of one process per GPU, on two nodes of two; returns its log."""
    template = Path(__file__).parent.parent.parent / "pipelines" / "slurm" / "extract-srun.sbatch"
    small = ["--ntasks-per-node=2", "--gres=gpu:2", "--cpus-per-task=1", "--mem=3000M", "--time=10"]
    submit = ["sbatch", "--parsable", "--wait", *small, template, *words]
    done = subprocess.run(submit, check=True, env=os.environ | environment, timeout=400, capture_output=True, text=True)
    return Path(f"extract-{done.stdout.split()[0]}.log").read_text()


@pytest.mark.long
def test_the_template_of_srun_requeues_itself(fake, tmp_path):
    """As it is, but for its site's words; the first start of every rank is stopped."""
    program = tmp_path / "bin" / "loffta"
    program.write_text('#!/bin/bash\n[ -n "$SLURM_RESTART_COUNT" ] || exit 75\necho "$@ on $SLURM_PROCID"\n')
    more = {"PATH": f"{program.parent}:{os.environ['PATH']}", "SOURCE": "folder:a b", "CACHE": "c"}
    log = srun_template(["--limit", "9"], **more).splitlines()
    words = "extract folder:a b --cache c --backbone dinov2-b --taps all --shard auto --stagger 20 --limit 9"
    assert sorted(line for line in log if " on " in line) == [f"{rank}: {words} on {rank}" for rank in range(4)]


@pytest.mark.long
def test_four_ranks_of_two_nodes_make_the_cache_of_one_process(cluster, tmp_path, monkeypatch):
    """The template and loffta itself, on real ranks."""
    small = ["--weights", "random:0", "--image-px", "32", "--kinds", "mean", "--unit-images", "64", "--device", "cpu"]
    small += ["--limit", "640", "--batch-size", "32"]
    more = {
        "SOURCE": "demo:digits",
        "BACKBONE": "test_vit",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    log = srun_template([*small, "--stagger", "2"], CACHE="there", **more)
    assert {line.partition(": share ")[2] for line in log.splitlines() if ": share " in line} == {
        f"{rank}/4: rank {rank} of 4" for rank in range(4)
    }
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert main(["extract", "demo:digits", "--cache", "here", "--backbone", "test_vit", "--taps", "all", *small]) == 0
    assert cache_files(Path("there")) == cache_files(Path("here"))
    assert not list(Path("there").rglob("*.part"))

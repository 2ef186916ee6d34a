"""The templates of pipelines/slurm: what their heads say, what sbatch and click make of their lines; long: they run."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loffta_cli.main import COMMANDS

from loffta.pipeline import engine
from loffta.pipeline.jobs import SlurmPaths
from loffta.runs.run import read_results
from tests.fakes import cache_files

TEMPLATES = sorted((Path(__file__).parent.parent.parent / "pipelines/slurm").glob("*.sbatch"))
named = pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
TOO_SMALL = r"node configuration is not available|More processors requested|count per node can not be satisfied"

# Instead of srun and loffta: writes down the words behind `loffta`, however it is launched.
FAKE = """#!/bin/bash
set -- "${0##*/}" "$@"
while [ $# -gt 0 ]; do
    case $1 in -c) exec bash -c "$2" ;; esac
    case $1 in loffta | */loffta | loffta_cli) shift; printf '%s\\0' "$@" >>"$SAID"; echo >>"$SAID"; exit ;; esac
    shift
done
"""


@named
def test_the_head_says_what_one_must_know(template):
    head, *_ = template.read_text().partition("\n#SBATCH")
    first, command, *more = head.splitlines()
    assert first == "#!/bin/bash"
    assert re.match(rf"# sbatch .*pipelines/slurm/{template.name}  ", command)
    assert all(re.search(rf"^# .*\b{word}:", "\n".join(more), re.M) for word in ("Expect", "Needs", "Hours", "Data"))


@named
def test_every_line_of_loffta_is_one_that_click_takes(template, tmp_path):
    """The whole script runs, but for what it launches."""
    for name in ("srun", "python", "loffta", "scontrol"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    results = tmp_path / "runs/sweep/linear-data0/results.json"
    results.parent.mkdir(parents=True)
    results.touch()
    slurm = {"ARRAY_TASK_ID": "0", "ARRAY_JOB_ID": "1", "JOB_ID": "1", "CPUS_PER_TASK": "8", "NNODES": "1"}
    slurm |= {"NTASKS": "1", "GPUS_ON_NODE": "1", "LAUNCH_NODE_IPADDR": "127.0.0.1", "JOB_NODELIST": "n1"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "SAID": str(tmp_path / "said")}
    subprocess.run(["bash", template], env=environment | {"SPLIT": "val"}, cwd=tmp_path, check=True, timeout=20)
    lines = (tmp_path / "said").read_text().split("\0\n")[:-1]
    assert lines
    for name, *words in (line.split("\0") for line in lines):
        module, _, attribute = COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(module, "loffta_cli"), attribute)
        assert command.make_context(name, words, resilient_parsing=False)


@named
def test_sbatch_takes_every_line(template, cluster):
    """This cluster may be too small for one; a line that is wrong is refused for another reason."""
    tried = subprocess.run(["sbatch", "--test-only", template], capture_output=True, text=True, timeout=30, check=False)
    assert tried.returncode == 0 or re.search(TOO_SMALL, tried.stderr), tried.stderr


def submit(template, *options, **variables):
    """The id of a job; `variables` are those at the template's head."""
    path = next(path for path in TEMPLATES if path.stem == template)
    words = ["sbatch", "--parsable", "--cpus-per-task=1", "--mem=2G", "--gres=none", "--time=10", *options, path]
    python = str(Path(sys.executable).parent)
    environment = os.environ | variables | {"PATH": f"{python}:{os.environ['PATH']}"}
    return subprocess.run(
        words, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=900
    ).stdout.strip()


EXTRACT = "--weights random:0 --image-px 32 --kinds mean,grid --limit 96 --unit-images 32 --device cpu"


@pytest.mark.long
def test_from_an_array_to_a_report_by_dependency(cluster, tmp_path, monkeypatch):
    """Extraction, sweep and report as they are; features and figures are those of the same commands typed here."""
    from loffta_cli.main import main

    cache, runs = str(tmp_path / "cache"), tmp_path / "runs"
    set_up = {"SOURCE": "demo:digits", "BACKBONE": "test_vit", "TAPS": "all", "OPTIONS": EXTRACT, "CACHE": cache}
    array = submit("extract", "--array=0-1", SHARDS="2", **set_up)
    of_sweep = {"CACHE": cache, "RUNS": str(runs), "HEADS": "linear combo", "DATA_SEEDS": "0 1", "SEEDS": "1"}
    options = "--partial --device cpu --set epochs=2"
    sweep = submit("sweep", "--array=0-3", f"--dependency=afterok:{array}", OPTIONS=options, **of_sweep)
    submit("report", f"--dependency=afterany:{sweep}", "--wait", RUNS=str(runs), SPLIT="train")
    logs = "\n".join(path.read_text() for path in Path().glob("*.log"))
    assert (runs / "report.html").read_text().count("combo-data1"), logs
    made = {path.name for path in runs.iterdir() if path.is_dir()}
    assert made == {f"{head}-data{seed}" for head in ("linear", "combo") for seed in (0, 1)}

    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    words = ["extract", "demo:digits", "--backbone", "test_vit", "--taps", "all", *EXTRACT.split()]
    assert main([*words, "--cache", "here"]) == 0
    assert cache_files(Path(cache), "stores/**/*") == cache_files(Path("here"), "stores/**/*")
    words = ["train", "here", "--head", "combo", "--data-seed", "1", *options.split(), "--out", "combo"]
    assert main(words) == 0
    one, other = read_results(runs / "combo-data1/results.json"), read_results(Path("combo/results.json"))
    assert one["metrics"] == other["metrics"]
    assert (runs / "linear-data0/results-train.json").exists()


@pytest.mark.long
def test_a_small_job_submits_the_whole_pipeline(cluster, tmp_path):
    """Its own memory and CPUs are not those of what it submits."""
    from loffta_pipelines import standin

    standin.write("folder:{data}/photos", tmp_path / "data")
    out = tmp_path / "out"
    options = "--small --cpus 1 --mem 2G --gres none --shards 2 --time 10"
    where = {"DATA": str(tmp_path / "data"), "OUT": str(out)}
    submit("pipeline", "--wait", OPTIONS=options, **where)
    log = Path("pipeline.log").read_text()
    assert log.count("submitted job") == 3, log
    end = time.monotonic() + 900
    while left := engine.queue(SlurmPaths(out).prefix):
        assert time.monotonic() < end, left
        time.sleep(0.5)
    summary = json.loads((out / "summary.json").read_text())
    assert {name: len(found[""]) for name, found in summary["tasks"]["photos"]["runs"].items()} == {
        "last": 2,  # seeds, by --small
        "attentive": 2,
        "combo": 2,
    }
    assert (out / "photos/report.html").exists()
